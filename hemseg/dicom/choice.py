"""Which series of a DICOM study is segmented, and what its header says that makes it less fit for that."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hemseg.dicom.stacks import Instance, Series, slices
from hemseg.errors import HemsegError

MIN_SLICES = 5  # fewer are taken only where no series has as many
MAX_NAMED = 5  # series in a sentence
AXIAL_DEGREES = 45.0  # gantries tilt by up to 30 degrees, heads by more
_NO_CONTRAST_WORDS = re.compile(
    r"\b(non?|w/?o|without|sans|ohne|sin|senza)\b[\s_-]*(iv\b|i\.v\.)?[\s_-]*(con|contrast|contraste|kontrast\w*|km|kst|cm|c\+?)?\b"
    r"|non[\s_-]?contrast|\bnc+t?\b|\bncct\b|native?\b|nativ\b|unenhanced|\bpre[\s_-]?contrast|\bC-",
    re.IGNORECASE,
)
_CONTRAST_WORDS = re.compile(
    r"\bCTA\b|\bCTV\b|\bCTP\b|angio|\bMRA\b|perf(usion)?\b|perfus|\bC\s?\+|\+\s?C\b|contrast|kontrast|\bpost\b|\bKM\b|\bKST\b"
    r"|arterial|arteriell|venous|ven[oö]s|\bcow\b|willis|carotid|\bTTP\b|\bTMAX\b|\bCBF\b|\bCBV\b|\bMTT\b",
    re.IGNORECASE,
)
_HEAD_WORDS = re.compile(r"head|brain|skull|cran|neuro|kopf|sch[aä]del|cerebr|hirn|t[eê]te|cabeza|encef", re.IGNORECASE)


def choose_series(series: Sequence[Series], requested: str = "") -> tuple[Series, str]:
    """The series of a study to segment, and the rule in words.

    Of the axial series with at least five slices, or of those with fewer where there is no such: original before
    derived images, a soft kernel before a sharp one, without contrast agent before with, a head before anything else,
    then the thinnest slices, the most slices, the lowest series number. Derived images may be cut or projected; the
    noise of a sharp kernel hides blood, and contrast agent looks like it; thin slices can be averaged, thick ones not
    be divided; the number only makes the choice the same each time.

    Args:
        requested: a SeriesInstanceUID (or the end of one), or a series number, that overrides the rule.

    Raises:
        HemsegError: there is none.
    """
    if requested:
        found = [s for s in series if s.instances[0].get("SeriesNumber") == requested]
        found = found or [s for s in series if s.uid.endswith(requested)]
        if len({s.uid for s in found}) > 1:
            raise HemsegError(f"series {requested} may be any of: {'; '.join(s.uid for s in found)}; give more of it.")
        if not found:
            raise HemsegError(f"there is no series {requested}; there are: {_descriptions(series)}.")
        most = max(len(s.instances) for s in found)
        return min((s for s in found if 2 * len(s.instances) > most), key=_rank), f"{requested} was asked for"
    axial = [s for s in series if _is_axial(s)]
    long = [s for s in axial if len(s.instances) >= MIN_SLICES]
    if not long and len(axial) > 1 and all(len(s.instances) == 1 for s in axial):
        raise HemsegError(
            f"holds {len(axial)} axial CT series of one slice each: is it one scan, each slice of which was given a "
            "series of its own? Give a scan whose slices have one SeriesInstanceUID, or --series."
        )
    if not axial:
        raise HemsegError(f"there is no axial CT series; there are: {_descriptions(series)}.")
    best = min(long or axial, key=_rank)
    rule = "original, soft kernel, no contrast agent, head, thinnest"
    if len(long or axial) == 1:
        return best, f"{best.describe()}; the only axial series"
    return best, f"{best.describe()}; of {len(long or axial)} axial series: {rule}"


def require_one_patient(series: Sequence[Series], path: Path) -> None:
    """Raise for the CT of more than one patient, which a folder of cases may hold, but not one scan.

    Raises:
        HemsegError: it lists them by their places, never by what their headers say.
    """
    patients: dict[tuple[str, ...], list[Series]] = {}
    for one in series:
        patients.setdefault(one.patient, []).append(one)
    if len(patients) <= 1:
        return
    places = [f"{_location(of, path)} ({slices(sum(len(s.instances) for s in of))})" for of in patients.values()]
    more = f" and {len(places) - MAX_NAMED} more" if len(places) > MAX_NAMED else ""
    named = ", ".join(sorted(places)[:MAX_NAMED]) + more
    raise HemsegError(f"{path}: holds CT of {len(patients)} patients: {named}; give one of them.")


def series_warnings(series: Series, others: Sequence[Series]) -> tuple[str, ...]:
    """What a series' headers say that makes its mask less sure, in sentences. No header value is among them."""

    def any_of(test: Callable[[Instance], bool]) -> bool:
        return any(test(instance) for instance in series.instances)

    warnings = []
    if any_of(lambda i: is_sharp(i.get("ConvolutionKernel"))):
        soft = [s for s in others if s.patient == series.patient and _is_axial(s) and len(s.instances) >= MIN_SLICES]
        soft = [s for s in soft if not is_sharp(s.instances[0].get("ConvolutionKernel"))]
        best = _series_option(min(soft, key=_rank), others) if soft else ""
        hint = f" Compare with --series {best}, which has a soft one." if soft else ""
        warnings.append(f"It has a sharp kernel, for bone or lung: its noise hides blood.{hint}")
    if any_of(lambda i: i.contrast):
        warnings.append("Its header names a contrast agent, which may be taken for blood.")
    elif any_of(_is_enhanced):
        warnings.append("Its description names angiography, perfusion or contrast, whose agent may be taken for blood.")
    if any_of(lambda i: bool(re.search(r"\b(MIP|MINIP|PROJECTION IMAGE)\b", i.get("ImageType").upper()))):
        warnings.append("Its slices are projections of others, as ImageType says: volumes are wrong.")
    if any_of(lambda i: bool(i.get("BodyPartExamined")) and not _HEAD_WORDS.search(i.get("BodyPartExamined"))):
        warnings.append("BodyPartExamined is not the head.")
    if any_of(lambda i: i.get("RescaleType").upper() not in ("", "HU")):
        warnings.append("RescaleType is not HU: are its values?")
    if any_of(lambda i: i.get("BurnedInAnnotation").upper() == "YES"):
        warnings.append("Text was burned into its pixels (BurnedInAnnotation), which may be taken for blood.")
    numbers = sorted({i.header["InstanceNumber"] for i in series.instances if "InstanceNumber" in i.header})
    if len(numbers) > 2 and not series.left_out:
        gaps = np.diff(numbers)
        usual = int(np.median(gaps))
        if missing := int((gaps // max(1, usual) - 1).clip(0).sum()):
            warnings.append(f"Its InstanceNumbers have gaps: {slices(missing)} may be missing.")
    return tuple(warnings)


def _series_option(series: Series, others: Sequence[Series]) -> str:
    """The value of ``--series`` that selects it: its number, or its UID where others have that number, too."""
    number = series.instances[0].get("SeriesNumber")
    alone = sum(s.instances[0].get("SeriesNumber") == number for s in others) == 1
    return number if number and alone else series.uid


def _descriptions(series: Sequence[Series]) -> str:
    """Descriptions of some series, the largest first."""
    ordered = sorted(series, key=lambda s: -len(s.instances))
    more = f"; and {len(series) - MAX_NAMED} more" if len(series) > MAX_NAMED else ""
    return "; ".join(s.describe() for s in ordered[:MAX_NAMED]) + more if series else "none"


def _location(series: Sequence[Series], path: Path) -> str:
    """Where series lie, below the path that holds them: their folder, or their first file where they share it."""
    sources = [instance.source for one in series for instance in one.instances]
    folder = Path(os.path.commonpath([source.place for source in sources]))
    if folder in (path, Path(".")) or not folder.is_relative_to(path):
        first = min(sources, key=str)
        return f"{Path(first.member or first.path).name} and others"
    return str(folder.relative_to(path))


def _is_axial(series: Series) -> bool:
    normal = np.cross(*series.instances[0].orientation)
    return bool(abs(normal[2]) >= np.cos(np.radians(AXIAL_DEGREES)) * max(1e-9, float(np.linalg.norm(normal))))


def _is_enhanced(instance: Instance) -> bool:
    """Whether a description names contrast agent. A study's and a protocol's hold for native series beside, too."""
    about = instance.get("SeriesDescription") or instance.get("ProtocolName")
    about = f"{about} {instance.get('ImageType')}".replace("_", " ")
    return bool(_CONTRAST_WORDS.search(_NO_CONTRAST_WORDS.sub(" ", about)))


def _rank(series: Series) -> tuple[Any, ...]:
    first = series.instances[0]
    texts = ("BodyPartExamined", "SeriesDescription", "StudyDescription", "ProtocolName")
    about = " ".join(first.get(name) for name in texts)
    number = first.get("SeriesNumber")
    return (
        "ORIGINAL" not in first.get("ImageType").upper(),
        is_sharp(first.get("ConvolutionKernel")),
        first.contrast or _is_enhanced(first),
        _HEAD_WORDS.search(about) is None and bool(about.strip()),
        max(0.0, first.header.get("SliceThickness") or 0.0) or 99.0,
        -len(series.instances),
        int(number) if number.isdecimal() else 10**9,
        series.uid,
    )


def is_sharp(kernel: str) -> bool:
    """Whether a convolution kernel is one for bone or lung: by the names that GE, Siemens, Philips and Canon give."""
    name = kernel.upper()
    if re.search(r"BONE|EDGE|LUNG|SHARP|ULTRA|DETAIL", name):
        return True
    if found := re.search(r"\b[BHJUITQ][A-Z]?(\d\d)", name):  # Siemens: H31s, Hr60, J70h; from 50 on they are sharp
        return int(found[1]) >= 50
    if found := re.search(r"\bFC(\d\d)", name):  # Canon: FC30 and FC80 families are for bone, FC50 for lung
        return found[1][0] in "358"
    return bool(re.fullmatch(r"Y[ABCD]|[DEL]", name.strip("'[] ")))  # Philips
