"""Two scans of one patient: change, registration, hours, masks that are given, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import dice, hemseg_here
from helpers.series import write_series
from scipy.spatial.transform import Rotation

from hemseg.compare import comparison
from hemseg.compare.acquisition import date_time
from hemseg.compare.change import Band, Change, LesionPair, match_lesions, numbered_lesions
from hemseg.compare.comparison import Options, Scan, compare, prepare_scan
from hemseg.compare.pairs import Pair, read_pairs, refuse_conflicts, run_pair
from hemseg.compare.poses import POSES, frame, halfway
from hemseg.compare.registration import Registration, register
from hemseg.compare.retest_limits import MEASURED_WITH, RetestLimits, read_limits
from hemseg.compare.tables import COLUMNS
from hemseg.errors import HemsegError
from hemseg.io.files import exclusive_access
from hemseg.io.writers import to_itk
from hemseg.manifest import Manifest
from hemseg.measure import read_given_mask
from hemseg.model import Model, load
from hemseg.volume import Volume
from training.data.head_space import IDENTITY, Grid
from training.data.phantom import make_phantom, write_image

STRAIGHT = Grid((25, 84, 84), (2.6, 2.6, 6.0))
DEGREES, LEFT_MM, LOWER_MM = (7.0, -4.0, 11.0), 6.0, 3.0  # off by half a slice
CENTRE = np.array([26.0, 4.0, 16.0])  # of a hemorrhage, in the head (x, y, z; mm)


def measured_with(manifest: Manifest) -> RetestLimits:
    """The limits below as if these weights had been measured."""
    return replace(LIMITS, **{name: getattr(manifest, name) for name in MEASURED_WITH})


LIMITS = RetestLimits("light", "", 0.5, 0.0, 0.6, 0.1, 0.0, 20, 15, 3.0, 0.5, -7.0, 8.0, 0.0, -0.6, 0.7)


@dataclass(frozen=True, eq=False)
class Placed:
    """A head in a scan; ``here`` takes points of the head (n, 3; mm) to points of the scan."""

    volume: Volume
    here: Callable[[np.ndarray], np.ndarray]

    def nearest(self, ml: float, centre: np.ndarray = CENTRE) -> np.ndarray:
        """A round hemorrhage of so many mL, to a voxel; bool (z, y, x)."""
        index = np.stack(np.meshgrid(*map(np.arange, self.volume.hu.shape), indexing="ij")[::-1], axis=-1)
        far = np.linalg.norm(index * self.volume.spacing + self.volume.origin - self.here(centre[None])[0], axis=-1)
        mask = np.zeros(far.size, bool)
        mask[np.argsort(far, axis=None)[: round(ml / self.volume.voxel_ml)]] = True
        return mask.reshape(far.shape)


def placed(degrees: tuple[float, float, float], left_mm: float, lower_mm: float, seed: int = 3) -> Placed:
    """The head of a seed, turned and shifted in the scanner."""
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    grid = replace(STRAIGHT, direction=tuple(turn.ravel()), left_mm=left_mm, lower_mm=lower_mm)
    start, origin = np.array(STRAIGHT.origin), np.array(grid.origin)
    phantom = make_phantom(seed, (), grid)
    return Placed(
        replace(phantom.volume, direction=IDENTITY, origin=STRAIGHT.origin), lambda head: start + (head - origin) @ turn
    )


@pytest.fixture(scope="module")
def light_model(light: Path) -> Model:
    return load(light, "cpu")


@pytest.fixture(scope="module")
def heads() -> tuple[Placed, Placed]:
    return placed((0.0, 0.0, 0.0), 0.0, 0.0), placed(DEGREES, LEFT_MM, LOWER_MM)


@pytest.fixture(scope="module")
def scans(heads: tuple[Placed, Placed], light_model: Model) -> list[Scan]:
    return [prepare_scan(head.volume, light_model) for head in heads]


@pytest.fixture(scope="module")
def registration(scans: list[Scan]) -> Registration:
    return register(*((scan.volume, scan.working) for scan in scans))


@pytest.mark.parametrize(
    ("before", "after", "expansion", "verdict"),
    [
        (30, 36, True, "expansion"),  # 6 mL
        (30, 35.99, False, "growth below the thresholds of expansion"),
        (10, 13.31, True, "expansion"),  # 33.1 %
        (10, 13.3, False, "growth below the thresholds of expansion"),
        (0, 6, True, "new hemorrhage, expansion"),
        (0, 2, False, "new hemorrhage"),
        (5, 0, False, "hemorrhage gone"),
        (9, 7, False, "decrease"),
        (0, 0, False, "no hemorrhage in either scan"),
    ],
)
def test_both_sides_of_the_thresholds(before: float, after: float, expansion: bool, verdict: str) -> None:
    change = Change(before, after)
    assert (change.expansion, change.verdict, change.measurable) == (expansion, verdict, None)
    assert not Change(before, after, least_ml=50, least_percent=900).expansion


def test_a_change_within_the_limits_is_none() -> None:
    within = Change(1.0, 1.4, band=Band(-0.5, 0.5))  # 40 %
    assert (within.verdict, within.measurable, within.expansion) == ("no measurable change", False, False)
    assert within.reaches_thresholds
    beyond = replace(within, followup_ml=1.6)
    assert (beyond.verdict, beyond.measurable, beyond.expansion) == ("expansion", True, True)
    assert LIMITS.band(1.0, 2.0) == Band(-0.6, 0.7)
    assert LIMITS.band(20.0, 20.0) == Band(-1.4, 1.6)
    assert LIMITS.band(4.0, 4.0) == Band(-0.6, 0.7)  # never narrower than those of small ones


def test_the_limits_that_come_with_hemseg_hold() -> None:
    limits = read_limits()
    if limits is None:
        pytest.skip("none came: python -m training retest writes them")
    assert limits.pairs >= limits.pairs_above > 2
    assert limits.low_ml < 0 < limits.high_ml
    assert limits.low_percent < limits.mean_percent < limits.high_percent
    assert len(limits.sha256) == 64


def test_lesions_match_merge_come_and_go() -> None:
    before, after = np.zeros((2, 12, 30, 30), np.int16)
    before[2:5, 2:6, 2:6], before[2:5, 2:6, 9:12], before[8:10, 20:25, 20:25] = 1, 3, 2
    after[2:5, 2:6, 2:12], after[2:4, 20:24, 2:5] = 1, 2
    numbered = [numbered_lesions(mask, 0.05) for mask in (before, after)]
    assert [len(volumes) for _, volumes in numbered] == [3, 2]
    assert numbered[0][1] == pytest.approx([2.5, 2.4, 1.8])
    (a, a_ml), (b, b_ml) = numbered
    assert match_lesions(a, b, (1.0, 1.0, 1.0), (a_ml, b_ml)) == [
        LesionPair((1, 2), (0,), pytest.approx(4.2), pytest.approx(6.0)),
        LesionPair((), (1,), 0, pytest.approx(1.2)),
        LesionPair((0,), (), pytest.approx(2.5), 0),
    ]
    assert match_lesions(a * 0, b * 0, (1.0, 1.0, 1.0), ([], [])) == []


def test_registration_recovers_a_known_turn(heads: tuple[Placed, Placed], registration: Registration) -> None:
    points = np.array([[60, 0, 0], [-60, 0, 0], [0, 75, 0], [0, -75, 0], [0, 0, 65], [0, 0, -30]], float)
    before, after = (head.here(points) for head in heads)
    found = [registration.transform.TransformPoint(point) for point in before.tolist()]
    assert np.linalg.norm(found - after, axis=1).max() < 1.5  # mm, with voxels of 2.6 x 2.6 x 6
    truth = Rotation.from_euler("xyz", DEGREES, degrees=True).magnitude()
    assert registration.degrees == pytest.approx(np.degrees(truth), abs=1.0)
    assert not registration.problem
    assert not registration.doubt


def test_what_has_nothing_in_common_is_not_aligned(heads: tuple[Placed, Placed], light_model: Model) -> None:
    whole = heads[0].volume
    upper = replace(whole, hu=whole.hu[17:], origin=(*whole.origin[:2], whole.origin[2] + 17 * 6.0))
    lower = replace(whole, hu=whole.hu[4:12])
    with pytest.raises(HemsegError, match=r"could not be aligned.*one patient\?") as refusal:
        compare(prepare_scan(upper, light_model), prepare_scan(lower, light_model), light_model)
    assert "baseline" in str(refusal.value)


def test_problems_and_doubts_of_an_alignment() -> None:
    good = Registration(sitk.Euler3DTransform(), overlap=0.97, likeness=0.9, common=0.95)
    assert (good.problem, good.doubt, good.degrees) == ("", "", 0)
    assert "in common" in replace(good, common=0.2).problem
    assert "overlap by 0.60" in replace(good, overlap=0.6).problem
    assert "look different" in replace(good, likeness=0.2).problem
    doubtful = replace(good, likeness=0.5)
    assert not doubtful.problem
    assert "uncertain" in doubtful.doubt


@pytest.mark.parametrize(
    ("before", "after", "expansion"), [(20, 25.5, False), (20, 26.5, True), (9, 11.8, False), (9, 12.2, True)]
)
def test_given_masks_that_grew_by_known_ml(
    heads: tuple[Placed, Placed],
    scans: list[Scan],
    registration: Registration,
    light_model: Model,
    monkeypatch: pytest.MonkeyPatch,
    before: float,
    after: float,
    expansion: bool,
) -> None:
    monkeypatch.setattr(comparison, "register", lambda *pair: registration)
    masks = [heads[0].nearest(before), heads[1].nearest(after) | heads[1].nearest(1.0, CENTRE * [-1, 1, 1])]
    found = compare(*(replace(s, given=mask) for s, mask in zip(scans, masks)), light_model)
    voxel_ml = heads[0].volume.voxel_ml
    assert found.change.baseline_ml == pytest.approx(before, abs=voxel_ml)
    assert found.change.followup_ml == pytest.approx(after + 1.0, abs=2 * voxel_ml)
    grown = replace(found.change, followup_ml=found.change.followup_ml - 1.0)
    assert grown.expansion == expansion
    assert [pair.kind for pair in found.lesions] == ["matched", "new"]
    assert found.limits is None
    assert "not known" in found.warnings[-1]
    for one, scan in zip((found.baseline, found.followup), scans):
        assert one.mask.shape == scan.volume.hu.shape  # on its own grid


def test_halfway_is_as_far_from_both(scans: list[Scan], registration: Registration, light_model: Model) -> None:
    pair = [(scan.volume, scan.working) for scan in scans]
    space = halfway(registration.transform, *pair)
    point = (10.0, -20.0, 30.0)
    there = space.to_followup.TransformPoint(point)
    assert registration.transform.TransformPoint(space.to_baseline.TransformPoint(point)) == pytest.approx(there)
    turns = [
        Rotation.from_matrix(np.reshape(t.GetMatrix(), (3, 3))).magnitude()
        for t in (space.to_baseline, space.to_followup)
    ]
    assert turns[0] == pytest.approx(turns[1])
    assert np.degrees(sum(turns)) == pytest.approx(registration.degrees)
    for pose in POSES:  # every frame holds both heads
        grid = frame(space, pose, light_model.manifest.preprocessing)
        for scan, way in zip(scans, (space.to_baseline, space.to_followup)):
            ones = to_itk(np.ones(scan.volume.hu.shape, np.uint8), scan.volume)
            shown = sitk.GetArrayViewFromImage(sitk.Resample(ones, grid, way, sitk.sitkNearestNeighbor, 0))
            assert shown.sum() * np.prod(grid.GetSpacing()) / 1000 > 2000  # mL


def test_limits_hold_for_the_weights_that_they_were_measured_with(
    scans: list[Scan], registration: Registration, light_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "register", lambda *pair: registration)
    options = Options(poses=POSES[:1])
    for limits, known in ((None, False), (LIMITS, False), (measured_with(light_model.manifest), True)):
        monkeypatch.setattr(comparison, "read_limits", lambda limits=limits: limits)
        found = compare(*scans, light_model, options)
        assert (found.change.band is not None) == known
        assert any("not measured with these weights" in text for text in found.warnings) != known


@pytest.fixture(scope="module")
def studies(heads: tuple[Placed, Placed], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two DICOM studies of a patient; the hemorrhage grows from 30 to 50 mL within 26 hours."""
    folder = tmp_path_factory.mktemp("studies")
    for head, name, ml, date, time in (
        (heads[0], "before", 30, "20260105", "224500"),
        (heads[1], "after", 50, "20260107", "004500.5"),
    ):
        hu = np.where(head.nearest(ml), 92.0, head.volume.hu.clip(None, 3000)).astype(np.float32)
        hu[(hu > 58) & (hu < 300) & ~head.nearest(ml)] = 40.0  # calcifications, sinuses
        at = {"AcquisitionDate": date, "AcquisitionTime": time, "StudyDate": "20260101", "StudyTime": "120000"}
        write_series(folder / name, replace(head.volume, hu=hu), PatientBirthDate="19500101", **at)
    return folder / "before", folder / "after"


