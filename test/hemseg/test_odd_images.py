"""NIfTI, MetaImage and NRRD whose headers lack, double or bend something: the right geometry, or a true sentence."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from hemseg.errors import HemsegError, OutputError
from hemseg.io import writers
from hemseg.io.formats import mask_name
from hemseg.io.masks import write_mask
from hemseg.scan import read

HU = np.random.default_rng(0).integers(-1000, 1000, (6, 8, 7)).astype("<i2")
AFFINE = np.diag([-1.0, -1.0, 5.0, 1.0])
UNKNOWN = "the side of a lesion is unknown"


def nifti(path: Path, sform: np.ndarray | None = AFFINE, qform: np.ndarray | None = None, **fields: float) -> Path:
    """Write one; fields of the header go in as they are."""
    image = nibabel.Nifti1Image(HU.transpose(2, 1, 0), AFFINE)
    image.set_qform(qform, 0 if qform is None else 1)
    image.set_sform(sform, 0 if sform is None else 2)
    image.header["pixdim"][1:4] = 1, 1, 5
    nibabel.save(image, path)
    if fields:
        content = bytearray(path.read_bytes())
        places = {"pixdim3": 88, "vox_offset": 108, "scl_slope": 112, "scl_inter": 116}
        for name, value in fields.items():
            struct.pack_into("<f", content, places[name], value)
        path.write_bytes(content)
    return path


def metaimage(path: Path, *lines: str, voxels: bytes | None = None, without: str = "") -> Path:
    """Write one, with lines in place of those of the same key."""
    header = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0", "ElementSpacing": "1 1 5",
        "DimSize": "7 8 6", "ElementType": "MET_SHORT",
    }  # fmt: skip
    header |= dict(line.split(" = ") for line in lines)
    header.pop(without, None)
    text = "".join(f"{key} = {value}\n" for key, value in header.items()) + "ElementDataFile = LOCAL\n"
    path.write_bytes(text.encode() + (HU.tobytes() if voxels is None else voxels))
    return path


def nrrd(path: Path, *lines: str) -> Path:
    """Write one, in Latin-1, with these lines for its geometry."""
    head = [
        "NRRD0004",
        "type: short",
        "dimension: 3",
        "sizes: 7 8 6",
        "endian: little",
        "encoding: raw",
        *lines,
        "",
        "",
    ]
    path.write_bytes("\n".join(head).encode("latin-1") + HU.tobytes())
    return path


def turned(
    angle: float = 0.0, skew: float = 0.0, tilt: float = 0.0, mirror: bool = False, scale: float = 1.0
) -> np.ndarray:
    """The affine of the scan, changed; angles in degrees."""
    affine = AFFINE.copy()
    affine[0, 1], affine[1, 2] = skew, 5 * np.tan(np.radians(tilt))
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3] * scale
    if mirror:
        affine[0] *= -1
    return affine


@pytest.mark.parametrize("skew", [2e-4, 4e-3])
def test_axes_that_are_nearly_at_right_angles(tmp_path: Path, skew: float) -> None:
    scan = nifti(tmp_path / "a.nii.gz", turned(skew=skew))
    volume = read(scan)
    assert np.array_equal(volume.hu, HU)
    assert volume.spacing == pytest.approx((1, 1, 5), abs=1e-4)
    assert volume.warnings == ()
    mask = write_mask(HU > 500, volume, tmp_path / "out" / "a.nii.gz")
    assert np.array_equal(nibabel.load(mask).affine, nibabel.load(scan).affine)


def test_a_tilted_gantry_in_the_sform(tmp_path: Path) -> None:
    with pytest.raises(HemsegError, match="probably a tilted gantry; give the DICOM series"):
        read(nifti(tmp_path / "a.nii", turned(tilt=15)))
    volume = read(nifti(tmp_path / "b.nii", turned(tilt=15), qform=AFFINE))
    assert np.allclose(volume.cosines, np.eye(3), atol=1e-6)  # the qform's
    (said,) = volume.warnings
    assert "sform and the qform disagree" in said
    assert write_mask(HU > 500, volume, tmp_path / "out.nii").is_file()
    with pytest.raises(HemsegError, match=r"b\.mha: its axes are not at right angles: probably a tilted gantry"):
        read(metaimage(tmp_path / "b.mha", "TransformMatrix = 1 0 0 0 1 0 0 0.26 0.97"))


@pytest.mark.parametrize(
    ("sform", "qform", "oriented", "said"),
    [
        (None, None, False, f"qform_code and sform_code are 0): {UNKNOWN}"),
        (turned(mirror=True), AFFINE, False, f"patient differently; the sform was taken; {UNKNOWN}."),
        (turned(angle=10), AFFINE, True, "The qform and the sform turn the patient differently; the sform was taken."),
        (AFFINE, AFFINE, True, ""),
        (None, AFFINE, True, ""),
    ],
)  # fmt: skip
def test_what_a_nifti_says_of_sides(
    tmp_path: Path, sform: np.ndarray | None, qform: np.ndarray | None, oriented: bool, said: str
) -> None:
    volume = read(nifti(tmp_path / "a.nii", sform, qform))
    assert volume.oriented == oriented
    assert len(volume.warnings) == bool(said)
    assert all(said in one for one in volume.warnings)


def test_no_free_text_of_a_nifti_is_kept(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", AFFINE)
    image = nibabel.load(path)
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = b"DOE^JOHN"
    nibabel.save(image, path)
    assert path.read_bytes().count(b"DOE^JOHN") == 4
    mask = write_mask(HU > 500, read(path), tmp_path / "mask.nii")
    assert b"DOE" not in mask.read_bytes()


def test_what_metaimage_and_nrrd_say_of_sides(tmp_path: Path) -> None:
    plain = nrrd(tmp_path / "a.nrrd", "spacings: 1 1 5")
    unnamed = nrrd(tmp_path / "b.nrrd", "space dimension: 3", "space directions: (1,0,0) (0,1,0) (0,0,5)")
    bare = metaimage(tmp_path / "c.mha", without="TransformMatrix")
    twice = metaimage(tmp_path / "d.mha", "AnatomicalOrientation = LAI")
    for path in (plain, unnamed, bare, twice):
        volume = read(path)
        assert np.array_equal(volume.hu, HU)
        assert not volume.oriented
        assert UNKNOWN in volume.warnings[0]
    said = metaimage(tmp_path / "e.mha", "AnatomicalOrientation = RAI")
    named = nrrd(tmp_path / "f.nrrd", "space: left-posterior-superior", "space directions: (1,0,0) (0,1,0) (0,0,5)")
    for path in (said, named):
        assert read(path).oriented
        assert read(path).warnings == ()
    for direction in ((1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, -1, 0, 0, 0, 1), (0, 1, 0, 0, 0, 1, 1, 0, 0)):
        image = sitk.GetImageFromArray(HU)
        image.SetDirection(direction)
        sitk.WriteImage(image, str(tmp_path / "itk.mha"))
        assert read(tmp_path / "itk.mha").warnings == ()


@pytest.mark.parametrize(
    "lines",
    [
        ("space: left-posterior-superior", "space directions: (1,0,0) (0,1,0) (0,0,5)", "content: Schädel"),
        ("Space: left-posterior-superior", "Space Directions: (1,0,0) (0,1,0) (0,0,5.10)", "SPACE ORIGIN: (1,2,.3)"),
        ("space: left-posterior-superior", "spacedirections: (1,0,0) (0,1,0) (0,0,5)", "spaceorigin: (1,2,3)"),
        ("spacings: 1 1 5", "axis mins: 3 4 5.5", "axis maxs: 10 12 35.5", "# Schädel", "kinds: space space space"),
        ("spacings: 1 1 5", "axismins: 3 4 5.5", "axismaxs: 10 12 35.5", "centers: node node node"),
        ("spacings: 1 1 5", "axis mins: 3 4 5.5", "centerings: cell cell node", "spacings:=no field, and no spacing"),
    ],
)
@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_every_name_of_a_field_that_itk_knows_gives_an_nrrd_its_mask(
    tmp_path: Path, lines: tuple[str, ...], ends: bytes
) -> None:
    scan = nrrd(tmp_path / "a.nrrd", *lines)
    scan.write_bytes(scan.read_bytes()[: -HU.nbytes].replace(b"\n", ends) + HU.tobytes())
    volume = read(scan)
    mask = write_mask(HU > 500, volume, tmp_path / "out" / "a.nrrd")
    stored, made = sitk.ReadImage(str(scan)), sitk.ReadImage(str(mask))
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(made, what)() == getattr(stored, what)() == getattr(volume, what[3:].lower())
    assert np.array_equal(sitk.GetArrayFromImage(made), HU > 500)
    written = mask.read_bytes().partition(b"\n\n")[0].split(b"\n")
    kept = [line.encode("latin-1") for line in lines if line[0] != "#" and ":=" not in line and "content" not in line]
    assert [line for line in written if line in kept] == kept
    assert len(written) == len(kept) + 6  # beside the magic, the mark, type, dimension, sizes and encoding


def test_what_is_wrong_with_a_written_file_is_said_of_the_name_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = read(nrrd(tmp_path / "a.nrrd", "spacings: 1 1 5"))
    monkeypatch.setattr(writers, "_NRRD_GEOMETRY", ("dimension", "sizes"))
    with pytest.raises(OutputError) as error:
        write_mask(HU > 500, volume, tmp_path / "out" / "a.nrrd")
    assert str(error.value).startswith(f"{tmp_path}/out/a.nrrd: the mask could not be written (read back, its header ")
    assert ".hemseg-" not in str(error.value)


def test_a_lesion_has_no_side_where_the_scan_has_none(tmp_path: Path, light: Path) -> None:
    """Blood on the right of the file's matrix, with and without a word of what is right."""
    import hemseg

    source = Path(__file__).parents[1] / "cases" / "phantom-lobar.mha"
    content = source.read_bytes()
    sides = set()
    for name, taken in (("said.mha", b""), ("unsaid.mha", b"TransformMatrix")):
        lines = content.split(b"\n")
        kept = [line for line in lines if not (taken and line.split(b" =")[0] in (taken, b"AnatomicalOrientation"))]
        (tmp_path / name).write_bytes(b"\n".join(kept))
        result = hemseg.segment(tmp_path / name, weights=light)
        assert result.lesions
        sides |= {(name, lesion.side == "unknown") for lesion in result.lesions}
    assert sides == {("said.mha", False), ("unsaid.mha", True)}


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_nifti_without_spacing(tmp_path: Path, value: float) -> None:
    with pytest.raises(HemsegError, match="does not give the spacing of its voxels"):
        read(nifti(tmp_path / "a.nii", pixdim3=value))


