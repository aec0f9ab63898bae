"""Train the learned skull strip (`hemseg.strip`): the intracranial mask, from scans that exist stripped as well.

    python -m training strip --heads phe-sich-heads --stripped phe-sich --stripped ct-ich --run runs/strip

Nobody drew a mask for it: a stripped data set is a copy of scans from which everything outside the skull was taken
away, slice by slice (``slices.csv`` says how each slice was treated). What remains is the answer for the whole head,
and for the stripped scan itself. Phantoms, whose inside is known, bring children, craniectomies and turned heads.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hemseg.errors import HemsegError
from hemseg.resources import cores
from hemseg.scan import read
from hemseg.strip import HU_RANGE, SIDE_MULTIPLE, STRIP_MM, brain_of, scaled, standardized
from hemseg.volume import Volume
from hemseg.working_grid import WorkingGrid

from ..config import Optimization
from ..console import console
from ..data.anatomy import Options
from ..data.datasets import DataSet
from ..data.phantom import KINDS, Grid, make_phantom
from ..evaluation.stripping import enclosed_below_brain, intracranial_reference, kept_slices
from ..export.to_onnx import TOLERANCE, WithSigmoid, write_onnx
from ..fitting.hardware import Hardware
from ..fitting.trainer import Task, fit, loader, save_network
from ..stage_names import NETWORK

CANVAS = 128  # pixels of 2 mm: a slice is centred on it for training
OPTIMIZATION = Optimization("adamw", lr=3e-3, schedule="onecycle", weight_decay=1e-3, batch=24, epochs=8, patience=8)
UNKNOWN_NEAR = 2  # so many blanked slices next to those with brain may hold some


@dataclass(frozen=True, eq=False)
class StripCase:
    """A scan on the strip's grid.

    Attributes:
        hu: float16 (z, y, x).
        target: float16 (z, y, x), share of the pixel that is intracranial.
        weight: bool (z, y, x), where the target is known.
    """

    name: str
    split: str
    hu: np.ndarray
    target: np.ndarray
    weight: np.ndarray


def build_strip() -> nn.Module:
    """The 2D U-Net. Input (n, 3, y, x) in 0..1, output logits (n, 1, y, x)."""
    return UNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=1,
        channels=(12, 24, 48, 64, 96),
        strides=(2, 2, 2, 2),
        num_res_units=1,
        norm="batch",
    )


def _grid(volume: Volume) -> tuple[np.ndarray, WorkingGrid]:
    hu, spacing = volume.in_lps()
    return hu, WorkingGrid(hu.shape, spacing, (spacing[0], STRIP_MM, STRIP_MM), 1)  # type: ignore[arg-type]


def paired_cases(heads: DataSet | None, stripped: DataSet, folder: Path) -> list[StripCase]:
    """Stripped scans, and the whole heads of the same scans where there are some, with their target."""
    kinds = kept_slices(folder)
    whole = {case.name: case for case in heads.cases} if heads else {}
    result = []
    for case in track(stripped.cases, f"strip, {stripped.name}", console=console):
        volume = read(case.image)
        hu, grid = _grid(volume)
        kept = [kinds.get((case.name, z), "blanked") for z in range(len(hu))]
        reference = np.stack([intracranial_reference(plane, kind) for plane, kind in zip(hu, kept, strict=True)])
        target = grid.from_scan(reference.astype(np.float32))
        known = np.array([_is_known(kept, z, plane) for z, plane in enumerate(target)])
        weight = np.broadcast_to(known[:, None, None], target.shape)
        small = grid.from_scan(hu, HU_RANGE)
        bare = np.isin(kept, ("blanked", "empty", "missing"))  # nothing is in the picture: nothing is inside
        own = np.where(bare[:, None, None], 0, target)
        result.append(
            StripCase(
                f"{stripped.name}_{case.name}", case.split, _half(small), _half(own), weight | bare[:, None, None]
            )
        )
        if case.name in whole:
            result.append(_whole_head(read(whole[case.name].image), case.name, case.split, target, kept))
    return result


def _is_known(kept: list[str], z: int, target: np.ndarray) -> bool:
    """Whether the target of a slice can be trusted."""
    if kept[z] == "vault":  # a contour that is open encloses nothing
        return float(target.sum()) * STRIP_MM**2 / 100 > 15
    return kept[z] in ("base", "vertex")


def _whole_head(volume: Volume, name: str, split: str, target: np.ndarray, kept: list[str]) -> StripCase:
    hu, grid = _grid(volume)
    small = grid.from_scan(hu, HU_RANGE)
    size = target.shape[1:]
    small = np.stack([cv2.resize(p, size[::-1], interpolation=cv2.INTER_AREA) for p in small])
    own, weight = target.copy(), np.zeros(target.shape, bool)
    with_brain = [z for z, kind in enumerate(kept) if kind in ("base", "vault", "vertex")]
    top = float(min(100.0, hu.max())) - 1
    for z, kind in enumerate(kept):
        if kind in ("blanked", "empty", "missing"):
            near = min((abs(z - other) for other in with_brain), default=99)
            own[z], weight[z] = 0, near > UNKNOWN_NEAR
            continue
        weight[z] = _is_known(kept, z, target[z])
        enclosed = brain_of(small[z], top, STRIP_MM)
        own[z] = np.maximum(own[z], enclosed)
        weight[z] |= enclosed
        if z + 1 < len(kept):
            weight[z] &= ~enclosed_below_brain(small[z], own[z], target[z + 1], top, STRIP_MM)
    return StripCase(f"heads_{name}", split, _half(small), _half(own), weight)


def draw_options(rng: np.random.Generator) -> Options:
    """How a phantom's head differs: half are adults that lie straight; children, flaps, turned heads, two heads."""
    kind = rng.random()
    return Options(
        skull="child" if kind < 0.15 else "infant" if kind < 0.3 else "adult",
        craniectomy=bool(rng.random() < 0.2),
        second_head=bool(rng.random() < 0.06),
        roll=float(rng.choice([-90, 90, 180])) if rng.random() < 0.12 else float(rng.normal(0, 8)),
        tilt=float(rng.uniform(-30, 30)) if rng.random() < 0.3 else float(rng.normal(0, 5)),
    )


