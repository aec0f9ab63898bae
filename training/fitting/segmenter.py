"""U-Nets on pseudo-labels: BCE + Dice (eq. 2; docs/method.md, 5)."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hemseg.preprocessing import Settings, network_input
from hemseg.sliding_window import input_box, pad_to_patch

from ..config import Config, Segmenter
from ..console import console
from ..data.augmentation import augmented_patches, random_window
from ..data.datasets import Prepared
from ..data.painted import add_bleed, add_distractor, add_noise, add_streaks, denoised
from ..data.painted_place import Place, place_of
from ..networks.efficientnet_lite import imagenet_weights
from ..networks.pretrained_unet import PretrainedUNet
from ..networks.unet import (
    LEFT_OUT,
    MEMORY_FORMAT,
    UNLOCATED,
    build_unet,
    combined_loss,
    lesion_loss,
    multiples,
    slice_head_loss,
    slice_loss,
    to_fast_memory_format,
)
from ..stage_names import NETWORK
from .hardware import Hardware, rank
from .trainer import Task, fit, load_network, loader, save_network

POSITIVE_SINGLES_SHARE = 0.4  # of the single slices of an epoch hold a bleed
MIN_ODDS = 0.15  # of drawing a healthy single slice that the U-Net before already knows to be so, against 1.15
MIN_LESION_PIXELS = 4  # pixels: a lesion of fewer in a slice counts for less than one
IN_PLANE = np.stack([np.zeros((3, 3), bool), np.ones((3, 3), bool), np.zeros((3, 3), bool)])
MAX_VALIDATION_SINGLES = 50  # single slices that a validation looks at, at most


class Patches(Dataset):
    """Patches of prepared scans with their (pseudo-)labels; half of them are centred on hemorrhage.

    A target's channels are named by `target_channels`: the label; with `slice_loss` a verdict: 1 on slices that are
    labelled 0 throughout, with `unlocated` -1 on slices that hold a bleed nobody knows where; with `lesion_loss` the
    `lesion_shares`; with an encoder, which sees one slice at a time, whether the patch's slices lie apart: single
    slices then fill a patch together, in place of one that is repeated, and are moved and roughened alike.

    Where the scan itself is changed at random (`augment_scan`), the network's input is recomputed for each patch.
    """

    def __init__(
        self,
        cases: list[Prepared],
        labels: dict[str, np.ndarray],
        config: Config,
        false_peaks: dict[str, float] | None = None,
    ) -> None:
        self.size, self.seed = config.segmenter.train_patch, config.seed
        self.settings, self.preprocessing = config.segmenter, config.preprocessing
        self.per_case = config.segmenter.patches_per_case
        s = self.settings
        changes = (s.narrow, s.few_slices, s.loose_mask, s.painted, s.distractors, s.artefacts, s.denoised)
        self.changes_scans = s.augment and any(changes)
        volumes, singles = cases, []
        if s.single_slices:
            volumes = [c for c in cases if len(c.hu) > 1]
            least = UNLOCATED if s.unlocated else 0
            singles = [
                c
                for c in cases
                if len(c.hu) == 1 and c.intracranial.any() and (leave_out_unlabelled_slices(c, labels) >= least).any()
            ]
        positive = [bool((labels[c.name] != 0).any()) for c in singles]
        self.volumes = len(volumes)
        self.positive_singles, self.healthy_singles = (
            self.volumes + np.flatnonzero(np.equal(positive, has)) for has in (True, False)
        )
        self.odds = None
        if false_peaks and len(self.healthy_singles):
            mean_peak = float(np.mean(list(false_peaks.values())))  # of those that it was not shown
            odds = [MIN_ODDS + false_peaks.get(singles[i - self.volumes].name, mean_peak) for i in self.healthy_singles]
            self.odds = np.array(odds) / np.sum(odds)
        cases = [*volumes, *singles]
        self.scans = [crop_to_input_box(c, labels[c.name], config.preprocessing) for c in cases]
        paints = self.changes_scans and (s.painted or s.distractors)
        self.places = [place_of(hu, inside, self.spacing) for hu, inside, _ in self.scans] if paints else []
        self.singles_per_patch = singles_per_patch(s)
        self.items = (
            [] if self.changes_scans else [self._make_item(*s, self._part_size(n)) for n, s in enumerate(self.scans)]
        )
        self.channels = len(config.preprocessing.channels)
        self.positive = [np.argwhere(item[self.channels] > 0) for item in self.items]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Of the working grid, mm (z, y, x)."""
        return self.preprocessing.slice_mm, self.preprocessing.in_plane_mm, self.preprocessing.in_plane_mm

    def __len__(self) -> int:
        singles = -(-self.settings.single_slices // self.singles_per_patch)
        return self.volumes * self.per_case + singles * (len(self.scans) > self.volumes)

    def _draw_scan(self, index: int, rng: np.random.Generator) -> int:
        """The scan of a sample: each volume in turn, single slices as they are drawn."""
        if index < self.volumes * self.per_case:
            return index % self.volumes
        positive = rng.random() < POSITIVE_SINGLES_SHARE
        if (positive and len(self.positive_singles)) or not len(self.healthy_singles):
            return int(rng.choice(self.positive_singles))
        return int(rng.choice(self.healthy_singles, p=self.odds))

    def _make_item(
        self, hu: np.ndarray, inside: np.ndarray, label: np.ndarray, size: tuple[int, int, int]
    ) -> np.ndarray:
        """Network input and target of a scan or a part of it, at least of the size (z, y, x)."""
        image = network_input(hu, inside, self.preprocessing)
        target = [label]
        if self.settings.slice_loss:
            negative, unlocated = ((label == value).all(axis=(1, 2), keepdims=True) for value in (0, UNLOCATED))
            verdict = negative.astype(np.float32) - (unlocated & self.settings.unlocated)
            target.append(np.broadcast_to(verdict, label.shape))
        if self.settings.lesion_loss:
            target.append(lesion_shares(label))
        if self.settings.encoder.name:
            target.append(np.full_like(label, size[0] < self.size[0]))
        item = np.concatenate([image, np.stack(target).astype(np.float32)])
        return pad_to_patch(item, size, self.preprocessing.edge_slices)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = (0, key) if isinstance(key, int) else key
        rng = np.random.default_rng([self.seed, epoch, index])
        if self.singles_per_patch > 1 and index >= self.volumes * self.per_case:
            patch = np.concatenate(
                [self._draw_part(self._draw_scan(index, rng), rng) for _ in range(self.singles_per_patch)], 1
            )
        else:
            patch = self._draw_part(self._draw_scan(index, rng), rng)
        both = torch.from_numpy(patch)
        return both[: self.channels], both[self.channels :]

    def _part_size(self, number: int) -> tuple[int, int, int]:
        """Of what a scan gives to a patch, (z, y, x)."""
        return (1, *self.size[1:]) if self.singles_per_patch > 1 and number >= self.volumes else self.size

    def _draw_part(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Network input and target of a part of a scan, which is changed at random where the recipe says so."""
        size = self._part_size(number)
        if self.changes_scans:
            scan = self.scans[number]
            if self.places:
                scan = paint_scan(*scan, self.places[number], self.settings, rng)
            item = self._make_item(*augment_scan(*scan, self.settings, rng), size)
            positive = np.argwhere(item[self.channels] > 0)
        else:
            item, positive = self.items[number], self.positive[number]
        shape = item.shape[1:]
        if len(positive) and rng.random() < 0.5:
            middle = positive[rng.integers(len(positive))]
            corner = middle - np.array(size) // 2 + rng.integers(-8, 9, 3) * (0, 1, 1)
        else:
            corner = np.array([rng.integers(0, n - p + 1) for n, p in zip(shape, size, strict=True)])
        corner = np.clip(corner, 0, np.array(shape) - size)
        return item[(slice(None), *(slice(c, c + p) for c, p in zip(corner, size, strict=True)))].copy()


def singles_per_patch(settings: Segmenter) -> int:
    """How many single slices share a patch: as many as it has slices where the network sees them one at a time."""
    return settings.train_patch[0] if settings.encoder.name else 1


def target_channels(settings: Segmenter) -> dict[str, int]:
    """The channels of a target by name (`Patches`)."""
    names = ["label"]
    names += ["verdict"] if settings.slice_loss else []
    names += ["shares"] if settings.lesion_loss else []
    names += ["apart"] if settings.encoder.name else []
    return {name: number for number, name in enumerate(names)}


def crop_to_input_box(
    case: Prepared, label: np.ndarray, settings: Settings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU, intracranial mask and label in the box that inference sees, all (z, y, x); slices that carry no slice label
    (blanked ones, or missing) are left out."""
    label = leave_out_unlabelled_slices(case, {case.name: label})
    box = input_box(case.intracranial, settings) or (slice(None),) * 3
    return case.hu[box], case.intracranial[box], label[box]


def lesion_shares(label: np.ndarray) -> np.ndarray:
    """What each voxel of a label is of its lesion in its slice: one over the lesion's pixels; float32 (z, y, x)."""
    lesions, _ = ndimage.label(label > 0, IN_PLANE)
    sizes = np.bincount(lesions.ravel())
    shares = 1 / np.maximum(sizes, MIN_LESION_PIXELS).astype(np.float32)
    shares[0] = 0
    return np.asarray(shares[lesions])


def leave_out_unlabelled_slices(case: Prepared, labels: dict[str, np.ndarray]) -> np.ndarray:
    """The label of a case, int8 (z, y, x), `LEFT_OUT` on slices that carry no slice label."""
    return np.where(case.labels[:, None, None] < 0, np.int8(LEFT_OUT), labels[case.name])


def paint_scan(
    hu: np.ndarray, inside: np.ndarray, label: np.ndarray, place: Place, settings: Segmenter, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A scan with bleeds and other bright things that it does not have, each (z, y, x).

    Args:
        hu, inside, label: the scan, its intracranial mask and its label.
        place: where in the head bleeds can be, see `data.painted`.
        settings: how often.
        rng: of kinds, places and sizes.
    """
    bleeds, bright = rng.random(2) < (settings.painted, settings.distractors)
    for _ in range(int(rng.integers(1, 4)) if bleeds else 0):
        hu, label = add_bleed(hu, label, place, rng, dura=settings.dura)
    count = int(rng.integers(1, 4)) if bright and settings.dura else int(bright)
    bare = hu
    for _ in range(count):
        hu = add_distractor(hu, place, rng, dura=settings.dura)
    if count:
        label = forget_unlocated(label, (hu != bare).any(axis=(1, 2)))
    return hu, inside, label


def forget_unlocated(label: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """The label without what is known of the slices (z,) as a whole, where that is all: what is brightest in them now
    may be what was put there."""
    return np.where((label == UNLOCATED) & slices[:, None, None], np.int8(LEFT_OUT), label)


def augment_scan(
    hu: np.ndarray, inside: np.ndarray, label: np.ndarray, settings: Segmenter, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A scan as others might have it: less noise or more, fewer slices, a narrower window, a mask that is too wide.

    Args:
        hu, inside, label: (z, y, x) on the working grid.
    """
    few, narrow, loose = rng.random(3) < (settings.few_slices, settings.narrow, settings.loose_mask)
    if settings.denoised and rng.random() < settings.denoised:
        hu = denoised(hu, rng)
    elif settings.artefacts and rng.random() < settings.artefacts:
        hu = add_streaks(hu, rng) if rng.random() < 0.4 else add_noise(hu, rng)
        label = forget_unlocated(label, np.ones(len(hu), bool))
    if few:
        count = int(rng.integers(1, min(5, len(hu)) + 1))
        bleeding = np.flatnonzero((label > 0).any(axis=(1, 2)))
        middle = int(rng.choice(bleeding)) if len(bleeding) and rng.random() < 0.6 else int(rng.integers(len(hu)))
        first = int(np.clip(middle - rng.integers(count), 0, len(hu) - count))
        hu, inside, label = (array[first : first + count] for array in (hu, inside, label))
    if narrow:
        hu = hu.clip(*random_window(rng))
    if loose:
        cross = ndimage.generate_binary_structure(2, 1)[None]
        inside = ndimage.binary_dilation(inside, cross, iterations=int(rng.integers(1, 3)))
    return hu, inside, label


def training_batches(patches: Patches, settings: Segmenter, seed: int, workers: int = 0) -> DataLoader:
    """Batches of patches, moved and roughened at random where the recipe says so."""
    change = partial(_augment, settings=settings) if settings.augment else None
    return loader(patches, settings.optimization, seed, workers, change)


def _augment(batch: list[Tensor], generator: torch.Generator, settings: Segmenter) -> tuple[Tensor, Tensor]:
    image, target = batch
    return augmented_patches(image, target, generator, settings.degrade, settings.turned)


class SegmenterTask(Task):
    """Train the U-Net; the validation loss is against validation (pseudo-)labels, never against reference masks."""

    def __init__(self, network: nn.Module, settings: Segmenter, seed: int, compiled: bool = False) -> None:
        super().__init__(settings.optimization, seed)
        self.network, self.settings = network, settings
        step: Callable[..., Any] = network.forward  # no module, or its weights would be saved twice
        if isinstance(network, PretrainedUNet):
            network.freeze(settings.encoder.frozen_stages)
            step = network.voxel_and_slice_logits
        self.step = torch.compile(step) if compiled else step  # in training alone, where all patches have one size

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        image, targets = batch
        image = image.contiguous(memory_format=MEMORY_FORMAT)
        target = {name: targets[:, n : n + 1] for name, n in target_channels(self.settings).items()}
        slice_logits: Tensor | None = None
        if "apart" in target:
            apart = target["apart"].flatten(1).amax(1) > 0.5  # moving a patch brings zeros in
            logits, slice_logits = self.step(image, apart)
        else:
            logits = self.step(image)
        loss = combined_loss(logits, target["label"])
        settings, extra_losses = self.settings, {}
        if settings.slice_loss:
            extra_losses["slice_loss"] = settings.slice_loss, slice_loss(logits, target["label"], target["verdict"])
        if settings.encoder.slice_head and slice_logits is not None:
            head = slice_head_loss(slice_logits, target["label"], target["verdict"])
            extra_losses["slice_head_loss"] = settings.encoder.slice_head, head
        if settings.lesion_loss:
            extra_losses["lesion_loss"] = settings.lesion_loss, lesion_loss(logits, target["label"], target["shares"])
        for name, (weight, value) in extra_losses.items():
            self.log(f"train_{name}", value, on_step=False, on_epoch=True, batch_size=len(image))
            loss = loss + weight * value
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(image))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self.network(batch[0])
        self.log("val_loss", combined_loss(logits, batch[1]), prog_bar=True, batch_size=len(batch[0]))
        known = batch[1] > LEFT_OUT
        found, label = (logits > 0) & known, batch[1] > 0
        dice = (2 * (found & label).sum() + 1) / (found.sum() + label.sum() + 1)
        self.log("val_label_dice", dice, prog_bar=True, batch_size=len(batch[0]))


def train_segmenter(
    train: list[Prepared],
    val: list[Prepared],
    labels: dict[str, np.ndarray],
    config: Config,
    folder: Path,
    hardware: Hardware,
    start: Path | None = None,
    false_peaks: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Train on labels (z, y, x) per case; writes ``network.pt``.

    Where no label holds hemorrhage (a classifier that learnt nothing, `ablation.control`), one epoch teaches all there
    is to learn, and a message says so.

    Args:
        train, val: prepared scans; val gives the validation loss, against labels of the same kind.
        labels: int8 (z, y, x) per case: 1, 0, and `LEFT_OUT`.
        config: the recipe.
        folder: where checkpoints, curves and weights go.
        hardware: what to train on.
        start: weights to go on from (self-training's second round); when None from scratch, an encoder from
            ImageNet. They stay as they are where the recipe has 0 epochs.
        false_peaks: highest probability of the U-Net before in healthy single slices, by case; they are drawn by it.
    """
    settings = config.segmenter
    torch.manual_seed(config.seed)
    network = build_unet(settings, len(config.preprocessing.channels))
    if start:
        load_network(network, start)
    elif isinstance(network, PretrainedUNet):
        network.encoder.load_state_dict(imagenet_weights())
    if start and not settings.optimization.epochs:
        save_network(network, folder / NETWORK)
        return {"epochs": 0}
    if not any((labels[case.name] > 0).any() for case in train):
        if rank() == 0:
            console.print("[yellow]segment: no training scan has a hemorrhage label; the U-Net will find none[/yellow]")
        settings = replace(settings, optimization=replace(settings.optimization, epochs=1))
    to_fast_memory_format(network)
    task = SegmenterTask(network, settings, config.seed, hardware.compile)
    patches = Patches(train, labels, config, false_peaks)
    batches = training_batches(patches, settings, config.seed, hardware.workers)
    metrics = fit(task, batches, DataLoader(_whole_scans(val, labels, config), 1), folder, hardware)
    if start and settings.start_share:
        average_weights(network, start, settings.start_share)
    save_network(network, folder / NETWORK)
    return metrics


def average_weights(network: nn.Module, start: Path, share: float) -> None:
    """Mean of a network's weights and those that its training went on from, in place: between the two, what was learned
    last is there and what was known before is not lost (Wortsman et al., CVPR 2022, arXiv:2109.01903).

    Args:
        start: the file of those.
        share: of them.
    """
    before = load_network(deepcopy(network), start).state_dict()
    for name, value in network.state_dict().items():
        if value.is_floating_point():  # not the counts of batches
            value.lerp_(before[name], share)


def _whole_scans(cases: list[Prepared], labels: dict[str, np.ndarray], config: Config) -> Any:
    """Whole scans, padded so that every stride divides them."""
    step = multiples(config.segmenter)
    result = []
    singles = [case.name for case in cases if len(case.hu) == 1]
    skipped = set(singles) - set(singles[:: max(1, -(-len(singles) // MAX_VALIDATION_SINGLES))])
    for case in (c for c in cases if c.name not in skipped):
        hu, inside, label = crop_to_input_box(case, labels[case.name], config.preprocessing)
        item = np.concatenate([network_input(hu, inside, config.preprocessing), label[None].astype(np.float32)])
        size = tuple(int(-(-n // s) * s) for n, s in zip(item.shape[1:], step, strict=True))
        tensor = torch.from_numpy(pad_to_patch(item, size, config.preprocessing.edge_slices))  # type: ignore[arg-type]
        result.append((tensor[:-1], tensor[-1:]))
    return result
