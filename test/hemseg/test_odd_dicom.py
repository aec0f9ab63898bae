"""DICOM as scanners, archives and anonymisers really write it: the right volume, or a true sentence."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from helpers.series import write_series
from numpy.testing import assert_allclose
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from scipy import ndimage

from hemseg.dicom.choice import is_sharp
from hemseg.dicom.header import FIELDS
from hemseg.dicom.source import Source
from hemseg.dicom.stack import _running_median, _step
from hemseg.dicom_out.seg import write_segmentation
from hemseg.errors import HemsegError
from hemseg.folder.scans import find_scans
from hemseg.scan import read
from hemseg.volume import Volume

Edit = Callable[[pydicom.Dataset, int], object]


def stack(seed: int, slices: int = 8) -> Volume:
    """Noise that differs from other noise."""
    hu = np.random.default_rng(seed).integers(-1000, 1000, (slices, 12, 10)).astype(np.float32)
    return Volume(hu, (0.9, 0.9, 5.0))


NEEDED = {
    "Rows": "8 slices without Rows",
    "Columns": "8 slices without Columns",
    "PixelSpacing": "8 slices without PixelSpacing",
    "ImageOrientationPatient": "8 slices without ImageOrientationPatient",
    "ImagePositionPatient": "8 slices without ImagePositionPatient",
    "RescaleSlope": "no rescale slope and intercept",
    "RescaleIntercept": "no rescale slope and intercept",
    "PixelRepresentation": "cannot be decoded",
    "PhotometricInterpretation": "cannot be decoded",
}
SCAN, OTHER = stack(1), stack(2)


def series(folder: Path, volume: Volume = SCAN, edit: Edit | None = None, name: str = "{}", **header: object) -> None:
    """Write a series, change each slice (from 0), and give the files names."""
    scratch = folder / "scratch"
    for number, path in enumerate(write_series(scratch, volume, **header)):  # type: ignore[arg-type]
        dataset = pydicom.dcmread(path)
        if edit:
            edit(dataset, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.save_as(folder / name.format(f"{number:03}"))
    shutil.rmtree(scratch)


def renumbered(first: int, **more: object) -> Edit:
    """InstanceNumbers from another one on, and other values."""

    def edit(dataset: pydicom.Dataset, number: int) -> None:
        dataset.InstanceNumber = first + number
        for name, value in more.items():
            setattr(dataset, name, value)

    return edit


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("NumberOfFrames", "PixelPaddingRangeLimit")])
def test_a_field_that_is_empty_or_absent(tmp_path: Path, name: str) -> None:
    """Type 2 attributes may be empty, and anonymisers empty others: the scan, or a sentence that names what lacks."""
    whole = SCAN
    for case in ("empty", "absent"):

        def edit(dataset: pydicom.Dataset, number: int, case: str = case) -> None:
            vr = {"PixelPaddingValue": "US"}.get(name) or pydicom.datadict.dictionary_VR(name)
            dataset.add_new(name, vr, None)
            if case == "absent":
                delattr(dataset, name)

        series(tmp_path / case, whole, edit)
        if name in NEEDED:
            with pytest.raises(HemsegError, match=NEEDED[name]):
                read(tmp_path / case)
        else:
            assert np.array_equal(read(tmp_path / case).hu, whole.hu)


# what a CT file holds beside what hemseg looks at, by the standard's table of the CT image
OTHERS = {
    "SpecificCharacterSet": "ISO_IR 100", "InstanceCreationDate": "20200101", "StudyDate": "20200101",
    "SeriesDate": "20200101", "AcquisitionDate": "20200101", "ContentDate": "20200101", "StudyTime": "120000",
    "SeriesTime": "120000", "AcquisitionTime": "120000", "ContentTime": "120000", "AccessionNumber": "A1",
    "Manufacturer": "Maker", "InstitutionName": "Hospital", "ReferringPhysicianName": "Doe^A", "StationName": "CT1",
    "ManufacturerModelName": "Model", "PatientName": "Doe^B", "PatientBirthDate": "19700101", "PatientSex": "O",
    "PatientAge": "050Y", "ScanOptions": "HELIX", "KVP": 120, "DataCollectionDiameter": 500, "DeviceSerialNumber": "1",
    "SoftwareVersions": "1", "ReconstructionDiameter": 250, "GantryDetectorTilt": 0, "TableHeight": 150,
    "RotationDirection": "CW", "ExposureTime": 1000, "XRayTubeCurrent": 300, "Exposure": 300, "FilterType": "BODY",
    "FocalSpots": 1.2, "PatientPosition": "HFS", "StudyID": "1", "Laterality": "", "FrameOfReferenceUID": "1.2.3",
    "PositionReferenceIndicator": "OM", "SliceLocation": 1, "ImageComments": "a comment", "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
    "WindowCenter": 40, "WindowWidth": 80, "PixelAspectRatio": [1, 1], "SmallestImagePixelValue": 0,
    "PerformedProcedureStepID": "1", "PixelData": b"",
}  # fmt: skip
# pixels are decoded by these, and DICOM SEG refers to these
PIXELS = {"SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelData"}
REFERRED = {"SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"}


@pytest.mark.parametrize("case", ["empty", "absent"])
def test_every_attribute_of_a_ct_header_empty_or_absent(tmp_path: Path, case: str) -> None:
    """One by one: the scan and a DICOM SEG of it, or a sentence where nothing could be right without it."""
    few = stack(4, 5)
    files = write_series(tmp_path, few)
    whole = [pydicom.dcmread(path) for path in files]
    for dataset in whole:
        for name, value in OTHERS.items():
            if name not in dataset:
                setattr(dataset, name, value)
    names = sorted({element.keyword for dataset in whole for element in dataset})
    assert len(names) > 70
    assert set(OTHERS) | REFERRED <= set(names)
    unread, unreferred = dict[str, str](), dict[str, str]()
    for name in names:
        for dataset, path in zip(whole, files, strict=True):
            changed = pydicom.Dataset({element.tag: element for element in dataset if element.keyword != name})
            if case == "empty":
                changed.add(pydicom.DataElement(dataset[name].tag, dataset[name].VR, None))
            changed.file_meta = dataset.file_meta
            changed.save_as(path, implicit_vr=False, little_endian=True)
        try:
            volume = read(tmp_path)
        except HemsegError as error:
            unread[name] = str(error)
            continue
        assert np.array_equal(volume.hu, few.hu), name
        result = SimpleNamespace(volume=volume, mask=(volume.hu > 500).astype(np.uint8))
        try:
            write_segmentation(result, tmp_path.with_suffix(".dcm"))  # type: ignore[arg-type]
        except HemsegError as error:
            unreferred[name] = str(error)
    assert {n: said for n, said in unread.items() if n not in PIXELS | set(NEEDED)} == {}
    assert {n: said for n, said in unreferred.items() if n not in REFERRED} == {}
    assert all("do not allow a DICOM segmentation" in said for said in unreferred.values())
    assert not any("\n" in said for said in (*unread.values(), *unreferred.values()))


@pytest.mark.parametrize(
    ("name", "vr", "value"),
    [
        ("SliceThickness", "DS", "five"),
        ("InstanceNumber", "IS", "1.5"),
        ("AcquisitionNumber", "IS", "x"),
        ("PatientBirthDate", "DA", "1981/03/02"),
        ("StudyTime", "TM", "12:00:00"),
        ("SeriesDescription", "LO", "x" * 200),
    ],
)
def test_ill_formed_values_that_are_not_needed(tmp_path: Path, name: str, vr: str, value: str) -> None:
    def edit(dataset: pydicom.Dataset, number: int) -> None:
        if name in dataset:
            del dataset[name]
        content = value.encode() + b" " * (len(value) % 2)
        dataset._dict[pydicom.tag.Tag(name)] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(name), vr, len(content), content, 0, False, True
        )

    series(tmp_path, edit=edit)
    volume = read(tmp_path)
    assert np.array_equal(volume.hu, SCAN.hu)
    assert all(value not in said for said in volume.warnings)
    if name in FIELDS and name != "SeriesDescription":
        assert f"{name} is ill-formed in 8 slices and counts as missing." in volume.warnings


def test_what_is_emptied_in_a_segmentation_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In whichever slice it is; each header is read once."""

    def edit(dataset: pydicom.Dataset, number: int) -> None:
        if number == 3:
            dataset.PatientBirthDate = "1981/03/02"
        if number == 5:
            dataset.StudyTime = "12:00:00"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        series(tmp_path / "in", edit=edit)
    volume = read(tmp_path / "in")
    reads: list[str] = []
    real = Source.read

    def counted(source: Source, pixels: bool = True, fields: Sequence[str] = ()) -> pydicom.Dataset:
        reads.append(source.path.name)
        return real(source, pixels, fields)

    monkeypatch.setattr(Source, "read", counted)
    mask = np.zeros(volume.hu.shape, np.uint8)
    mask[2, 4:8, 3:7] = 1
    with caplog.at_level("WARNING", logger="hemseg"):
        write_segmentation(SimpleNamespace(volume=volume, mask=mask), tmp_path / "seg.dcm")  # type: ignore[arg-type]
    said = "PatientBirthDate, StudyTime: ill-formed in the scan, left empty here"
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path}/seg.dcm: {said}"]
    assert sorted(reads) == [f"{number:03}" for number in range(8)]
    assert not pydicom.dcmread(tmp_path / "seg.dcm").PatientBirthDate


