"""What the DICOM headers of two scans say of each other: hours between them, and whether it is one patient.

Neither dates nor names leave this module: what comes out is a difference, and yes or no.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from hemseg.errors import HemsegError
from hemseg.volume import Volume

# attributes that give the time, the best first: (name, DICOM attribute of the date, of the time; one of both)
CLOCKS = (
    ("acquisition", "AcquisitionDateTime", ""),
    ("acquisition", "AcquisitionDate", "AcquisitionTime"),
    ("series", "SeriesDate", "SeriesTime"),
    ("study", "StudyDate", "StudyTime"),
)
OFFSET = "TimezoneOffsetFromUTC"
FIELDS = (*dict.fromkeys(name for _, *names in CLOCKS for name in names if name), OFFSET)
_DATE_TIME = re.compile(r"(\d{4})[.]?(\d\d)[.]?(\d\d)(\d\d):?(\d\d)(?::?(\d\d)(?:\.(\d{1,6}))?)?([+-]\d{4})?")


def hours_between(baseline: Volume, followup: Volume) -> float | None:
    """Hours from the one scan to the other, of the first of acquisition, series and study that both have; negative
    where the follow-up was taken first; None where it is not known.
    """
    first, second = _times(baseline), _times(followup)
    for clock, *_ in CLOCKS:
        if clock in first and clock in second:
            a, b = first[clock], second[clock]
            if (a.tzinfo is None) != (b.tzinfo is None):  # one of them says nothing of its zone
                a, b = a.replace(tzinfo=None), b.replace(tzinfo=None)
            return (b - a).total_seconds() / 3600
    return None


def different_patients(baseline: Volume, followup: Volume) -> bool:
    """Whether the headers of two DICOM scans name two patients: by PatientID, where one is missing by PatientName."""
    if baseline.stack is None or followup.stack is None:
        return False
    headers = [volume.stack.series.instances[0] for volume in (baseline, followup) if volume.stack]
    for name in ("PatientID", "PatientName"):
        a, b = (header.get(name).strip().casefold() for header in headers)
        if a and b:
            return a != b
    return False


def _times(volume: Volume) -> dict[str, datetime]:
    """When a scan was taken, by clock; empty without DICOM."""
    if volume.stack is None:
        return {}
    try:
        dataset = volume.stack.series.instances[0].source.read(pixels=False, fields=FIELDS)
    except HemsegError:
        return {}

    def text(name: str) -> str:
        try:
            return str(dataset.get(name) or "").strip() if name else ""
        except Exception:  # pydicom's own are many; a time that cannot be read is not known
            return ""

    found: dict[str, datetime] = {}
    for clock, date, time in CLOCKS:
        if time and not (text(date) and text(time)):
            continue
        if clock not in found and (at := date_time(text(date) + text(time), text(OFFSET))):
            found[clock] = at
    return found


def date_time(text: str, offset: str = "") -> datetime | None:
    """The time of a DICOM DT, or of a DA followed by a TM; None where there is no hour or no such day.

    Args:
        offset: from UTC (``+0100``), for a text without one.
    """
    found = _DATE_TIME.fullmatch(text)
    if not found:
        return None
    year, month, day, hour, minute, second, fraction, zone = found.groups()
    zone = zone or (offset if re.fullmatch(r"[+-]\d{4}", offset) else "")
    info = None
    if zone:
        minutes = int(zone[1:3]) * 60 + int(zone[3:])
        info = timezone(timedelta(minutes=-minutes if zone[0] == "-" else minutes)) if minutes < 24 * 60 else None
    micro = int((fraction or "").ljust(6, "0"))
    try:
        return datetime(
            int(year), int(month), int(day), int(hour), int(minute), min(59, int(second or 0)), micro, tzinfo=info
        )
    except ValueError:
        return None