def test_a_nifti_with_two_spacings(tmp_path: Path) -> None:
    with pytest.raises(HemsegError, match=r"voxels of 1 x 1 x 5 mm by its pixdim and of 2 x 2 x 10 mm by its sform"):
        read(nifti(tmp_path / "a.nii", turned(scale=2)))


def test_metaimage_and_nrrd_without_spacing(tmp_path: Path) -> None:
    for path in (
        metaimage(tmp_path / "a.mha", without="ElementSpacing"),
        metaimage(tmp_path / "b.mha", "ElementSpacing = 1 1 0"),
        metaimage(tmp_path / "c.mha", "ElementSpacing = 1,1,5"),
        nrrd(tmp_path / "d.nrrd"),
        nrrd(tmp_path / "e.nrrd", "spacings: 1 1 nan"),
        nrrd(tmp_path / "f.nrrd", "axis mins: 0 0 0", "axis maxs: 6 7 25"),
        nrrd(tmp_path / "g.nrrd", "space: left-posterior-superior"),
    ):
        with pytest.raises(HemsegError, match=f"{path.name}: its header does not give the spacing of its voxels"):
            read(path)
    assert read(metaimage(tmp_path / "h.mha", "ElementSize = 1 1 5", without="ElementSpacing")).spacing == (1, 1, 5)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("ElementToIntensityFunctionSlope = 2",), "slope or an offset"),
        (("ElementToIntensityFunctionOffset = -1024",), "slope or an offset"),
        (("HeaderSize = 10",), "HeaderSize"),
        (("BinaryData = False",), "voxels are text"),
    ],
)
def test_what_a_metaimage_says_and_itk_ignores(tmp_path: Path, lines: tuple[str, ...], said: str) -> None:
    with pytest.raises(HemsegError, match=said):
        read(metaimage(tmp_path / "a.mha", *lines))