def test_an_error_never_quotes_a_header(tmp_path: Path) -> None:
    series(tmp_path)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        at = content.index(b"DS", content.index(b"\x20\x00\x32\x00")) + 4
        path.write_bytes(content[:at] + b"Doe" + content[at + 3 :])
    with pytest.raises(HemsegError, match=r"damaged .ImagePositionPatient is ill-formed") as error:
        read(tmp_path)
    assert "Doe" not in str(error.value)


def test_cosines_and_spacings_that_differ_in_the_last_digits(tmp_path: Path) -> None:
    def cosines(dataset: pydicom.Dataset, number: int) -> None:
        e = 0.005 + (1e-6 if number % 2 else -1e-6)
        dataset.ImageOrientationPatient = [
            round(1 - e * e / 2, 7),
            round(e, 7),
            0,
            round(-e, 7),
            round(1 - e * e / 2, 7),
            0,
        ]

    def spacing(dataset: pydicom.Dataset, number: int) -> None:
        dataset.PixelSpacing = [0.97655, 0.97655] if number % 2 else [0.976549, 0.976549]

    for name, edit in (("cosines", cosines), ("spacing", spacing)):
        series(tmp_path / name, edit=edit)
        volume = read(tmp_path / name)
        assert np.array_equal(volume.hu, SCAN.hu)
        assert volume.spacing[2] == pytest.approx(5, abs=1e-3)
        assert volume.warnings == ()


