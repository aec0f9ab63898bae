"""Which case is meant, and where its mask belongs: a test a row of the contract, and one for each ambiguity."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from hemseg.errors import HemsegError
from hemseg.grand_challenge.sockets import RunPlan, Sockets, load_sockets, plan_run, read_inputs

KIT = {"is_panimg_kind": False, "is_json_kind": False, "is_file_kind": False}


def tree(*names: str) -> list[PurePosixPath]:
    return [PurePosixPath(name) for name in names]


def socket(slug: str, path: str | None = None, key: str = "socket", **more: Any) -> dict[str, Any]:
    described = {"slug": slug, "kind": "Image", "super_kind": "Image"} | (
        {} if path is None else {"relative_path": path}
    )
    return {key: described, "value": None, "file": None, "image": {"pk": "1", "name": "a.mha"}, "pk": 1} | more


VALUE = {
    "socket": {"slug": "age", "kind": "Integer", "super_kind": "Value", "relative_path": "age.json"},
    "value": 70,
    "file": None,
    "image": None,
}
LEGACY_KEY = {"interface": {"slug": "ct", "relative_path": "images/ct"}, "image": {"name": "a.mha"}}

ROWS: dict[str, tuple[list[PurePosixPath], Any, bool, str, list[str]]] = {
    "a socket of its own": (tree("inputs.json", "images/ct/u.mha"), [socket("ct-image", "images/ct")], False, "gc", [
        "images/ct/u.mha"]),
    "slug and path differ": (tree("images/ct/u.mha"), [socket("head", "images/ct")], False, "gc", ["images/ct/u.mha"]),
    "interface only": (tree("images/ct/u.mha"), [LEGACY_KEY], False, "gc", ["images/ct/u.mha"]),
    "socket and interface": (tree("images/ct/u.mha", "images/old/v.mha"), [
        socket("ct", "images/ct") | {"interface": {"slug": "old", "relative_path": "images/old"}}], False, "gc", [
        "images/ct/u.mha"]),
    "no relative path": (tree("images/ct/u.mha"), [socket("ct")], False, "gc", ["images/ct/u.mha"]),
    "generic": (tree("images/u.mha"), [socket("generic-medical-image", "images")], False, "gc-generic", [
        "images/u.mha"]),
    "generic with a slash": (tree("images/u.mha"), [socket("generic-medical-image", "images/")], False, "gc-generic", [
        "images/u.mha"]),
    "generic of old releases": (tree("u.mha"), [socket("generic-medical-image", "")], False, "gc-generic", ["u.mha"]),
    "other sockets beside it": (tree("age.json", "images/ct/u.mha"), [VALUE, socket("ct", "images/ct")], False, "gc", [
        "images/ct/u.mha"]),
    "files of no known type": (tree("images/ct/u.mha", "images/ct/notes.txt", "images/ct/x.h5"), [
        socket("ct", "images/ct")], False, "gc", ["images/ct/u.mha"]),
    "hidden files": (tree("images/ct/u.mha", "images/ct/.u.mha", ".cache/v.mha"), [
        socket("ct", "images/ct")], False, "gc", ["images/ct/u.mha"]),
    "spaces and other scripts": (tree("images/ct/Schädel CT 頭.mha"), [socket("ct", "images/ct")], False, "gc", [
        "images/ct/Schädel CT 頭.mha"]),
    "one socket folder, no inputs.json": (tree("images/ct/u.mha"), None, False, "gc", ["images/ct/u.mha"]),
    "no folder of its own, no inputs.json": (tree("images/u.mha"), None, False, "legacy", ["images/u.mha"]),
    "two images in one folder, no inputs.json": (tree("images/ct/u.mha", "images/ct/v.mha"), None, False, "legacy", [
        "images/ct/u.mha", "images/ct/v.mha"]),
    "two folders, no inputs.json": (tree("images/ct/u.mha", "images/mr/v.mha"), None, False, "legacy", [
        "images/ct/u.mha", "images/mr/v.mha"]),
    "a socket folder and a loose image": (tree("images/ct/u.mha", "v.nii.gz"), None, False, "legacy", [
        "images/ct/u.mha", "v.nii.gz"]),
    "a plain folder": (tree("a.nii.gz", "b/c.mhd", "b/c.raw", "d.nrrd", "e.json", ".f.mha"), None, False, "legacy", [
        "a.nii.gz", "b/c.mhd", "d.nrrd"]),
    "predict is mounted": (tree("b.nii.gz", "a.nii.gz", "c.mha", "d/e.nii.gz"), None, True, "instance", [
        "a.nii.gz", "b.nii.gz"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_mode(name: str) -> None:
    files, inputs, predict, mode, scans = ROWS[name]
    work = plan_run(files, inputs, predict)
    assert (work.mode, [str(scan) for scan in work.scans]) == (mode, scans)


CT = socket("ct", "images/ct")
REFUSED: dict[str, tuple[list[PurePosixPath], Any, bool, str]] = {
    "nothing": (tree(), None, False, "holds no scans"),
    "files that are called DICOM and are not": (tree("a/1.dcm"), None, False, "1.dcm are not read"),
    "DICOM in the socket": (tree("images/ct/1.dcm"), [CT], False, "1.dcm are not read"),
    "two images in a socket": (tree("images/ct/u.mha", "images/ct/v.mha"), [CT], False, "one image, but holds 2"),
    "none in the socket": (tree("images/other/u.mha"), [CT], False, "one image, but holds 0"),
    "TIFF in the socket": (tree("images/ct/u.tif"), [CT], False, "u.tif are not read"),
    "two sockets": (
        tree("images/ct/u.mha", "images/mr/v.mha"),
        [CT, socket("mr", "images/mr")],
        False,
        "several image",
    ),
    "one socket twice": (tree("images/ct/u.mha"), [CT, CT], False, "twice"),
    "no image socket": (tree("images/ct/u.mha"), [VALUE], False, "no image socket"),
    "an empty list": (tree("images/ct/u.mha"), [], False, "no image socket"),
    "not a list": (tree("images/ct/u.mha"), {"a": 1}, False, "list of sockets"),
    "no slug": (tree("images/ct/u.mha"), [{"socket": {}}], False, "neither a socket"),
    "a path that leaves the folder": (tree("u.mha"), [socket("ct", "../..")], False, "leaves the folder"),
    "an absolute path": (tree("u.mha"), [socket("ct", "/etc")], False, "leaves the folder"),
    "predict and inputs.json": (tree("images/ct/u.mha"), [CT], True, "--mode"),
    "predict without scans": (tree("a.mha"), None, True, "looks for"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_is_refused(name: str) -> None:
    files, inputs, predict, said = REFUSED[name]
    with pytest.raises(HemsegError, match=said.replace(".", r"\.")):
        plan_run(files, inputs, predict)


def test_dicom_without_sockets_is_for_mode_legacy() -> None:
    files = tree("README", "a/1", "a/2", "b.mha")
    slices = tree("a/1", "a/2")
    assert plan_run(files, dicom=slices) == RunPlan("legacy", tuple(tree("b.mha")), tuple(slices))
    assert plan_run(slices, dicom=slices) == RunPlan("legacy", (), tuple(slices))
    assert plan_run(slices, dicom=slices, mode="gc") == RunPlan("gc", (), tuple(slices))
    beside = tree("images/ct/u.mha", "images/ct/notes.dcm")
    assert plan_run(beside, dicom=beside[1:]).mode == "legacy"  # more than the one image that mode gc wants
    assert plan_run(beside, dicom=beside[1:], mode="gc") == RunPlan("gc", tuple(beside[:1]))
    assert plan_run(beside, [CT], dicom=beside[1:]) == RunPlan("gc", tuple(beside[:1]))
    with pytest.raises(HemsegError, match="holds 0"):
        plan_run(tree("a/1", "b/2"), dicom=tree("a/1", "b/2"), mode="gc")


def kit(slug: str, path: str, name: str = "a", **kind: bool) -> dict[str, Any]:
    """A socket as the kit of July 2026 writes it."""
    described = {"slug": slug, "relative_path": path, "is_image_kind": True, "is_dicom_image_kind": False} | KIT | kind
    return {"socket": described, "file": None, "image": {"name": name}, "value": None}


def json_socket(**more: Any) -> dict[str, Any]:
    described = {"slug": "age", "relative_path": "age.json", "is_image_kind": False, "is_dicom_image_kind": False}
    return {"socket": described | KIT | more, "file": None, "image": None, "value": 70}


DICOM_SETS = {
    "serializer": {"socket": {"slug": "ct", "kind": "DICOM Image Set", "super_kind": "Image", "relative_path": "PATH"}},
    "kit": kit("ct", "PATH", is_dicom_image_kind=True),
    "an image's socket": socket("ct", "PATH"),
}


@pytest.mark.parametrize("form", DICOM_SETS)
@pytest.mark.parametrize(("path", "mode"), [("images/ct", "gc"), ("images", "gc-generic"), ("", "gc-generic")])
def test_the_dicom_files_of_a_socket_are_one_case(form: str, path: str, mode: str) -> None:
    item = {"image": {"name": "a"}, **DICOM_SETS[form]}
    item["socket"] = item["socket"] | {"relative_path": path}
    slices = [PurePosixPath(path, f"1.2.{n}.dcm") for n in range(3)]
    others = tree("inputs.json", "age.json", "elsewhere/1.2.9.dcm")
    for inputs in ([item], [json_socket(), item], [item, VALUE]):
        assert plan_run(slices + others, inputs, dicom=[*slices, others[-1]]) == RunPlan(mode, (), tuple(slices))


def test_sockets_of_the_kit() -> None:
    files = tree("age.json", "images/ct/u.mha")
    for inputs in ([kit("ct", "images/ct")], [json_socket(), kit("ct", "images/ct")]):
        assert plan_run(files, inputs) == RunPlan("gc", tuple(tree("images/ct/u.mha")))
    misleading = json_socket() | {"image": {"name": "not an image, whatever this says"}}
    assert plan_run(files, [misleading, kit("ct", "images/ct")]).mode == "gc"


def test_a_dicom_set_without_dicom() -> None:
    item = DICOM_SETS["kit"] | {"socket": DICOM_SETS["kit"]["socket"] | {"relative_path": "images/ct"}}
    with pytest.raises(
        HemsegError, match=r"should hold the DICOM files of one scan, but holds 0\. Files such as 1\.dcm"
    ):
        plan_run(tree("images/ct/1.dcm"), [item])
    assert plan_run(tree("images/ct/u.mha"), [item]).scans == tuple(tree("images/ct/u.mha"))


def test_a_list_of_slugs_chooses_and_restricts() -> None:
    files = tree("images/ct/u.mha", "images/mr/v.mha")
    both = [CT, socket("mr", "images/mr")]
    assert plan_run(files, both, sockets=Sockets(input_slugs=("x", "ct"))).scans == tuple(tree("images/ct/u.mha"))
    with pytest.raises(HemsegError, match=r"no image socket of x; it names ct, mr"):
        plan_run(files, both, sockets=Sockets(input_slugs=("x",)))


def test_a_mode_that_is_named_overrides() -> None:
    files = tree("images/ct/u.mha", "v.nii.gz")
    assert plan_run(files, [CT], mode="legacy").scans == tuple(sorted(files))
    assert plan_run(files, [CT], predict=True, mode="gc").mode == "gc"
    assert plan_run(files, [CT], mode="gc-generic").mode == "gc-generic"
    assert plan_run(files, mode="instance").scans == tuple(tree("v.nii.gz"))
    assert plan_run(tree("v.nii.gz"), mode="gc").scans == tuple(tree("v.nii.gz"))
    with pytest.raises(HemsegError, match="holds 2"):
        plan_run(files, mode="gc")
    with pytest.raises(HemsegError, match="not known"):
        plan_run(files, mode="batch")


def test_sockets_from_a_file_and_the_environment(tmp_path: Path) -> None:
    assert load_sockets({}).mask_path == "images/hemorrhage-segmentation"
    path = tmp_path / "sockets.yaml"
    path.write_text("input_slugs: [ct-image]\noutput_slug: blood\nreport_path: report.json\n")
    assert load_sockets({}, tmp_path) == load_sockets({"HEMSEG_SOCKETS": str(path)})
    assert load_sockets({}, tmp_path) == Sockets(("ct-image",), "blood", "", "report.json")
    changed = load_sockets({"HEMSEG_INPUT_SLUGS": "a, b", "HEMSEG_OUTPUT_PATH": "images/x"}, tmp_path)
    assert changed == Sockets(("a", "b"), "blood", "images/x", "report.json")
    assert changed.mask_path == "images/x"
    assert load_sockets({"HEMSEG_HEAT_MAP_PATH": "images/heat"}).heat_map_path == "images/heat"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("output: x", "no others"),
        ("input_slugs: ct", "list of names"),
        ("output_slug: 3", "text"),
        ("{", "cannot be read"),
        ("output_path: ../x", "leaves"),
        ("report_path: a.txt", "json"),
        ("heat_map_path: /x", "leaves"),
        ("heat_map_path: images/hemorrhage-segmentation/heat", "one image in each"),
        ("heat_map_path: images", "one image in each"),
        (
            "report_path: images/hemorrhage-segmentation/output.mha/x.json",
            r"report_path '.*': lies below the mask, and images/.*/output\.mha is a file; give another path",
        ),
        ("report_path: a.json\noutput_path: ./a.json", r"report_path 'a\.json': is a file, and the mask lies below it"),
        ("report_path: a.json/b.json\nheat_map_path: a.json/b.json", "heat_map_path 'a.json/b.json' lies below it"),
        ("report_path: a/output.mha/b.json\nheat_map_path: a", "report_path .* lies below heat_map_path 'a'"),
        ("[" * 5000, "cannot be read"),
    ],
)
def test_wrong_sockets_get_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "sockets.yaml").write_text(text)
    with pytest.raises(HemsegError, match=said):
        load_sockets({}, tmp_path)


def test_a_missing_sockets_file_is_an_error_only_when_it_was_named(tmp_path: Path) -> None:
    assert load_sockets({}, tmp_path) == Sockets()
    with pytest.raises(HemsegError, match="cannot be read"):
        load_sockets({"HEMSEG_SOCKETS": str(tmp_path / "gone.yaml")})


def test_broken_inputs_json(tmp_path: Path) -> None:
    assert read_inputs(tmp_path) is None
    for text, said in (("[", "Expecting"), ("[" * 100_000, "recursion"), ('"' + "a" * (1 << 20), "more than 1 MiB")):
        (tmp_path / "inputs.json").write_text(text)
        with pytest.raises(HemsegError, match=rf"inputs\.json: cannot be read as JSON \(.*{said}"):
            read_inputs(tmp_path)
    (tmp_path / "inputs.json").write_bytes(b"\xff")
    with pytest.raises(HemsegError, match="cannot be read as JSON"):
        read_inputs(tmp_path)
    (tmp_path / "inputs.json").unlink()
    os.mkfifo(tmp_path / "inputs.json")
    with pytest.raises(HemsegError, match="not a file"):
        read_inputs(tmp_path)
