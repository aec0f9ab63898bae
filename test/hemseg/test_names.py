"""Names and headers from files: what a terminal, a spreadsheet, a page or a reader of voxels would obey."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import hemseg_here
from hypothesis import given, settings
from hypothesis import strategies as st
from test_folders import rows

from hemseg.errors import HemsegError
from hemseg.io.image_header import HEADER_BYTES
from hemseg.io.integrity import voxel_files
from hemseg.model import load
from hemseg.names import case_name, from_cell, printable, to_cell
from hemseg.report import viewer
from hemseg.report.findings import findings
from hemseg.scan import read
from hemseg.segmentation import segment
from training.data.phantom import Phantom


@given(st.text())
def test_what_is_printed_obeys_nobody(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert not set(shown) & {chr(c) for c in (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F))}
    assert printable(shown) == shown
    assert str(HemsegError(text)) == shown
    cell = to_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert from_cell(cell) == shown


@given(st.binary(min_size=1, max_size=20), st.binary(min_size=1, max_size=20))
def test_different_cases_have_different_names(a: bytes, b: bytes) -> None:
    first, second = (Path(os.fsdecode(name.replace(b"\0", b"").replace(b"/", b"") or b"x")) for name in (a, b))
    assert (case_name(first) == case_name(second)) == (first == second)
    assert from_cell(to_cell(case_name(first))) == case_name(first)


def test_names_on_the_terminal_in_tables_and_pages(scan: Path, tmp_path: Path, light: Path) -> None:
    names = ["a\x1b[2Jb.nii.gz", "line\nbreak.nii.gz", "=cmd|'C calc'!A0.nii.gz", "+1.nii.gz", "@x.nii.gz",
             "-1.nii.gz", "evil\u202egz.nii.gz", "'quoted.nii.gz", "@@DATA.nii.gz", "back\\slash.nii.gz"]  # fmt: skip
    for name in names:
        shutil.copy(scan, scan.with_name(name))
    scan.write_text("no scan")
    out = tmp_path / "out"
    done = hemseg_here("segment", scan.parent, out, "--report", "--weights", light, check=1)
    assert "\x1b" not in done.stdout + done.stderr
    assert "a\\x1b[2Jb.nii.gz" in done.stdout
    text = (out / "summary.csv").read_text()
    assert len(text.splitlines()) == len(names) + 2
    assert set(rows(out)) == {to_cell(case_name(Path(name))) for name in [*names, "case.nii.gz"]}
    assert not any(line.startswith(("=", "+", "-", "@")) for line in text.splitlines())
    page = (out / "@@DATA" / "report.html").read_text()
    assert "<title>hemseg: @@DATA.nii.gz</title>" in page
    assert "\u202e" not in (out / "summary.html").read_text() + "".join(
        p.read_text() for p in out.glob("*/report.html")
    )
    said = hemseg_here("segment", scan.parent, out, "--report", "--weights", light, check=1).stderr
    assert f"{len(names)} of {len(names) + 1} scans were done before" in said
    assert json.loads((out / "@@DATA" / "report.json").read_text())["case"] == "@@DATA.nii.gz"


def test_no_placeholder_is_filled_from_data(bleed: Phantom, light: Path) -> None:
    model = load(light, "cpu")
    result = segment(bleed.volume, model)
    for name in ("MARK", "TITLE", "NOTICE", "FACTS", "WARNINGS", "LESIONS", "DATA"):
        place = f"@{name}@"
        found = findings(result, model, place) | {"series": place, "warnings": [place], "implausible": []}
        assert viewer.page(result, found).count(place) == 4  # title, heading, series, warning


EXAMPLES = int(os.environ.get("HEMSEG_EXAMPLES", "200"))  # `make soak` takes more
BLANK = st.text("\t \r\v\f\0", max_size=3)
AWAY = ("../away.raw", "/etc/passwd", "sub/../../away.raw", "..\\away.raw", "~/away.raw", "C:\\away.raw", "linked.raw",
        "linkedfolder/away.raw", "./../away.raw", "%s/../../away.raw 1 2 1", "linke%s.raw 1 2 1")  # fmt: skip


def any_case(word: str) -> st.SearchStrategy[str]:
    return st.lists(st.booleans(), min_size=len(word), max_size=len(word)).map(
        lambda upper: "".join(c.upper() if u else c for c, u in zip(word, upper, strict=True))
    )


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links that lead out of it."""
    folder = tmp_path_factory.mktemp("trap") / "in"
    folder.mkdir()
    (folder.parent / "away.raw").write_bytes(bytes(64))
    (folder / "linked.raw").symlink_to("../away.raw")
    (folder / "linkedfolder").symlink_to("..", target_is_directory=True)
    (folder / "decoy.raw").write_bytes(bytes(64))
    (folder / "sub").mkdir()
    return folder


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    key=any_case("elementdatafile") | st.sampled_from(["ElementDataFile", "Element Data File", "Element\0DataFile"]),
    around=st.tuples(BLANK, BLANK, BLANK),
    separator=st.sampled_from("=:"),
    where=st.sampled_from(AWAY),
    before=st.sampled_from(["", "ElementDataFile = decoy.raw\n", "Comment = ElementDataFile = LOCAL\n", "x\r", "\x85"]),
    end=st.sampled_from(["\n", "\r\n", "\r", "\v", "\0", ""]),
    listed=st.booleans(),
)  # fmt: skip
def test_voxels_outside_of_the_folder_are_never_read(
    trap: Path, key: str, around: tuple[str, str, str], separator: str, where: str, before: str, end: str, listed: bool
) -> None:
    """However a header spells it: no example may get past the check."""
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n" + before
    value = f"LIST\ndecoy.raw\n{where}" if listed else where
    header += f"{around[0]}{key}{around[1]}{separator}{around[2]}{value}{end}"
    path = trap / "x.mhd"
    path.write_bytes(header.encode("latin-1"))
    with pytest.raises(ValueError, match="outside of its folder"):
        voxel_files(path)
    with pytest.raises(HemsegError):
        read(path)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    key=any_case("data file") | any_case("datafile"),
    blank=BLANK,
    where=st.sampled_from(AWAY),
    before=st.sampled_from(["", "data file: decoy.raw\n", "# data file: decoy.raw\n", "kind\r", "\v"]),
    listed=st.booleans(),
)
def test_nrrd_too(trap: Path, key: str, blank: str, where: str, before: str, listed: bool) -> None:
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n" + before
    header += f"{key}{blank}:{blank}{f'LIST{chr(10)}decoy.raw{chr(10)}' if listed else ''}{where}\n"
    path = trap / "x.nrrd"
    path.write_bytes(header.encode("latin-1"))
    with pytest.raises(ValueError, match="outside of its folder"):
        voxel_files(path)
    with pytest.raises(HemsegError):
        read(path)