@pytest.mark.parametrize(
    ("shift", "mine", "others", "differ"),
    [
        (0.0, {"ConvolutionKernel": "STANDARD"}, {"ConvolutionKernel": "BONE"}, "convolution kernel"),
        (2.5, {"ConvolutionKernel": "STANDARD"}, {"ConvolutionKernel": "BONE"}, "convolution kernel"),
        (0.0, {}, {"ContrastBolusAgent": "Iohexol"}, "contrast agent"),
        (0.0, {}, {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}, "image type"),
        (0.0, {"SeriesDescription": "Head"}, {"SeriesDescription": "CTA"}, "description"),
        (0.01, {"ConvolutionKernel": "STANDARD"}, {"ConvolutionKernel": "BONE"}, "convolution kernel"),
    ],
)
def test_two_reconstructions_in_one_series(tmp_path: Path, shift: float, mine: dict, others: dict, differ: str) -> None:
    """The other one has the lower InstanceNumbers; the usual rule takes the one to segment, and says so."""
    uids = {"SeriesInstanceUID": generate_uid(), "study": generate_uid()}

    def shifted(dataset: pydicom.Dataset, number: int) -> None:
        renumbered(1, **others)(dataset, number)
        dataset.ImagePositionPatient = [0, 0, 5.0 * number + shift]

    series(tmp_path, OTHER, shifted, "b{}", **uids)
    series(tmp_path, SCAN, renumbered(101, **mine), "a{}", **uids)
    volume = read(tmp_path)
    assert np.array_equal(volume.hu, SCAN.hu)
    assert volume.warnings == (
        f"The series holds 2 stacks in one place that differ ({differ}); one of 8 slices was taken.",
    )
    ((_, _, files),) = find_scans(tmp_path)
    assert len(files) == 16  # what stays out is reported when the case is done, too