def test_the_command_on_dicom_studies(
    heads: tuple[Placed, Placed],
    studies: tuple[Path, Path],
    light: Path,
    light_model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "read_limits", lambda: measured_with(light_model.manifest))
    out = tmp_path / "out"
    said = hemseg_here("compare", *studies, out, "--weights", light)
    found = json.loads((out / "compare.json").read_text())
    assert found["hours"] == 26.0
    assert found["expansion"]
    assert "expansion" in said.stdout
    assert found["measurable"]
    mean = (found["baseline"]["volume_ml"] + found["followup"]["volume_ml"]) / 2
    assert found["no_change"]["low_ml"] == pytest.approx(-0.07 * mean, abs=1e-3)
    assert f"no change would give {-0.07 * mean:+.1f} to {0.08 * mean:+.1f} mL" in said.stdout
    # the light network has pixels of 4 mm and slices of 9 mm
    assert found["baseline"]["volume_ml"] == pytest.approx(30, rel=0.25)
    assert found["followup"]["volume_ml"] == pytest.approx(50, rel=0.25)
    assert found["lesions"][0]["kind"] == "matched"
    for name, head, grown in zip(("baseline", "followup"), heads, (30, 50)):
        mask = sitk.ReadImage(str(out / f"{name}_mask.mha"))
        assert dice(sitk.GetArrayFromImage(mask), head.nearest(grown)) > 0.75  # on its own grid
        ml = sitk.GetArrayViewFromImage(mask).sum() * np.prod(mask.GetSpacing()) / 1000
        assert ml == pytest.approx(found[name]["volume_ml"], abs=0.01)
    written = "".join(path.read_text() for path in out.glob("compare.*")) + said.stdout + said.stderr
    for secret in ("19500101", "20260105", "2026-01-05", "Phantom"):
        assert secret not in written
    table = (out / "compare.csv").read_text().splitlines()
    assert table[0].split(",") == list(COLUMNS)
    assert table[1].startswith("before-after,done,")
    hemseg_here(
        "compare", *studies, out, "--weights", light, "--baseline-series", "99", check=1
    )  # ours: may be replaced
    (out / "compare.html").write_text("mine")
    refused = hemseg_here("compare", *studies, out, "--weights", light, check=1)
    assert "compare.html (hemseg did not write it" in refused.stderr


