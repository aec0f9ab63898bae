"""How much two scans of a hemorrhage that did not change differ, when `hemseg compare` measures them.

    python -m training retest --data phe-sich-heads --out docs/results/retest

Each head is there twice: as it is, and turned, shifted, sampled on another grid that is off by half a slice, with fresh
noise. Phantoms are painted again on the turned grid; real heads (val, never test) are interpolated, which blurs them
more than a second scan would be. What differs, although nothing changed, is what a change has to exceed: the command
also writes the limits that `hemseg compare` reads (``hemseg/compare/retest_limits.json``).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from rich.progress import track
from scipy import ndimage
from scipy.spatial.transform import Rotation

import hemseg.compare
from hemseg.compare.comparison import compare, prepare_scan
from hemseg.compare.poses import BONE_HU
from hemseg.compare.retest_limits import FILE, MEASURED_WITH, RetestLimits
from hemseg.errors import HemsegError
from hemseg.io.images import from_itk
from hemseg.io.writers import to_itk
from hemseg.model import Model
from hemseg.scan import read
from hemseg.segmentation import segment
from hemseg.volume import Volume

from ..console import console
from ..data.datasets import Case
from ..data.head_space import IDENTITY, Grid
from ..data.phantom import KINDS, make_phantom
from .evaluate import write_table

ABOVE_ML = 3.0
TARGET_PERCENT, TARGET_ML = 8.0, 1.0  # whichever is more
MAX_DEGREES, MAX_MM = 10.0, 8.0
PHANTOM_NOISE_HU, HEAD_NOISE_HU = 4.0, 2.0  # what interpolation takes from a real head's own noise, and a little more
FIRST_GRID, SECOND_GRID = Grid((30, 200, 200), (1.1, 1.1, 5.0)), Grid((30, 230, 230), (0.95, 0.95, 5.0))
HALF_SLICE_MM = 2.5
SMALL = "small"  # a ball of 0.3 to 2.5 mL in a healthy head
NO_HEMORRHAGE = "none"  # a healthy head: what is found there in one of the scans only
KINDS_OF_HEADS = (
    "intraparenchymal", SMALL, "subdural", "intraventricular", SMALL, "epidural", NO_HEMORRHAGE, SMALL, "subarachnoid",
)  # fmt: skip
SMALL_ML, SMALL_HU = (0.3, 2.5), (62.0, 75.0)
SUBSLICES = 5
LIMITS = Path(hemseg.compare.__file__).parent / FILE


@dataclass(frozen=True, eq=False)
class ScanRescan:
    """Two scans of a head in which nothing changed."""

    name: str
    kind: str
    first: Volume
    second: Volume
    degrees: float


def rescan_phantom(number: int, seed: int = 0) -> ScanRescan:
    """A phantom, painted on a straight and on a turned grid; the numbers from 0 have each kind of hemorrhage in turn, a
    small one, and none.
    """
    rng = np.random.default_rng([seed, 11, number])
    kind = KINDS_OF_HEADS[number % len(KINDS_OF_HEADS)]
    turn = _random_rotation(rng)
    left_mm = float(rng.uniform(-MAX_MM, MAX_MM))
    turned = replace(SECOND_GRID, direction=tuple(turn.as_matrix().ravel()), left_mm=left_mm, lower_mm=HALF_SLICE_MM)
    own = np.random.default_rng([seed, 13, number])
    at = np.array([32 * own.choice([-1, 1]), own.uniform(-35, 35), own.uniform(24, 40)])
    ball = at, float(own.uniform(*SMALL_ML)), float(own.uniform(*SMALL_HU))
    volumes = []
    for grid, straight in ((FIRST_GRID, FIRST_GRID), (turned, SECOND_GRID)):
        volume = make_phantom(900 + number, (kind,) if kind in KINDS else (), grid, noise_hu=0.0).volume
        if kind == SMALL:
            volume = _add_ball(volume, *ball)
        placed = replace(volume, direction=IDENTITY, origin=straight.origin)  # the head lies turned in it
        volumes.append(_add_noise(placed, rng, PHANTOM_NOISE_HU))
    first, second = volumes
    return ScanRescan(f"phantom-{900 + number}", kind, first, second, float(np.degrees(turn.magnitude())))


def _add_ball(volume: Volume, centre: np.ndarray, ml: float, hu: float) -> Volume:
    """Add a round hemorrhage, with the partial volume of its slices.

    Args:
        centre: (x, y, z) in mm.
    """
    radius = (3000 * ml / (4 * np.pi)) ** (1 / 3)
    shape: tuple[int, ...] = volume.hu.shape
    share = np.zeros(shape, np.float32)
    steps = volume.cosines * volume.spacing
    at = np.linalg.solve(steps, centre - volume.origin)
    reach = np.ceil(radius / np.array(volume.spacing)).astype(int) + 1
    box: tuple[slice, ...] = tuple(slice(max(0, int(c) - r), int(c) + r + 2) for c, r in zip(at[::-1], reach[::-1]))
    for below in (np.arange(SUBSLICES) + 0.5) / SUBSLICES - 0.5:
        axes = [np.arange(*part.indices(n)) for part, n in zip(box, shape, strict=True)]
        z, y, x = np.meshgrid(*axes, indexing="ij")
        far = np.stack([x, y, z + below], axis=-1) @ steps.T + volume.origin - centre
        share[box] += (np.linalg.norm(far, axis=-1) <= radius) / SUBSLICES
    return replace(volume, hu=(volume.hu * (1 - share) + hu * share).astype(np.float32))


def rescan_head(case: Case, seed: int = 0) -> ScanRescan:
    """A real head, and the same turned, shifted and brought to another grid."""
    rng = np.random.default_rng([seed, 12, zlib.crc32(case.name.encode())])
    first = read(case.image)
    turn = _random_rotation(rng)
    low, high = float(first.hu.min()), float(first.hu.max())
    bone = np.float32(max(high, BONE_HU))  # a scanner averages bone before a window cuts it off
    image = to_itk(np.where(first.hu >= high - 0.5, bone, first.hu), first)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(turn.as_matrix().ravel().tolist())
    transform.SetCenter(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    slices = float(rng.choice([-0.5, 0.5]))
    transform.SetTranslation([*rng.uniform(-MAX_MM, MAX_MM, 2).tolist(), slices * first.spacing[2]])
    ratios = [float(rng.uniform(0.9, 1.1))] * 2 + [1.0]  # another field of view
    grid = sitk.Image([round(n / r) for n, r in zip(image.GetSize(), ratios)], sitk.sitkUInt8)
    grid.SetSpacing([mm * r for mm, r in zip(first.spacing, ratios)])
    grid.SetOrigin(first.origin)
    grid.SetDirection(first.direction)
    moved = sitk.Clamp(
        sitk.Resample(image, grid, transform, sitk.sitkLinear, low, sitk.sitkFloat32), lowerBound=low, upperBound=high
    )
    second = _add_noise(from_itk(moved), rng, HEAD_NOISE_HU)
    return ScanRescan(case.name, "real", first, second, float(np.degrees(turn.magnitude())))


def _random_rotation(rng: np.random.Generator) -> Rotation:
    """A rotation by up to `MAX_DEGREES` about any axis."""
    axis = rng.normal(size=3)
    return Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.radians(rng.uniform(0, MAX_DEGREES)))


def _add_noise(volume: Volume, rng: np.random.Generator, noise_hu: float) -> Volume:
    """Add noise with a scanner's grain; what is saturated in a window stays saturated."""
    hu = volume.hu
    low, high = float(hu.min()), float(hu.max())
    grain = ndimage.gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), (0, 0.8, 0.8))
    noisy = hu + grain * np.where((hu > low) & (hu < high), noise_hu / grain.std(), 0.0)
    return replace(volume, hu=np.clip(np.round(noisy), low, high).astype(np.float32))