def test_what_differs_within_one_stack_does_not_part_it(tmp_path: Path) -> None:
    """Base and vault of two acquisitions; odd slices before even ones; an acquisition for each slice."""
    numbers: dict[str, Callable[[int], int]] = {
        "halves": lambda n: n // 4,
        "turns": lambda n: n % 2,
        "each": lambda n: n,
    }
    for name, number in numbers.items():

        def edit(dataset: pydicom.Dataset, n: int, number: Callable[[int], int] = number) -> None:
            dataset.AcquisitionNumber = number(n)

        series(tmp_path / name, edit=edit)
        volume = read(tmp_path / name)
        assert np.array_equal(volume.hu, SCAN.hu)
        assert volume.warnings == ()


def test_patients_are_never_mixed(tmp_path: Path) -> None:
    """One series, one study, a zip archive: a folder makes a case for each, everything else is refused."""
    uids = {"SeriesInstanceUID": generate_uid(), "study": generate_uid()}
    secret = {"PatientID": "Secret"}
    for case in ("one series", "one study"):
        series(tmp_path / case / "p1", SCAN, **uids)
        series(tmp_path / case / "p2", OTHER, renumbered(1, **secret), **uids)
        found = find_scans(tmp_path / case)
        assert [(name.name, len(files)) for name, _, files in found] == [("p1", 8), ("p2", 8)]
        with pytest.raises(HemsegError, match=r"holds CT of 2 patients: p1 \(8 slices\), p2 \(8 slices\)") as error:
            read(tmp_path / case)
        assert "Secret" not in str(error.value)
        uids.pop("SeriesInstanceUID", None)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for path in (tmp_path / "one study").rglob("[0-9]*"):
            archive.write(path, str(path.relative_to(tmp_path / "one study")))
    with pytest.raises(HemsegError, match="holds CT of 2 patients: p1"):
        read(tmp_path / "two.zip")


def test_names_keep_patients_apart_where_ids_are_missing(tmp_path: Path) -> None:
    uids = {"SeriesInstanceUID": generate_uid(), "study": generate_uid()}
    for folder, name, volume in (("p1", "Secret^A", SCAN), ("p2", "Secret^B", OTHER)):
        series(tmp_path / folder, volume, renumbered(1, PatientID="", PatientName=name), **uids)
    assert [case.name for case, _, _ in find_scans(tmp_path)] == ["p1", "p2"]
    with pytest.raises(HemsegError, match="holds CT of 2 patients: p1") as error:
        read(tmp_path)
    assert "secret" not in str(error.value).lower()
    series(tmp_path / "spelled", SCAN, lambda ds, n: setattr(ds, "PatientName", "DOE^A" if n % 2 else "Doe^A"))
    assert np.array_equal(read(tmp_path / "spelled").hu, SCAN.hu)


def test_pixels_in_the_upper_bits(tmp_path: Path) -> None:
    """HighBit 15 of 12 bits: the values would be 16 times as large. A wrong HighBit alone does no harm."""

    def shifted(dataset: pydicom.Dataset, number: int) -> None:
        stored = np.frombuffer(dataset.PixelData, np.uint16)
        dataset.PixelData, dataset.BitsStored, dataset.HighBit = (stored << 4).tobytes(), 12, 15

    def labelled(dataset: pydicom.Dataset, number: int) -> None:
        dataset.BitsStored, dataset.HighBit = 12, 15

    series(tmp_path / "shifted", SCAN, shifted)
    with pytest.raises(HemsegError, match="stored in the upper bits, 16 times too large"):
        read(tmp_path / "shifted")
    series(tmp_path / "labelled", SCAN, labelled)
    assert np.array_equal(read(tmp_path / "labelled").hu, SCAN.hu)