def phantom_case(number: int, seed: int) -> StripCase:
    """A phantom, whose cranial cavity is known; every eighth is of val."""
    rng = np.random.default_rng([seed, number, 11])
    kinds = () if number % 3 == 0 else tuple(rng.choice(KINDS, 1))
    grid = Grid((34, 128, 128), (1.95, 1.95, 5.0), lower_mm=float(rng.uniform(0, 45)))
    phantom = make_phantom(50_000 + number, kinds, grid, bool(rng.random() < 0.7), options=draw_options(rng))
    hu, working = _grid(phantom.volume)
    target = working.from_scan(phantom.intracranial.astype(np.float32))
    small = working.from_scan(hu, HU_RANGE)
    split = "val" if number % 8 == 7 else "train"
    return StripCase(f"phantom-{number}", split, _half(small), _half(target), np.ones(target.shape, bool))


def phantom_cases(count: int, seed: int) -> list[StripCase]:
    """So many phantoms, made on all cores."""
    with ProcessPoolExecutor(cores(), get_context("spawn")) as pool:
        made = pool.map(partial(phantom_case, seed=seed), range(count))
        return list(track(made, "strip, phantoms", count, console=console))


def _half(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16)


class StripSlices(Dataset):
    """Slices with their neighbours; changed at random, as a function of (seed, epoch, index), unless ``plain``."""

    def __init__(self, cases: list[StripCase], seed: int, plain: bool = False) -> None:
        self.cases, self.seed, self.plain = cases, seed, plain
        self.at = [(i, z) for i, c in enumerate(cases) for z in range(len(c.hu)) if c.weight[z].any()]

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        epoch, index = (0, key) if isinstance(key, int) else key
        rng = np.random.default_rng([self.seed, epoch, index])
        i, z = self.at[index]
        case = self.cases[i]
        levels = [min(max(z + d, 0), len(case.hu) - 1) for d in (-1, 0, 1)]
        hu = case.hu[levels].astype(np.float32)
        target, weight = case.target[z].astype(np.float32), case.weight[z].astype(np.float32)
        if self.plain:
            matrix = placement(hu.shape[1:], CANVAS, 0.0, 1.0, (0.0, 0.0), False)
        else:
            hu = augment_head(hu, target, rng)
            matrix = random_placement(hu.shape[1:], rng)
        hu = np.stack([_warped(p, matrix, HU_RANGE[0]) for p in hu])
        target, weight = _warped(target, matrix, 0.0), _warped(weight, matrix, 1.0)
        return (
            torch.from_numpy(scaled(hu)),
            torch.from_numpy(target)[None],
            torch.from_numpy((weight > 0.99).astype(np.float32))[None],
        )