@pytest.mark.parametrize("msb", ["False", "True"])
def test_compressed_metaimages_are_what_was_inflated_or_refused(
    tmp_path: Path, msb: str, capfd: pytest.CaptureFixture[str]
) -> None:
    packed = zlib.compress((HU.byteswap() if msb == "True" else HU).tobytes())
    lines = ("CompressedData = True", f"BinaryDataByteOrderMSB = {msb}")
    good = metaimage(tmp_path / "a.mha", *lines, f"CompressedDataSize = {len(packed)}", voxels=packed)
    assert np.array_equal(read(good).hu, HU)
    for size in ([], [f"CompressedDataSize = {len(packed) + 10}"], ["CompressedDataSize = x"]):
        with pytest.raises(HemsegError, match=r"lacks CompressedDataSize|cut short"):
            read(metaimage(tmp_path / "b.mha", *lines, *size, voxels=packed))
    assert capfd.readouterr().err == ""  # ITK would write "Uncompress failed"


@pytest.mark.parametrize("yes", ["T", "1", "true", "Tru"])
def test_every_word_that_itk_takes_for_true(tmp_path: Path, yes: str) -> None:
    """Were `T` no compression, voxels of whatever lies in the memory would be read."""
    packed = zlib.compress(HU.byteswap().tobytes())
    lines = (f"BinaryData = {yes}", f"CompressedData = {yes}", f"BinaryDataByteOrderMSB = {yes}")
    good = metaimage(tmp_path / "a.mha", *lines, f"CompressedDataSize = {len(packed)}", voxels=packed)
    assert np.array_equal(read(good).hu, HU)
    with pytest.raises(HemsegError, match="lacks CompressedDataSize"):
        read(metaimage(tmp_path / "b.mha", *lines, voxels=packed))