def test_two_scans_with_the_uids_of_one(tmp_path: Path) -> None:
    """As an anonymiser makes them, in a folder each: two cases. A copy of a scan is none."""
    uids = {"SeriesInstanceUID": generate_uid(), "study": generate_uid()}
    series(tmp_path / "two" / "first", SCAN, **uids)
    series(tmp_path / "two" / "second", OTHER, **uids)
    assert [case.name for case, _, _ in find_scans(tmp_path / "two")] == ["first", "second"]
    for name, volume in (("first", SCAN), ("second", OTHER)):
        assert np.array_equal(read(tmp_path / "two" / name).hu, volume.hu)
    series(tmp_path / "copy" / "first")
    shutil.copytree(tmp_path / "copy" / "first", tmp_path / "copy" / "again")
    ((_, _, files),) = find_scans(tmp_path / "copy")
    assert len(files) == 16
    assert read(tmp_path / "copy").warnings == ("8 slices lie where another one lies and were left out.",)


def test_what_stays_out_is_counted(tmp_path: Path) -> None:
    def half_matrix(dataset: pydicom.Dataset, number: int) -> None:
        if number == 7:
            dataset.Rows, dataset.PixelData = 6, dataset.PixelData[:120]

    def another_angle(dataset: pydicom.Dataset, number: int) -> None:
        if number > 5:
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 0.978, -0.208]

    def no_position(dataset: pydicom.Dataset, number: int) -> None:
        if number > 4:
            del dataset.ImagePositionPatient

    for name, edit, left, said in (
        ("matrix", half_matrix, 7, "1 slice of another matrix"),
        ("angle", another_angle, 6, "2 slices at another angle"),
        ("position", no_position, 5, "3 slices without ImagePositionPatient"),
    ):
        series(tmp_path / name, edit=edit)
        volume = read(tmp_path / name)
        assert np.array_equal(volume.hu, SCAN.hu[:left])
        assert f"Of the same series stayed out: {said}." in volume.warnings
        ((_, _, files),) = find_scans(tmp_path / name)
        assert len(files) == 8
    series(tmp_path / "nowhere", edit=lambda dataset, _: setattr(dataset, "ImagePositionPatient", [0, 0, 0]))
    with pytest.raises(HemsegError, match="8 slices at one and the same position"):
        read(tmp_path / "nowhere")
    series(tmp_path / "no study", edit=lambda dataset, _: delattr(dataset, "StudyInstanceUID"))
    assert np.array_equal(read(tmp_path / "no study").hu, SCAN.hu)


def test_colors_are_no_scan(tmp_path: Path) -> None:
    """Maps of perfusion have the class, the modality and the positions of a CT."""

    def colored(dataset: pydicom.Dataset, number: int) -> None:
        dataset.PhotometricInterpretation = "PALETTE COLOR"

    series(tmp_path / "map", OTHER, colored, study="1.2", SeriesNumber=1)
    with pytest.raises(HemsegError, match="holds no CT series that can be read: 8 slices in color"):
        read(tmp_path / "map")
    series(tmp_path / "plain", SCAN, study="1.2")
    volume = read(tmp_path)
    assert np.array_equal(volume.hu, SCAN.hu)
    assert volume.warnings == ("Of other series of the study stayed out: 8 slices in color.",)


def test_slices_far_apart(tmp_path: Path) -> None:
    def moved(mm: float) -> Edit:
        return lambda dataset, number: number == 7 and setattr(dataset, "ImagePositionPatient", [0, 0, mm])

    series(tmp_path / "far", edit=moved(1e30))
    with pytest.raises(HemsegError, match="its slices lie over more than 3 m"):
        read(tmp_path / "far")
    series(tmp_path / "last", edit=moved(50))
    assert "Slices at 30.0 and 50.0 mm have others missing between them." in read(tmp_path / "last").warnings


