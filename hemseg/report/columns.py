"""The columns of ``summary.csv`` and ``lesions.csv``: what each means. ``docs/tables.md`` and REDCap's dictionary are
made of this.

    python -m hemseg.report.columns docs        writes docs/tables.md and docs/redcap_data_dictionary.csv
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hemseg.kinds import KINDS, UNSURE, Kind
from hemseg.lesions import MeasuredLesion
from hemseg.names import to_value_cell


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        kind: ``text``, ``number``, ``integer``, ``yesno`` (1 or 0), or the choices that there are, with ``|`` between.
        unit: of numbers; '' where they have none.
        internal: it serves to go on with a run, and is of no use in a study's data base.
    """

    name: str
    kind: str
    meaning: str
    unit: str = ""
    internal: bool = False

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that there are; empty where they are not counted."""
        return tuple(self.kind.split("|")) if "|" in self.kind else ()


_ABC2 = "ABC/2 (Kothari 1996)"
SUMMARY = (
    Column("case", "text", "Path of the scan relative to the input folder"),
    Column("status", "done|failed", "Whether the case has a result"),
    Column("volume_ml", "number", "Total volume of hemorrhage, from the voxels of the mask", "mL"),
    Column("lesions", "integer", "Number of lesions (connected components of the mask)"),
    Column("largest_ml", "number", "Volume of the largest lesion", "mL"),
    Column("seconds", "number", "Processing time", "s"),
    Column("warnings", "text", "Warnings: what looks unusual about the scan"),
    Column("error", "text", "Reason why there is no result"),
    Column("series", "text", "Series of the DICOM study that was used, and why"),
    Column("mask", "text", "Path of the mask relative to the folder of this table"),
    Column("scan", "text", "Content hash, size and times of the files of the scan", internal=True),
    Column("made_by", "text", "Version, weights and options that produced the result"),
    Column("implausible", "text", "What is implausible about the result; inspect it before using the figures"),
    Column("source", "text", "Path of the scan relative to the folder of this table", internal=True),
    Column("mask_sha256", "text", "Content hash of the mask as written", internal=True),
    Column("checksum", "text", "Shows whether the row is as hemseg wrote it", internal=True),
    Column("largest_abc2_ml", "number", f"{_ABC2} of the largest lesion", "mL"),
    Column("largest_a_cm", "number", "A of the largest lesion", "cm"),
    Column("largest_b_cm", "number", "B of the largest lesion", "cm"),
    Column("largest_c_cm", "number", "C of the largest lesion", "cm"),
    Column("volume_ml_low", "number", "Lower end of the volume range (empty without --range)", "mL"),
    Column("volume_ml_high", "number", "Upper end of the volume range (empty without --range)", "mL"),
    Column(
        "lesions_checksum", "text", "Shows whether the rows of the case in lesions.csv are as written", internal=True
    ),
    Column(
        "doubtful_slices",
        "text",
        "Slices in which both the U-Net and the slice classifier see hemorrhage but nothing is outlined; "
        "counted from 1, starting inferiorly",
    ),
)
LESIONS = (
    Column("case", "text", "Path of the scan relative to the input folder, as in summary.csv"),
    Column("lesion", "integer", "Number of the lesion within the case; 1 is the largest"),
    Column("volume_ml", "number", "Volume of the lesion, from the voxels of the mask", "mL"),
    Column("abc2_ml", "number", f"{_ABC2}: A times B times C, divided by 2", "mL"),
    Column("a_cm", "number", "A: largest diameter on the axial slice with the largest area of the lesion", "cm"),
    Column("b_cm", "number", "B: longest line perpendicular to A within the outline, on the same slice", "cm"),
    Column(
        "c_cm",
        "number",
        "C: total thickness of the slices, weighted 1 above 75 % of the largest area, 0.5 from 25 to 75 %, 0 below",
        "cm",
    ),
    Column("x_mm", "number", "x of the centroid, increasing towards the patient's left (DICOM coordinates, LPS)", "mm"),
    Column("y_mm", "number", "y of the centroid, increasing towards posterior", "mm"),
    Column("z_mm", "number", "z of the centroid, increasing towards superior", "mm"),
    Column(
        "side",
        "left|right|midline|unknown",
        "Side of the patient on which the centroid lies; midline: within 5 mm of the middle of the intracranial space; "
        "unknown: the file does not state the orientation of the patient, or the head lies sideways",
    ),
    Column(
        "first_slice",
        "integer",
        "First slice, counted from 1 in the order of the file (pictures and pages count from inferior)",
    ),
    Column("last_slice", "integer", "Last slice, counted in the same way"),
    Column("mean_hu", "number", "Mean HU of the voxels of the lesion, as stored", "HU"),
    Column("median_hu", "number", "Median HU of the voxels of the lesion, as stored", "HU"),
    Column(
        "skull_mm",
        "number",
        "In-plane distance from the outermost voxel of the lesion to the inner surface of the skull",
        "mm",
    ),
    Column("touches_skull", "yesno", "Whether the lesion comes within 2 mm of the inner surface of the skull"),
    Column(
        "touches_ventricle",
        "yesno",
        "Whether the lesion comes within 3 mm, in plane, of CSF deep in the brain (ventricles and deep cisterns); a "
        "rule of thumb: a ventricle full of blood does not count",
    ),
    Column(
        "probability_mean",
        "number",
        "Mean probability of the network over the voxels of the lesion; empty for given masks",
    ),
    Column("probability_max", "number", "Maximum probability of the network in the lesion; empty for given masks"),
    Column(
        "kind", "|".join((*KINDS, UNSURE)), "Kind of hemorrhage (docs/usage.md); empty if the weights name no kinds"
    ),
    Column("kind_probability", "number", "Probability of the most probable kind, given that the lesion is hemorrhage"),
)


def lesion_cells(case: str, number: int, measured: MeasuredLesion, kind: Kind | None = None) -> tuple[str, ...]:
    """The line of a lesion in ``lesions.csv``.

    Args:
        case: `hemseg.names.case_name`.
        number: from 1.
        kind: None where the weights name none.
    """
    lesion, abc2 = measured.lesion, measured.abc2
    mean, most = measured.probability_mean, measured.probability_max
    return (
        case,
        str(number),
        f"{lesion.volume_ml:.3f}",
        f"{abc2.volume_ml:.3f}",
        *(f"{cm:.2f}" for cm in (abc2.a_cm, abc2.b_cm, abc2.c_cm)),
        *(f"{mm:.2f}" for mm in lesion.centroid),
        lesion.side,
        *(str(z + 1) for z in lesion.slices),
        f"{lesion.mean_hu:.1f}",
        f"{measured.median_hu:.1f}",
        f"{lesion.skull_mm:.1f}",
        str(int(measured.touches_skull)),
        str(int(measured.touches_ventricle)),
        "" if mean is None else f"{mean:.4f}",
        "" if most is None else f"{most:.4f}",
        kind.name if kind else "",
        f"{kind.probability:.3f}" if kind else "",
    )


def csv_text(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table as CSV; no cell is one that a spreadsheet would run as a formula."""
    made = io.StringIO(newline="")
    writer = csv.writer(made)
    writer.writerow(header)
    writer.writerows([to_value_cell(cell) for cell in line] for line in lines)
    return made.getvalue()