def measure_pair(pair: ScanRescan, model: Model) -> dict[str, Any]:
    """Volumes of both scans: as `hemseg segment` finds them in each alone, and as `hemseg compare` does."""
    scans = [prepare_scan(volume, model) for volume in (pair.first, pair.second)]
    alone = [segment(scan.volume, model, scan.working).volume_ml for scan in scans]
    first, second = scans
    found = compare(first, second, model)
    return {
        "name": pair.name,
        "kind": pair.kind,
        "degrees": pair.degrees,
        "alone_first_ml": alone[0],
        "alone_second_ml": alone[1],
        "first_ml": found.baseline.volume_ml,
        "second_ml": found.followup.volume_ml,
        "overlap": found.registration.overlap,
        "likeness": found.registration.likeness,
    }


def measure(heads: Sequence[Callable[[], ScanRescan]], model: Model) -> list[dict[str, Any]]:
    """A row for each head; one that cannot be compared has no volumes, and is counted."""
    rows = []
    for make in track(heads, "scanned twice", console=console):
        pair = make()
        try:
            rows.append(measure_pair(pair, model))
        except HemsegError as error:
            console.print(f"{pair.name}: {error}", markup=False)
            rows.append({"name": pair.name, "kind": pair.kind, "degrees": pair.degrees})
    return rows