def test_slices_that_lean_along_their_rows(tmp_path: Path) -> None:
    def leaning(dataset: pydicom.Dataset, number: int) -> None:
        dataset.ImagePositionPatient = [0.9 * number, 0, 5 * number]

    series(tmp_path, edit=leaning)
    volume = read(tmp_path)
    assert volume.warnings == ("The gantry was tilted by 10.2 degrees; slices were shifted back.",)
    assert volume.stack is not None
    assert np.array_equal(volume.stack.to_slices(volume.hu), SCAN.hu)


def test_a_slice_without_pixels(tmp_path: Path) -> None:
    def emptied(dataset: pydicom.Dataset, number: int) -> None:
        if number == 3:
            dataset.PixelData = b""

    series(tmp_path, edit=emptied)
    with pytest.raises(HemsegError, match=r"003: its pixels cannot be decoded \(it holds none\)"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel"])
@pytest.mark.parametrize("text", ["DOE^JOHN", "Doe's son", "12 DOE"])
def test_what_decoders_say_holds_no_value_of_a_header(tmp_path: Path, name: str, text: str) -> None:
    def edited(dataset: pydicom.Dataset, number: int) -> None:
        dataset.add_new(name, "LO", text)

    series(tmp_path, edit=edited)
    with pytest.raises(HemsegError, match="its pixels cannot be decoded") as said:
        read(tmp_path)
    assert "doe" not in str(said.value).lower()


def test_a_single_slice_whose_spacing_has_a_sign_is_as_thick_as_it_says(tmp_path: Path) -> None:
    for spacing in (-5.0, 0.0):
        series(tmp_path / str(spacing), stack(1, 1), SpacingBetweenSlices=spacing, SliceThickness=4.0)
        assert read(tmp_path / str(spacing)).spacing[2] == 4.0


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_files_without_preamble(tmp_path: Path, syntax: str) -> None:
    series(tmp_path / "in")
    for path in sorted((tmp_path / "in").iterdir())[::2]:
        dataset = pydicom.dcmread(path)
        bare = pydicom.Dataset({element.tag: element for element in dataset})
        bare.save_as(path, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    (tmp_path / "in" / "notes").write_text("not DICOM")
    (tmp_path / "in" / "broken.dcm").write_text("not DICOM either")
    volume = read(tmp_path / "in")
    assert np.array_equal(volume.hu, SCAN.hu)
    (said,) = volume.warnings
    assert "1 DICOM file could not be read" in said
    assert "broken.dcm" in said


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"ContrastBolusAgent": "Iohexol"}, "names a contrast agent"),
        ({"ContrastBolusAgent": "NONE"}, ""),
        ({"SeriesDescription": "CTA Head 2.5"}, "names angiography"),
        ({"SeriesDescription": "Head C+ 5.0"}, "names angiography"),
        ({"SeriesDescription": "Schädel mit KM"}, "names angiography"),
        ({"SeriesDescription": "Head perfusion"}, "names angiography"),
        ({"SeriesDescription": "Head without contrast"}, ""),
        ({"SeriesDescription": "Schaedel nativ"}, ""),
        ({"SeriesDescription": "NON-CONTRAST HEAD"}, ""),
        ({"SeriesDescription": "HEAD W/O CONTRAST"}, ""),
        ({"ConvolutionKernel": "H70h"}, "sharp kernel"),
        ({"BodyPartExamined": "CHEST"}, "BodyPartExamined is not the head"),
        ({"BodyPartExamined": "HEAD"}, ""),
        ({"RescaleType": "US"}, "RescaleType is not HU"),
        ({"BurnedInAnnotation": "YES"}, "burned into"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "projections"),
        ({"SliceThickness": 2.5}, "5.0 mm apart and 2.5 mm thick"),
        ({"RescaleSlope": 0}, "rescale slope is 0"),
    ],
)
def test_what_headers_say_against_a_scan(tmp_path: Path, header: dict, said: str) -> None:
    series(tmp_path, edit=renumbered(1, SpecificCharacterSet="ISO_IR 192", **header))
    try:
        found = read(tmp_path).warnings
    except HemsegError as error:
        found = (str(error),)
    assert len(found) == bool(said), found
    assert all(said in one for one in found)


