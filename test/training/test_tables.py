"""Tables of data sets as people have them: what has one meaning is read, the rest is named with its row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from hemseg.errors import HemsegError
from training.data.datasets import load_dataset

ROWS = [(case, z, int(case == "a" and z > 1)) for case in "abc" for z in range(3)]
LABELS = {"a": (0, 0, 1), "b": (0, 0, 0), "c": (0, 0, 0)}
SPLIT = "case,split\na,train\nb,val\nc,test\n"


def table(
    delimiter: str = ",", first: int = 0, end: str = "\n", head: str = "case,slice,hemorrhage", cell: Callable = str
) -> str:
    lines = [head.replace(",", delimiter)]
    lines += [delimiter.join((name, cell(z + first), cell(label))) for name, z, label in ROWS]
    return end.join(lines) + end


def dataset(folder: Path, labels: str, split: str = "", encoding: str = "utf-8", images: tuple[str, ...] = ()) -> Path:
    (folder / "images").mkdir(parents=True)
    for name in images or ("a", "b", "c"):
        image = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
        sitk.WriteImage(image, str(folder / "images" / (name if "." in name else f"{name}.mha")))
    (folder / "slice_labels.csv").write_bytes(labels.encode(encoding))
    if split:
        (folder / "split.csv").write_bytes(split.encode(encoding))
    return folder


@pytest.mark.parametrize(
    ("labels", "encoding"),
    [
        (table(), "utf-8"),
        (table(), "utf-8-sig"),
        (table(), "utf-16"),
        (table(";"), "utf-8"),
        (table("\t"), "utf-8-sig"),
        (table(", "), "utf-8"),
        (table(end="\r\n"), "utf-8"),
        (table(cell=lambda value: str(float(value))), "utf-8"),
        (table(head="Case,Slice,Hemorrhage"), "utf-8"),
        (table() + "\n,,\n", "utf-8"),
        (table() + "a,0,0\n", "utf-8"),  # twice the same
        (table().replace("a,", "a.nii.gz,"), "utf-8"),
        (table().replace("a,", '"a",').rstrip(), "utf-8"),
        (table().replace(",0\n", ",False\n").replace(",1\n", ",True\n"), "utf-8"),
    ],
)
def test_what_has_one_meaning_is_read(tmp_path: Path, labels: str, encoding: str) -> None:
    read = load_dataset(dataset(tmp_path / "set", labels, SPLIT, encoding))
    assert {case.name: case.labels for case in read.cases} == LABELS
    assert read.splits == {"a": "train", "b": "val", "c": "test"}


@pytest.mark.parametrize(
    "split", ["case;split\na;Train\nb;VAL\nc;Test\n", "case, split\na, training\nb, validation\nc, test\n\n"]
)
def test_splits(tmp_path: Path, split: str) -> None:
    assert load_dataset(dataset(tmp_path / "set", table(), split)).splits == {"a": "train", "b": "val", "c": "test"}


@pytest.mark.parametrize(
    ("labels", "split", "said"),
    [
        (table(first=1), "", "does the table count from 1"),
        (table() + "a,0,1\n", "", "slice_labels.csv, row 11: contradicts an earlier row"),
        (table().replace("a,2,1", "a,2,2"), "", "row 4: hemorrhage is '2', neither 0 nor 1"),
        (table().replace("b,1,0", "b,1,"), "", "row 6: hemorrhage is empty"),
        (table().replace("b,1,0", "b,x,0"), "", "row 6: the slice is not a number"),
        (table().replace("b,1,0", "b,0_1,0"), "", "row 6: the slice is not a number"),
        (table().replace("b,1,0", "b,1,0_0"), "", "row 6: hemorrhage is '0_0', neither 0 nor 1"),
        (table().replace("b,1,0", 'b,1,"0'), "", "slice_labels.csv, row 6: a quotation mark is not closed"),
        (table() + 'c,2,"0' + "x" * 140_000, "", "slice_labels.csv, row 11: a quotation mark is not closed"),
        (table().replace("slice", "z"), "", "slice_labels.csv lacks the columns slice"),
        ("", "", "slice_labels.csv is empty"),
        (table(), "case,set\na,train\n", "split.csv lacks the columns split"),
        (table(), SPLIT.replace("val", "maybe"), "split.csv, row 3: split 'maybe' is none of"),
        (table(), "case,split\n", "cases without a split: a, b, c"),
    ],
)
def test_what_has_none_is_named_with_its_row(tmp_path: Path, labels: str, split: str, said: str) -> None:
    with pytest.raises(HemsegError, match=said):
        load_dataset(dataset(tmp_path / "set", labels, split))


def test_many_bad_rows_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(HemsegError, match=r"rows 2, 3, 4, 5, 6 and 4 more: hemorrhage is '7'") as error:
        load_dataset(dataset(tmp_path / "set", table(cell=lambda value: "7")))
    assert len(str(error.value).splitlines()) < 6


def test_two_images_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(HemsegError, match="cases with two images in images: a"):
        load_dataset(dataset(tmp_path / "set", table(), images=("a", "b", "c", "a.nii")))


def test_two_masks_of_one_name(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", table())
    shutil.copytree(folder / "images", folder / "masks")
    load_dataset(folder)
    shutil.copy(folder / "masks" / "a.mha", folder / "masks" / "a.mhd")
    with pytest.raises(HemsegError, match="cases with two masks in masks: a"):
        load_dataset(folder)


@pytest.mark.parametrize(("shape", "said"), [((4, 5), "2D"), ((2, 3, 4, 5), "4D")])
@pytest.mark.parametrize("labelled", [True, False], ids=["table", "masks"])
def test_images_that_are_not_3d(tmp_path: Path, shape: tuple[int, ...], said: str, labelled: bool) -> None:
    """They are a fault that is told once, among the others, wherever the labels come from."""
    folder = dataset(tmp_path / "set", table())
    image = sitk.GetImageFromArray(np.zeros(shape, np.int16), isVector=False)
    sitk.WriteImage(image, str(folder / "images" / "b.mha"))
    shutil.copytree(folder / "images", folder / "masks")
    if not labelled:
        (folder / "slice_labels.csv").unlink()
    with pytest.raises(HemsegError) as error:
        load_dataset(folder)
    (fault,) = [detail for detail in error.value.details if "b.mha" in detail]
    assert f"b.mha: is a {said} image" in fault
    assert "left_out.txt" in fault


def test_names_in_windows_encoding(tmp_path: Path) -> None:
    labels = "case,slice,hemorrhage\n" + "".join(f"é,{z},0\n" for z in range(3))
    (case,) = load_dataset(dataset(tmp_path / "set", labels, "case,split\né,train\n", "cp1252", ("é",))).cases
    assert case.labels == (0, 0, 0)