REDCAP_HEADER = (
    "Variable / Field Name",
    "Form Name",
    "Section Header",
    "Field Type",
    "Field Label",
    "Choices, Calculations, OR Slider Labels",
    "Field Note",
    "Text Validation Type OR Show Slider Number",
    "Text Validation Min",
    "Text Validation Max",
    "Identifier?",
    "Branching Logic (Show field only if...)",
    "Required Field?",
    "Custom Alignment",
    "Question Number (surveys only)",
    "Matrix Group Name",
    "Matrix Ranking?",
    "Field Annotation",
)
SCAN_FORM, LESION_FORM = "hemseg_scan", "hemseg_lesion"


def redcap_name(column: Column, form: str) -> str:
    """The name of a column in REDCap, where every name is there once: those of lesions that summary.csv has, too,
    begin with ``lesion_``.
    """
    shared = form == LESION_FORM and column.name in {one.name for one in SUMMARY}
    return f"lesion_{column.name}" if shared else column.name


def redcap_dictionary() -> str:
    """REDCap's data dictionary: an instrument for a scan, and a repeating one for its lesions."""
    lines = []
    for form, columns in ((SCAN_FORM, SUMMARY), (LESION_FORM, LESIONS[1:])):
        for column in columns:
            if column.internal:
                continue
            kind = "radio" if column.choices else "yesno" if column.kind == "yesno" else "text"
            checks = {"number": "number", "integer": "integer"}.get(column.kind, "")
            choices = " | ".join(f"{choice}, {choice}" for choice in column.choices)
            line = dict.fromkeys(REDCAP_HEADER, "") | {
                "Variable / Field Name": redcap_name(column, form),
                "Form Name": form,
                "Field Type": kind,
                "Field Label": column.meaning,
                "Choices, Calculations, OR Slider Labels": choices,
                "Field Note": column.unit,
                "Text Validation Type OR Show Slider Number": checks,
            }
            lines.append(list(line.values()))
    return csv_text(REDCAP_HEADER, lines)