def test_gaps_in_instance_numbers(tmp_path: Path) -> None:
    series(tmp_path, edit=lambda dataset, n: setattr(dataset, "InstanceNumber", n + 1 + 2 * (n > 3)))
    assert read(tmp_path).warnings == ("Its InstanceNumbers have gaps: 2 slices may be missing.",)


def test_a_native_series_beside_an_angiography_that_only_its_description_names(tmp_path: Path) -> None:
    study = generate_uid()
    series(tmp_path / "a", SCAN, renumbered(1, SeriesDescription="Head native 5.0"), study=study)
    series(tmp_path / "b", OTHER, renumbered(1, SeriesDescription="CTA 1.0"), study=study, SliceThickness=1)
    assert np.array_equal(read(tmp_path).hu, SCAN.hu)


def test_a_sharp_kernel_names_the_soft_one_beside(tmp_path: Path) -> None:
    study = generate_uid()
    series(tmp_path / "a", SCAN, renumbered(1, ConvolutionKernel="H70h"), study=study, SeriesNumber=3)
    derived = renumbered(1, ImageType=["DERIVED", "SECONDARY", "AXIAL"])
    series(tmp_path / "b", OTHER, derived, study=study, SeriesNumber=4)
    (said,) = read(tmp_path).warnings
    assert "--series 4" in said
    assert np.array_equal(read(tmp_path, "4").hu, OTHER.hu)


@pytest.mark.parametrize("slices", [1, 2, 3, 4])
def test_few_slices(tmp_path: Path, slices: int) -> None:
    """Read where there is no longer series, and only then."""
    few = stack(3, slices)
    series(tmp_path / "few", few, study="1.9")
    volume = read(tmp_path / "few")
    assert np.array_equal(volume.hu, few.hu)
    assert volume.spacing[2] == 5
    series(tmp_path / "few" / "long", SCAN, study="1.9", SliceThickness=9)
    assert np.array_equal(read(tmp_path / "few").hu, SCAN.hu)


def test_one_slice_needs_its_thickness(tmp_path: Path) -> None:
    series(tmp_path, stack(3, 1), renumbered(1, SliceThickness=None))
    with pytest.raises(HemsegError, match=r"holds one slice, .*SliceThickness"):
        read(tmp_path)


def test_a_series_for_each_slice_is_one_sentence(tmp_path: Path) -> None:
    def edit(dataset: pydicom.Dataset, number: int) -> None:
        dataset.SeriesInstanceUID = f"1.2.{number + 1}"

    series(tmp_path, edit=edit)
    with pytest.raises(HemsegError, match="holds 8 axial CT series of one slice each") as error:
        read(tmp_path)
    assert len(str(error.value)) < 400


def test_positions_that_nearly_coincide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.01 mm apart they are copies; 0.2 mm apart the step is the one between pairs; memory counts the even volume."""
    depth = np.repeat(5.0 * np.arange(8), 2)
    depth[1::2] += 0.01
    twice = Volume(np.repeat(SCAN.hu, 2, axis=0), SCAN.spacing)
    write_series(tmp_path / "copies", twice, depth=depth)
    volume = read(tmp_path / "copies")
    assert np.array_equal(volume.hu, SCAN.hu)
    assert "8 slices lie where another one lies and were left out." in volume.warnings
    depth[1::2] += 0.19
    assert _step(np.diff(depth)) == pytest.approx(4.8)
    assert _step(np.array([4.0, 4, 7, 7, 7])) == 7
    counted: list[int] = []
    monkeypatch.setattr("hemseg.dicom.stack.check_memory", lambda path, voxels, size: counted.append(voxels))
    depth = 5.0 * np.arange(8)
    depth[-1] += 500
    write_series(tmp_path / "far", SCAN, depth=depth)
    volume = read(tmp_path / "far")
    assert counted == [volume.hu.size]
    assert len(volume.hu) == 108


def test_headers_in_legacy_encodings(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Latin-1 without a word, an unknown character set, Japanese: no noise, no traceback."""
    for number, (charset, content) in enumerate(
        [(None, "Sch\xe4del".encode("latin-1")), ("NO SUCH", b"Head"), ("ISO 2022 IR 87", "頭".encode("iso2022_jp"))]
    ):

        def edit(dataset: pydicom.Dataset, n: int, charset: str | None = charset, content: bytes = content) -> None:
            content += b" " * (len(content) % 2)
            for name, value in (("SeriesDescription", content), ("SpecificCharacterSet", (charset or "").encode())):
                tag = pydicom.tag.Tag(name)
                value += b" " * (len(value) % 2)
                dataset._dict[tag] = pydicom.dataelem.RawDataElement(tag, "LO", len(value), value, 0, False, True)

        series(tmp_path / str(number), edit=edit)
        assert np.array_equal(read(tmp_path / str(number)).hu, SCAN.hu)