@pytest.mark.parametrize("number", ["-1", "0", "1e38", "4294967296", ""])
def test_dimensions_of_a_compressed_metaimage_over_which_itk_crashes(tmp_path: Path, number: str) -> None:
    packed = zlib.compress(HU.tobytes())
    lines = ("CompressedData = True", f"CompressedDataSize = {len(packed)}", f"NDims = {number}")
    with pytest.raises(HemsegError, match=r"a\.mha: cannot be read .*NDims"):
        read(metaimage(tmp_path / "a.mha", *lines, voxels=packed))


def test_what_itk_inflates_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zlib.compress(HU.tobytes())
    lines = ("CompressedData = True", f"CompressedDataSize = {len(packed)}")
    scan = metaimage(tmp_path / "a.mha", *lines, voxels=packed)
    execute = sitk.ImageFileReader.Execute
    monkeypatch.setattr(sitk.ImageFileReader, "Execute", lambda reader: execute(reader) + 1)
    with pytest.raises(HemsegError, match="two ways to inflate its voxels give two results"):
        read(scan)


def test_slope_zero(tmp_path: Path) -> None:
    assert np.array_equal(read(nifti(tmp_path / "a.nii", scl_slope=0.0, scl_inter=0.0)).hu, HU)
    with pytest.raises(HemsegError, match="slope of 0 and an intercept"):
        read(nifti(tmp_path / "b.nii", scl_slope=0.0, scl_inter=-1024.0))


@pytest.mark.parametrize(
    ("slope", "intercept", "taken"),
    [
        (float("nan"), float("nan"), True),  # as nibabel writes voxels that are not scaled
        (float("nan"), 0.0, True),
        (float("nan"), -1024.0, False),
        (float("inf"), -1024.0, False),
        (1.0, float("nan"), False),
    ],
)
def test_slopes_that_are_no_number(tmp_path: Path, slope: float, intercept: float, taken: bool) -> None:
    path = nifti(tmp_path / "a.nii", scl_slope=slope, scl_inter=intercept)
    if taken:
        assert np.array_equal(read(path).hu, HU)
    else:
        with pytest.raises(HemsegError, match=r"\(scl_slope, scl_inter\)"):
            read(path)


@pytest.mark.parametrize("begin", [0.0, 348.0, 351.0, -352.0, float("nan"), float("inf"), 416.0, 1e9, 1e30])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_where_the_voxels_of_a_nifti_begin(tmp_path: Path, begin: float, suffix: str) -> None:
    """ITK reads others in their place, without a word; those that lack at the end become zeros."""
    path = nifti(tmp_path / "a.nii", vox_offset=begin)
    if suffix == ".nii.gz":
        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    with pytest.raises(HemsegError, match=r"vox_offset|it holds \d+ of 672 bytes"):
        read(path)
    good = nifti(tmp_path / "b.nii", vox_offset=416.0)
    content = good.read_bytes()
    good.write_bytes(content[:352] + bytes(64) + content[352:])
    assert np.array_equal(read(good).hu, HU)


