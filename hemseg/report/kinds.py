"""The mask of kinds: each lesion labelled with its kind, beside the mask of 0 and 1."""

from __future__ import annotations

from pathlib import Path

from hemseg.errors import HemsegError
from hemseg.io.formats import suffix
from hemseg.io.masks import write_mask
from hemseg.mask_formats import format_of
from hemseg.segmentation import Segmentation


def kinds_path(mask: Path, own: Path) -> Path:
    """Where the mask of kinds goes: beside the mask, in its format; MetaImage beside one that holds no kinds.

    Args:
        own: the mask's path without its suffix, or what stands in for it.
    """
    form = format_of(mask)
    ending = suffix(mask) if form is None else form.suffix if form.write_kinds else ".mha"
    return own.with_name(f"{own.name}_kinds{ending}")


def write_kinds(result: Segmentation, path: Path) -> Path:
    """Write the mask of kinds with the scan's geometry, all or nothing; ``.dcm``: a segment for each kind.

    Raises:
        HemsegError: the weights name no kinds, or the format cannot hold the scan's geometry.
        OutputError: it cannot be written.
    """
    if len(result.kinds) != len(result.lesions):
        raise HemsegError(f"{path}: these weights name no kinds of hemorrhage; use others, or leave out --kinds.")
    form = format_of(path)
    if form and form.write_kinds:
        return form.write_kinds(result, path)
    return write_mask(result.kind_mask, result.volume, path)