def _warped(plane: np.ndarray, matrix: np.ndarray, fill: float) -> np.ndarray:
    return cv2.warpAffine(plane, matrix, (CANVAS, CANVAS), flags=cv2.INTER_LINEAR, borderValue=fill)


def placement(
    shape: tuple[int, ...], canvas: int, degrees: float, scale: float, shift: tuple[float, float], mirrored: bool
) -> np.ndarray:
    """Matrix (2, 3) for `cv2.warpAffine` that puts a plane (y, x) on a square canvas, turned about its middle.

    Args:
        shape: (y, x) of the plane, pixels.
        canvas: side of the canvas, pixels.
        degrees: of the turn, counterclockwise.
        scale: pixels of the canvas per pixel of the plane.
        shift: (x, y) on the canvas, pixels.
        mirrored: left and right are exchanged.
    """
    y, x = shape
    matrix = cv2.getRotationMatrix2D(((x - 1) / 2, (y - 1) / 2), degrees, scale)
    matrix[:, 2] += np.array([(canvas - x) / 2 + shift[0], (canvas - y) / 2 + shift[1]])
    if mirrored:
        matrix[0] *= -1
        matrix[0, 2] += canvas - 1
    return matrix


def random_placement(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Mostly small angles, any angle at times; heads from an infant's size to a large adult's."""
    degrees = rng.uniform(-180, 180) if rng.random() < 0.25 else rng.normal(0, 10)
    scale = rng.uniform(0.65, 1.1) if rng.random() < 0.3 else rng.uniform(0.9, 1.1)
    shift = tuple(rng.normal(0, 8, 2))
    return placement(shape, CANVAS, float(degrees), float(scale), shift, bool(rng.random() < 0.5))  # type: ignore[arg-type]


def augment_head(hu: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What scans can look like: other windows, levels, noise, thin or missing bone, missing neighbours.

    Args:
        hu: (3, y, x), a slice between its neighbours, in `HU_RANGE`; saturated values stay saturated.
        target: (y, x), share of the pixel that is intracranial.
    """
    low, high = HU_RANGE
    hu = hu.copy()
    chance = rng.random(8)
    if chance[0] < 0.2:
        hu[:] = hu[1]  # a single slice
    elif chance[0] < 0.3:
        hu[rng.choice([0, 2])] = low  # a blank one beside it
    bone, air = hu >= high - 1, hu <= low + 0.5
    if chance[1] < 0.15:  # a child's bone
        hu = np.where(bone, rng.uniform(60, 100) + rng.normal(0, 6, hu.shape), hu)
    if chance[2] < 0.12:  # a flap taken out
        y, x = np.nonzero(bone[1])
        if len(y):
            at = rng.integers(len(y))
            rows, columns = np.ogrid[: hu.shape[1], : hu.shape[2]]
            radius = rng.uniform(8, 35)
            hole = (rows - y[at]) ** 2 + (columns - x[at]) ** 2 < radius**2
            hu = np.where(bone & hole, rng.uniform(-15, 50) + rng.normal(0, 5, hu.shape), hu)
    if chance[3] < 0.1:  # stripped already
        hu = np.where(target > 0.05, hu, low)
    elif chance[3] < 0.25:  # no scalp, no muscles
        near = cv2.dilate(
            (target > 0.3).astype(np.uint8), np.ones((3, 3), np.uint8), iterations=int(rng.integers(3, 9))
        )
        hu = np.where(near.astype(bool), hu, low)
    bone, air = hu >= high - 1, hu <= low + 0.5
    changed = hu * rng.uniform(0.9, 1.1) + rng.uniform(-13, 13)
    if chance[4] < 0.6:
        changed = changed + rng.normal(0, rng.uniform(0, 5), hu.shape)
    if chance[5] < 0.2:
        changed = np.stack([cv2.GaussianBlur(p.astype(np.float32), (0, 0), rng.uniform(0.3, 1.0)) for p in changed])
    hu = np.where(bone, high, np.where(air, low, changed)).clip(low, high)
    if chance[6] < 0.6:
        bottom = rng.uniform(low, 10) if chance[7] < 0.7 else low
        top = rng.uniform(62, high)
        hu = standardized(hu.clip(bottom, top), bottom, top)
    return hu.astype(np.float32)


class StripTask(Task):
    """Binary cross-entropy and Dice, where the target is known."""

    def __init__(self, network: nn.Module, optimization: Optimization, seed: int) -> None:
        super().__init__(optimization, seed)
        self.network = network

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        image, target, weight = batch
        logits = self.network(image).float()
        probability = logits.sigmoid() * weight
        dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + (target * weight).sum() + 1)
        entropy = F.binary_cross_entropy_with_logits(logits, target.clamp(0, 1), weight=weight, reduction="sum")
        return dice + entropy / weight.sum().clamp_min(1)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), prog_bar=True, batch_size=len(batch[0]))


