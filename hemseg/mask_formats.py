"""The formats of masks, each one entry: ``--format`` offers and explains it, and results are written in it.

Image formats, which hemseg reads, too, are entries of `hemseg.io.formats`. Heavy libraries are imported where they are
needed, so that ``--help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hemseg.io.result_writers import RESULT_WRITERS

if TYPE_CHECKING:
    from hemseg.segmentation import Segmentation

SAME = "same"


@dataclass(frozen=True)
class MaskFormat:
    """A format of masks.

    A writer leaves a whole file or none (`hemseg.io.files`), and `hemseg.io.marks.mark` in it, in its first 4 KiB: else
    hemseg would not replace it when the case is done again.

    Attributes:
        name: of ``--format``.
        suffix: of the mask's file; '' for the scan's own.
        about: what the help says, where the name does not say it all.
        write: (result, path, companion) writes the mask, and its companion; None for an image with the scan's geometry.
        of_slices: it refers to DICOM slices, so that only scans in DICOM have a mask of it.
        companion: what the name of a second file ends in, which is written with the mask; '' for none.
        write_kinds: (result, path) writes the mask of kinds; None for an image.
        write_probability: (result, path) writes the probability of each voxel; None for an image.
    """

    name: str
    suffix: str
    about: str = ""
    write: Callable[[Segmentation, Path, Path | None], object] | None = None
    of_slices: bool = False
    companion: str = ""
    write_kinds: Callable[[Segmentation, Path], Path] | None = None
    write_probability: Callable[[Segmentation, Path], Path] | None = None


def _write_dicom_seg(result: Segmentation, path: Path, companion: Path | None = None) -> None:
    from hemseg.dicom_out.seg import write_segmentation

    write_segmentation(result, path)


def _write_dicom(result: Segmentation, path: Path, companion: Path | None = None) -> None:
    from hemseg.dicom_out.sr import write_segmentation_and_report

    write_segmentation_and_report(result, path, companion or path.with_name(f"{path.stem}_sr.dcm"))


def _write_dicom_kinds(result: Segmentation, path: Path) -> Path:
    from hemseg.dicom_out.seg import write_kind_segmentation

    return write_kind_segmentation(result, path)


def _write_dicom_probability(result: Segmentation, path: Path) -> Path:
    from hemseg.dicom_out.pm import write_parametric_map

    return write_parametric_map(result, path)


_SEG = MaskFormat(
    "dicom-seg",
    ".dcm",
    write=_write_dicom_seg,
    of_slices=True,
    write_kinds=_write_dicom_kinds,
    write_probability=_write_dicom_probability,
)
MASK_FORMATS = {
    form.name: form
    for form in (
        MaskFormat(SAME, "", "that of the scan, mha for DICOM"),
        MaskFormat("mha", ".mha"),
        MaskFormat("nii.gz", ".nii.gz"),
        _SEG,
        replace(_SEG, name="dicom", about="SEG and SR", write=_write_dicom, companion="_sr.dcm"),
    )
}


def help_text() -> str:
    """What ``--help`` says about ``--format``."""
    about = (f"{form.name}: {form.about}" for form in MASK_FORMATS.values() if form.about)
    return f"Format of the masks. {'; '.join(about)}."


def format_of(path: Path) -> MaskFormat | None:
    """The format, no image's, of a mask of such a name; where several have its suffix, the first of them."""
    name = path.name.lower()
    fitting = [form for form in MASK_FORMATS.values() if form.write and name.endswith(form.suffix)]
    return max(fitting, key=lambda form: len(form.suffix), default=None)


def write_result(result: Segmentation, path: Path, name: str = SAME, companion: Path | None = None) -> None:
    """Write a mask.

    Args:
        path: where to; of `SAME`, its suffix says the format.
        name: of the format, one of `MASK_FORMATS`.
        companion: where the format's second file goes.

    Raises:
        HemsegError: this format does not fit the scan, the path is the scan itself, or the file cannot be written.
    """
    from hemseg.io.masks import refuse_own_scan, write_mask

    form = format_of(path) if name == SAME else MASK_FORMATS[name]
    if form and form.write:
        refuse_own_scan(path, result.volume)
        form.write(result, path, companion)
        return
    write_mask(result.mask, result.volume, path)


RESULT_WRITERS.update(dict.fromkeys((form.suffix for form in MASK_FORMATS.values() if form.write), write_result))