def summaries(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bias and 95 % limits (mean and 1.96 standard deviations of the differences), by kind of head and by size."""
    groups: list[tuple[str, Callable[[dict[str, Any]], bool]]] = [
        ("all", lambda row: True),
        ("phantoms", lambda row: row["kind"] != "real"),
        ("real heads", lambda row: row["kind"] == "real"),
    ]
    found = []
    for how, first, second in (("compare", "first_ml", "second_ml"), ("alone", "alone_first_ml", "alone_second_ml")):
        for name, belongs in groups:
            some = [row for row in rows if first in row and belongs(row)]
            before, after = (np.array([row[key] for row in some], float) for key in (first, second))
            for size, chosen in (
                (f">= {ABOVE_ML:g} mL", (before + after) / 2 >= ABOVE_ML),
                (f"< {ABOVE_ML:g} mL", (before + after) / 2 < ABOVE_ML),
            ):
                if chosen.any():
                    found.append(
                        {"measured": how, "heads": name, "size": size} | _limits(before[chosen], after[chosen])
                    )
    return found


def _limits(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    ml = after - before
    mean = (before + after) / 2
    percent = 100 * ml / np.where(mean > 0, mean, np.nan)
    spread = [float(np.std(v, ddof=1)) if len(v) > 1 else float("nan") for v in (ml, percent)]
    within = np.abs(ml) <= np.maximum(TARGET_ML, TARGET_PERCENT / 100 * mean)
    return {
        "pairs": len(ml),
        "mean_ml": float(ml.mean()),
        "low_ml": float(ml.mean() - 1.96 * spread[0]),
        "high_ml": float(ml.mean() + 1.96 * spread[0]),
        "mean_percent": float(percent.mean()),
        "low_percent": float(percent.mean() - 1.96 * spread[1]),
        "high_percent": float(percent.mean() + 1.96 * spread[1]),
        "largest_ml": float(np.abs(ml).max()),
        "within_target": float(within.mean()),
    }


def retest_limits(rows: list[dict[str, Any]], model: Model) -> RetestLimits:
    """What `hemseg compare` reads.

    Raises:
        HemsegError: there are fewer than three heads of either size: nothing could be said.
    """
    above, below = (
        next(
            (s for s in summaries(rows) if (s["measured"], s["heads"], s["size"][0]) == ("compare", "all", sign)),
            {"pairs": 0},
        )
        for sign in (">", "<")
    )
    if min(above["pairs"], below["pairs"]) < 3:
        raise HemsegError(
            f"{above['pairs']} heads with {ABOVE_ML:g} mL and more and {below['pairs']} with less are too few for "
            "limits; measure more (--phantoms, --data)."
        )

    def rounded(values: dict[str, Any], name: str) -> float:
        return round(float(values[name]), 2)

    least = model.manifest.min_lesion_ml  # no lesion is smaller, so no change of one means anything

    return RetestLimits(
        weights=f"{model.manifest.name} {model.manifest.version}",
        **{name: getattr(model.manifest, name) for name in MEASURED_WITH},
        pairs=above["pairs"] + below["pairs"],
        pairs_above=above["pairs"],
        above_ml=ABOVE_ML,
        mean_percent=rounded(above, "mean_percent"),
        low_percent=rounded(above, "low_percent"),
        high_percent=rounded(above, "high_percent"),
        mean_ml=rounded(below, "mean_ml"),
        low_ml=min(-least, rounded(below, "low_ml")),
        high_ml=max(least, rounded(below, "high_ml")),
    )


def write(rows: list[dict[str, Any]], model: Model, out: Path, limits: Path = LIMITS) -> RetestLimits:
    """Write ``retest.csv``, ``summary.csv`` and ``table.md`` into a folder, and the limits for hemseg."""
    write_table(rows, out / "retest.csv")
    summary = summaries(rows)
    write_table(summary, out / "summary.csv")
    failed = [row["name"] for row in rows if "first_ml" not in row]
    (out / "table.md").write_text(table(summary, failed, model), encoding="utf-8")
    found = retest_limits(rows, model)
    limits.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    return found


def table(summary: list[dict[str, Any]], failed: list[str], model: Model) -> str:
    """The summary for people to read, in Markdown."""
    lines = [
        "# Scanned twice, nothing changed",
        "",
        f"Made by `python -m training retest`, weights {model.manifest.name} {model.manifest.version} "
        f"({model.manifest.sha256[:12]}). Each head is there twice: turned by up to {MAX_DEGREES:g} degrees, shifted "
        f"by up to {MAX_MM:g} mm and by half a slice, on another grid, with fresh noise. `compare`: aligned, and "
        "segmented in the same poses; `alone`: each scan by `hemseg segment`. Limits: mean ± 1.96 standard deviations "
        f"of the differences. Target: within {TARGET_PERCENT:g} % or {TARGET_ML:g} mL, whichever is more.",
        "",
        "| measured | heads | size | pairs | mean (mL) | 95 % limits (mL) | mean (%) | 95 % limits (%) | largest (mL) "
        "| within target |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in summary:
        cells = (
            row["measured"], row["heads"], row["size"], str(row["pairs"]), f"{row['mean_ml']:+.2f}",
            f"{row['low_ml']:+.2f} to {row['high_ml']:+.2f}", f"{row['mean_percent']:+.1f}",
            f"{row['low_percent']:+.1f} to {row['high_percent']:+.1f}", f"{row['largest_ml']:.2f}",
            f"{100 * row['within_target']:.0f} %",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cell.replace('+nan', '-').replace('nan', '-') for cell in cells)} |")
    if failed:
        lines += ["", f"Could not be aligned: {', '.join(failed)}."]
    return "\n".join([*lines, ""])