def train_strip(
    cases: list[StripCase], folder: Path, hardware: Hardware, seed: int = 0, optimization: Optimization = OPTIMIZATION
) -> dict[str, Any]:
    """Train on the cases of train, stop by those of val; writes ``network.pt`` and ``strip.onnx``."""
    torch.manual_seed(seed)
    network = build_strip()
    train = StripSlices([c for c in cases if c.split == "train"], seed)
    val = StripSlices([c for c in cases if c.split == "val"], seed, plain=True)
    task = StripTask(network, optimization, seed)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = fit(task, loader(train, optimization, seed), DataLoader(val, optimization.batch), folder, hardware)
    save_network(network, folder / NETWORK)
    export_strip(network, folder / "strip.onnx")
    return metrics | {"train_slices": len(train), "val_slices": len(val)}


def export_strip(network: nn.Module, path: Path) -> float:
    """Write the strip as ONNX: ``image`` (n, 3, y, x) to ``probability`` (n, 1, y, x), any sizes that 16 divides.

    Returns:
        The largest difference between ONNX Runtime and torch, on a picture of another size than the example's.

    Raises:
        HemsegError: they differ by more than 1e-4.
    """
    model = WithSigmoid(network).float().cpu().eval()
    batch, y, x = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "y16", "x16"))
    shapes = ({0: batch, 2: SIDE_MULTIPLE * y, 3: SIDE_MULTIPLE * x},)
    write_onnx(model, torch.rand(2, 3, 8 * SIDE_MULTIPLE, 7 * SIDE_MULTIPLE), path, shapes)
    other = torch.rand(3, 3, 6 * SIDE_MULTIPLE, 9 * SIDE_MULTIPLE)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        difference = float(np.abs(session.run(None, {"image": other.numpy()})[0] - model(other).numpy()).max())
    if difference > TOLERANCE:
        raise HemsegError(f"{path}: ONNX Runtime differs from torch by {difference:.2g}, more than {TOLERANCE}.")
    return difference