def test_two_patients_are_refused_without_naming_them(
    heads: tuple[Placed, Placed], studies: tuple[Path, Path], light: Path, tmp_path: Path
) -> None:
    write_series(tmp_path / "other", heads[1].volume, PatientID="9876")
    said = hemseg_here("compare", studies[0], tmp_path / "other", "--weights", light, check=1)
    assert "two different patients" in said.stderr
    assert "--any-patient" in said.stderr
    assert "9876" not in said.stderr


def test_a_table_of_pairs_goes_on_after_a_failure(
    heads: tuple[Placed, Placed],
    light: Path,
    tmp_path: Path,
    registration: Registration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "register", lambda *pair: registration)
    for head, name, ml in zip(heads, "ab", (10, 14)):
        write_image(head.volume.hu, head.volume, tmp_path / f"{name}.nii.gz")
        write_image(head.nearest(ml), head.volume, tmp_path / f"{name}-mask.nii.gz", np.uint8)
    table = tmp_path / "pairs.csv"
    table.write_text(
        "\ufeffcase;baseline;followup;baseline_mask;followup_mask;hours\n"
        "one;a.nii.gz;missing.nii.gz;;;\n"
        "two;a.nii.gz;b.nii.gz;a-mask.nii.gz;b-mask.nii.gz;-3,5\n"
    )
    said = hemseg_here("compare", "--pairs", table, tmp_path / "out", "--weights", light, check=1)
    assert "missing.nii.gz" in said.stderr
    assert "are they exchanged?" in said.stderr
    found = json.loads((tmp_path / "out" / "two" / "compare.json").read_text())
    assert found["hours"] == -3.5
    assert found["expansion"]
    assert not list((tmp_path / "out" / "two").glob("*mask*"))  # given ones are not written again
    rows = (tmp_path / "out" / "compare.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["one", "failed"], ["two", "done"]]
    inside = Pair("x", tmp_path / "compare.json", tmp_path / "b.nii.gz")
    with pytest.raises(HemsegError, match="is a scan or a mask that is read"):
        refuse_conflicts([(inside, tmp_path)], [], overwrite=True)
    assert hemseg_here("compare", tmp_path / "a.nii.gz", check=2).returncode == 2
    assert hemseg_here("compare", "--pairs", table, tmp_path / "x", "--hours", "3", check=2).returncode == 2
    for option, value in (("--hours", "nan"), ("--hours", "inf"), ("--least-ml", "inf")):
        said = hemseg_here("compare", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", option, value, check=2).stderr
        assert "finite" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("baseline\na\n", "columns followup"),
        ("baseline,followup,age\na,b,3\n", "unknown columns"),
        ("baseline,followup\na,\n", "row 2 names no"),
        ("baseline,followup\na,b\na,b\n", "rows 2 and 3 have the same case"),
        ("baseline,followup,hours\na,b,soon\n", "row 2 has hours"),
        ("baseline,followup,case\na,b,../x\n", "not a folder's name"),
        ("baseline,followup\na,b,c\n", "more cells"),
    ],
)
def test_tables_that_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(HemsegError, match=said):
        read_pairs(tmp_path / "pairs.csv")