def test_units_that_are_not_mm(tmp_path: Path) -> None:
    """ITK takes them for mm: a head of 2 cm."""
    axes = ("space: left-posterior-superior", "space directions: (1,0,0) (0,1,0) (0,0,5)")
    for path in (
        metaimage(tmp_path / "a.mha", "DistanceUnits = cm"),
        nrrd(tmp_path / "b.nrrd", "spacings: 1 1 5", 'units: "cm" "cm" "cm"'),
        nrrd(tmp_path / "c.nrrd", *axes, 'space units: "m" "m" "m"'),
        nrrd(tmp_path / "f.nrrd", *axes, 'SpaceUnits: "m" "m" "m"'),
    ):
        with pytest.raises(HemsegError, match="another unit than mm"):
            read(path)
    for path in (
        metaimage(tmp_path / "d.mha", "DistanceUnits = mm"),
        nrrd(tmp_path / "e.nrrd", *axes, 'space units: "mm" "mm" "mm"'),
    ):
        assert np.array_equal(read(path).hu, HU)


def test_a_spacing_in_a_sentence_is_plain_numbers(tmp_path: Path) -> None:
    with pytest.raises(HemsegError, match=r"spacing of 1 x 1 x -5 mm is not positive"):
        read(metaimage(tmp_path / "a.mha", "ElementSpacing = 1 1 -5"))


def test_nifti_2_is_named(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(HU.transpose(2, 1, 0), AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(HemsegError, match=r"NIfTI-2, which is not read; convert it to NIfTI-1"):
        read(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("suffix", [".NII", ".NII.GZ", ".MHA", ".Mha", ".NRRD", ".MHD"])
def test_suffixes_in_capitals(tmp_path: Path, suffix: str) -> None:
    image = sitk.GetImageFromArray(HU)
    image.SetSpacing((1, 1, 5))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix.lower()}"))
    scan = (tmp_path / f"a{suffix.lower()}").rename(tmp_path / f"a{suffix}")
    volume = read(scan)
    assert np.array_equal(volume.hu, HU)
    mask = write_mask(HU > 500, volume, tmp_path / "out" / mask_name(scan))
    assert np.array_equal(read(mask).hu, HU > 500)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [mask_name(scan)]


def test_suffixes_of_nifti_in_mixed_letters(tmp_path: Path) -> None:
    with pytest.raises(HemsegError, match="capitals and small letters"):
        read(nifti(tmp_path / "a.nii").rename(tmp_path / "a.Nii"))


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """ITK would end the process. The sentence itself can be printed and written anywhere."""
    for suffix in (b".nii.gz", b".mha"):
        scan = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b_\xe9" + suffix))
        scan.write_bytes(gzip.compress(b"x"))
        with pytest.raises(HemsegError, match="its name is not valid UTF-8; rename it") as error:
            read(scan)
        assert str(error.value).encode()
    volume = read(nifti(tmp_path / "a.nii"))
    with pytest.raises(HemsegError, match="not valid UTF-8"):
        write_mask(HU > 500, volume, scan.with_suffix(".mha"))


def test_compression_against_the_name(tmp_path: Path) -> None:
    image = sitk.Image([5, 6, 7], sitk.sitkInt16)
    for suffix in (".nii", ".mha", ".nrrd"):
        path = tmp_path / f"a{suffix}"
        sitk.WriteImage(image, str(path))
        whole = path.read_bytes()
        path.write_bytes(gzip.compress(whole))
        with pytest.raises(HemsegError, match=rf"a{suffix}: is compressed with gzip, and its name says otherwise"):
            read(path)
    path = tmp_path / "b.nii.gz"
    sitk.WriteImage(image, str(tmp_path / "b.nii"))
    path.write_bytes((tmp_path / "b.nii").read_bytes())
    with pytest.raises(HemsegError, match=r"b\.nii\.gz: is not compressed, and its name says otherwise; call it \.nii"):
        read(path)


def test_a_field_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkInt16), str(path))
    whole = path.read_bytes()
    for second, good in ((b"1 1 1", True), (b"2 2 2", False)):
        path.write_bytes(whole.replace(b"DimSize", b"ElementSpacing = " + second + b"\nDimSize", 1))
        if good:
            assert read(path).spacing == (1, 1, 1)
        else:
            with pytest.raises(HemsegError, match="a field of its header is there twice, with two values"):
                read(path)


def test_an_sform_that_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkInt16), str(path))
    content = bytearray(path.read_bytes())
    content[292:296] = struct.pack("<f", float("nan"))  # the origin's x
    path.write_bytes(content)
    with pytest.raises(HemsegError, match="its header has an sform that makes no sense; fix it"):
        read(path)