def test_long_headers_are_refused(trap: Path) -> None:
    padding = "Comment = " + "x" * HEADER_BYTES + "\n"
    for name, text in (("x.mhd", f"ObjectType = Image\n{padding}ElementDataFile = ../away.raw\n"),
                       ("x.mha", f"NDims = 3\n{padding}ElementDataFile = LOCAL\n"),
                       ("x.nrrd", f"NRRD0004\n# {padding}data file: ../away.raw\n\n")):  # fmt: skip
        (trap / name).write_text(text)
        with pytest.raises(ValueError, match="longer than 1 MiB"):
            voxel_files(trap / name)
    (trap / "x.mha").write_bytes(b"NDims = 3\nElementDataFile = LOCAL\n" + bytes(2 * HEADER_BYTES))
    assert voxel_files(trap / "x.mha") == []


def test_voxels_in_the_folder_are_found(trap: Path) -> None:
    for name in ("s1.raw", "s2.raw"):
        (trap / "sub" / name).write_bytes(bytes(8))
    head = "ObjectType = Image\nNDims = 3\n"
    spellings = {
        "ElementDataFile = sub/s1.raw\n": ["s1.raw"],
        "ElementDataFile = LIST\nsub/s1.raw\nsub/s2.raw\n": ["s1.raw", "s2.raw"],
        "ElementDataFile = sub/s%d.raw 1 2 1\n": ["s1.raw", "s2.raw"],
        "ElementDataFile = decoy.raw\r\n": ["decoy.raw"],
    }
    for text, found in spellings.items():
        (trap / "x.mhd").write_text(head + text)
        assert sorted(p.name for p in voxel_files(trap / "x.mhd")) == found