def test_a_mask_that_does_not_fit_is_refused_as_by_measure(
    heads: tuple[Placed, Placed], light_model: Model, tmp_path: Path
) -> None:
    """In the same sentence, and before anything is computed; the insides are tested in test_measure.py."""
    volume = heads[0].volume
    scan, mask = tmp_path / "scan.mha", tmp_path / "mask.mha"
    write_image(volume.hu, volume, scan)
    write_image(heads[0].nearest(5), replace(volume, origin=(*volume.origin[:2], volume.origin[2] + 5)), mask, np.uint8)
    sentences = []
    with pytest.raises(HemsegError) as refused:
        run_pair(Pair("case", scan, scan, baseline_mask=mask), light_model, Options())
    sentences.append(str(refused.value))
    with pytest.raises(HemsegError, match="up to 5 mm away") as refused:
        read_given_mask(mask, volume)
    assert sentences == [str(refused.value)]


def test_a_folder_that_another_process_writes_to_is_refused(bleed_scan: Path, light: Path, tmp_path: Path) -> None:
    with exclusive_access(tmp_path / "out"):
        done = hemseg_here("compare", bleed_scan, bleed_scan, tmp_path / "out", "--weights", light, check=1)
        assert list((tmp_path / "out").iterdir()) == []
    assert "another hemseg is writing there" in done.stderr


def test_times_of_dicom() -> None:
    first, second = date_time("20260105" + "2245"), date_time("20260107004500.5")
    assert first is not None
    assert second is not None
    assert (second - first).total_seconds() == 26 * 3600 + 0.5
    zoned, utc = date_time("20260105120000+0100"), date_time("20260105110000", "+0000")
    assert zoned == utc
    for text in ("", "20260105", "20261301120000", "20260105250000", "today"):
        assert date_time(text) is None


def test_options_are_those_of_the_literature() -> None:
    assert (Options().least_ml, Options().least_percent) == (6.0, 33.0)