def tables_page() -> str:
    """``docs/tables.md``."""

    def table(columns: Sequence[Column]) -> str:
        rows = [
            f"| `{column.name}` | {'yes/no (1/0)' if column.kind == 'yesno' else column.kind.replace('|', ', ')} "
            f"| {column.unit} | {column.meaning} |"
            for column in columns
        ]
        return "\n".join(["| column | kind | unit | meaning |", "|---|---|---|---|", *rows])

    return PAGE.format(
        summary=table([column for column in SUMMARY if not column.internal]),
        internal=table([column for column in SUMMARY if column.internal]),
        lesions=table(LESIONS),
    )


PAGE = """# Tables

<!-- made by `python -m hemseg.report.columns docs`; change hemseg/report/columns.py -->

For a folder of scans, `hemseg segment` and `hemseg measure` write `summary.csv`, with one row per case, and
`lesions.csv`, with one row per lesion. Both are UTF-8 with commas as separators and decimal points. Text that a
spreadsheet would run as a formula starts with an apostrophe.

## summary.csv

{summary}

These columns are used to resume an interrupted run:

{internal}

## lesions.csv

{lesions}

## ABC/2

The bedside estimate of Kothari et al. (Stroke 1996;27:1304-1305), for each lesion separately. *A* is the largest
diameter on the axial slice with the largest area of the lesion; *B* is the longest line perpendicular to A within the
outline on that slice (for a crescent, its thickness); *C* is the total thickness of the slices that show the lesion,
each weighted by its area: fully above 75 % of the largest area, half from 25 to 75 %, and not at all below. Diameters
are measured between the outer edges of pixels.

By this rule, C of an ellipsoid in thin slices is 0.68 times its height, and ABC/2 is 0.65 times its volume; with few
thick slices, C depends on where they lie. `volume_ml` counts voxels and does not have this bias.

## REDCap

[redcap_data_dictionary.csv](redcap_data_dictionary.csv) is the data dictionary for both tables. It has one instrument
for the scan, `hemseg_scan`, and one for its lesions, `hemseg_lesion`, which has to be set to repeating in the project
setup. The record is the `case`. In `lesions.csv`, rename `volume_ml` to `lesion_volume_ml`, and add the columns
`redcap_repeat_instrument` (`hemseg_lesion`) and `redcap_repeat_instance` (the number in `lesion`). Omit the columns of
`summary.csv` that are not in the dictionary.
"""


def main() -> None:
    """Write both files into the folder that is named."""
    folder = Path(sys.argv[1])
    (folder / "tables.md").write_text(tables_page(), encoding="utf-8")
    (folder / "redcap_data_dictionary.csv").write_text(redcap_dictionary(), encoding="utf-8", newline="")


if __name__ == "__main__":
    main()