def test_zip_archives_of_a_mac(tmp_path: Path) -> None:
    """Beside each slice lies a hidden file of its name, which is no slice."""
    series(tmp_path / "study", name="{}.dcm")
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in sorted((tmp_path / "study").iterdir()):
            archive.write(path, f"../study/./{path.name}")
            archive.writestr(f"__MACOSX/study/._{path.name}", b"\0\5\x16\7\0\2\0\0Mac OS X")
    volume = read(tmp_path / "study.zip")
    assert np.array_equal(volume.hu, SCAN.hu)
    assert volume.warnings == ()


def test_zip_archives_with_a_password(tmp_path: Path) -> None:
    path = tmp_path / "study.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.dcm", b"x" * 200)
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag of the member, and below that of the archive's directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(HemsegError, match="protected by a password; unpack it"):
        read(path)


def test_kernel_names_of_several_words() -> None:
    assert is_sharp("['Hr68', '3']")


def test_a_segmentation_of_headers_that_bend_the_standard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Dates with slashes, a sex in words: empty in DICOM SEG, the attributes named, the values nowhere."""
    bent = {
        "PatientBirthDate": ("DA", "1981/03/02"), "StudyDate": ("DA", "2020-01-01"), "StudyTime": ("TM", "12:00:00"),
        "PatientSex": ("CS", "weiblich"),
    }  # fmt: skip

    def edit(dataset: pydicom.Dataset, number: int) -> None:
        for name, (vr, value) in bent.items():
            tag = pydicom.tag.Tag(name)
            content = value.encode() + b" " * (len(value) % 2)
            dataset._dict[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(content), content, 0, False, True)
        dataset.AccessionNumber = "A1"

    series(tmp_path / "in", edit=edit)
    volume = read(tmp_path / "in")
    result = SimpleNamespace(volume=volume, mask=(volume.hu > 500).astype(np.uint8))
    path = write_segmentation(result, tmp_path / "mask.dcm")  # type: ignore[arg-type]
    written = pydicom.dcmread(path)
    assert all(not written[name].value for name in bent)
    assert written.AccessionNumber == "A1"
    assert written.PatientID == "1"
    (record,) = caplog.records
    assert all(name in record.getMessage() for name in bent)
    assert not any(value in record.getMessage() for _, value in bent.values())


def test_slices_without_patient_are_of_the_patient_of_their_study(tmp_path: Path) -> None:
    def edit(dataset: pydicom.Dataset, number: int) -> None:
        dataset.PatientID = "" if number % 2 else "P"

    series(tmp_path, edit=edit)
    assert np.array_equal(read(tmp_path).hu, SCAN.hu)


def test_of_two_gaps_the_lower_is_the_usual_one() -> None:
    assert _running_median(np.array([5.0, 10.0])).tolist() == [5.0, 5.0]  # SciPy's own changes from run to run


@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_the_running_median_is_that_of_scipy(n: int) -> None:
    gaps = np.random.default_rng(n).random(n)
    assert_allclose(_running_median(gaps), ndimage.median_filter(gaps, size=5, mode="mirror"))
