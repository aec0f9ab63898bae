"""What the stages of a run share: configuration, data, folder, variant, hardware, and the files of earlier stages."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from hemseg.errors import HemsegError
from hemseg.manifest import Manifest, default_weights

from ..config import Config
from ..data.datasets import Case, DataSet, Prepared, prepared
from ..data.permuted import permuted, permuted_singles
from ..data.slice_kinds import kinds_of_data_sets
from ..fitting.classifier import Volumes
from ..fitting.hardware import Hardware
from ..fitting.trainer import load_network
from ..networks.slice_network import SliceNetwork, untrained_network
from ..networks.unet import UNLOCATED, build_unet
from ..rounds import later_rounds, round_config
from ..stage_names import NETWORK, StageNames, Variant, stage_names
from .initial_weights import InitialWeights, find_initial_weights
from .train_masks import describe_mask_supervision, train_cases_with_masks

UNPAINTED = "unpainted"  # folder, in the classifier's, of the one without painted slices
WEAK = ("train", "val")  # what the weakly supervised stages may see, and of it the slice labels alone


@dataclass(frozen=True, eq=False)
class Context:
    """What the steps of a run have in common; each gets it and the folder that it writes to.

    Attributes:
        config: the configuration with the variant's changes (`vary`).
        run: the run's folder, with a folder per stage.
    """

    config: Config
    dataset: DataSet
    run: Path
    variant: Variant = field(default_factory=Variant)
    hardware: Hardware = field(default_factory=Hardware)

    @cached_property
    def names(self) -> StageNames:
        """Of this variant's stages."""
        return stage_names(self.variant, 0 if self.variant.reference else later_rounds(self.config))

    @cached_property
    def strip_file(self) -> Path | None:
        """The ONNX file of the learned skull strip that the configuration asks for."""
        return strip_path(self.config)

    @cached_property
    def strip_sha256(self) -> str:
        """Of `strip_file`; '' without one."""
        return hashlib.sha256(self.strip_file.read_bytes()).hexdigest() if self.strip_file else ""

    @cached_property
    def initial(self) -> InitialWeights | None:
        """The weights that training starts from, where the configuration names some that fit it."""
        found = find_initial_weights(self.config.init)
        if found:
            found.check(self.config)
        return found

    @cached_property
    def cases_with_masks(self) -> list[Case]:
        """The train cases whose reference masks the U-Net learns from; none except in a variant with `masks`."""
        if not self.variant.masks:
            return []
        return train_cases_with_masks(self.dataset.without(self.config.without.segment))

    @property
    def supervision(self) -> str:
        """What labels the U-Net learns from, for the manifest."""
        if self.variant.reference:
            return "reference masks"
        labels = "permuted slice labels" if self.variant.permuted else "slice labels"
        if not self.cases_with_masks:
            return labels
        return f"{labels}; {describe_mask_supervision(self.cases_with_masks, self.dataset)}"

    @cached_property
    def classifier(self) -> SliceNetwork:
        """The trained slice classifier; evaluation asks for it once per case."""
        return self.slice_network(self.names.sequence)

    @cached_property
    def cam_network(self) -> SliceNetwork:
        """The same with the finer maps that `config.Cam` wants."""
        stride = self.config.cam.output_stride
        return self.slice_network(self.names.sequence, stride) if stride else self.classifier

    @cached_property
    def second_opinion_networks(self) -> list[SliceNetwork]:
        """The slice classifiers that give the second opinion: before the LSTM, and that without painted slices."""
        stages = [self.names.classify]
        if self.config.classifier.unpainted:
            stages.append(f"{self.names.classify}/{UNPAINTED}")
        return [self.slice_network(stage) for stage in stages]

    def slice_network(self, stage: str, output_stride: int = 0) -> SliceNetwork:
        """The slice classifier as a stage left it; with another output stride than it was trained with unless 0."""
        own = self.config.classifier
        network = untrained_network(replace(own, output_stride=output_stride or own.output_stride))
        return load_network(network, self.network_file(stage))  # type: ignore[return-value]

    def network_file(self, stage: str) -> Path:
        """The weights that a stage wrote."""
        return self.run / stage / NETWORK

    def unet(self, stage: str) -> torch.nn.Module:
        """The U-Net that a stage trained."""
        own = self.round_config(self.names.unets.index(stage))
        network = build_unet(own.segmenter, len(own.preprocessing.channels))
        return load_network(network, self.network_file(stage))

    def round_config(self, number: int) -> Config:
        """The configuration that a round's U-Net is trained by, see `rounds`."""
        return round_config(self.config, number)

    def cases(self, *splits: str, without: tuple[str, ...] = ()) -> list[Prepared]:
        """Prepared scans of some splits, but for those of the data sets ``without``."""
        found = list(prepared(self.run / self.names.prepare, self.dataset.without(without), *splits))
        if not self.variant.permuted:
            return found
        return [permuted(case, self.config.seed, self.single_labels) for case in found]

    def require(self, stage: str, splits: tuple[str, ...], without: tuple[str, ...] = ()) -> None:
        """Raises HemsegError where a split that a stage needs has no case; data sets ``without`` do not count."""
        present = self.dataset.without(without)
        if lacking := [split for split in splits if not present.part(split)]:
            others = f" but for those of {', '.join(without)}" if without else ""
            raise HemsegError(
                f"{self.dataset.name}: no case{others} is in the split {' or '.join(lacking)}, which {stage} needs; "
                "add cases, or put some there in split.csv."
            )

    def train_and_val(self, without: tuple[str, ...]) -> tuple[list[Prepared], list[Prepared]]:
        """What a network learns from and is validated on."""
        return self.cases("train", without=without), self.cases("val", without=without)

    def volumes(self, without: tuple[str, ...]) -> tuple[Volumes, Volumes]:
        """The same as the classifier sees them."""
        train, val = self.train_and_val(without)
        return Volumes(train, self.config, self.slice_kinds), Volumes(val, self.config)

    @cached_property
    def single_labels(self) -> dict[str, int]:
        """Labels of scans of one slice, shuffled among them, where labels are permuted; of all data sets and splits, so
        that each stage sees the same ones."""
        return permuted_singles(self.dataset, self.config.seed)

    @cached_property
    def slice_kinds(self) -> dict[str, np.ndarray]:
        """Kinds of hemorrhage of slices, by case, where the classifier is to learn them and labels are not permuted."""
        if not self.config.classifier.kinds or self.variant.permuted:
            return {}
        return kinds_of_data_sets(self.dataset)

    def labels(self, stage: str) -> dict[str, np.ndarray]:
        """The labels that a stage wrote for all weak cases, as the U-Net is to learn them; masks where they count."""
        found = {case.name: unet_label(load_case(self.run / stage, case.name)) for case in self.dataset.part(*WEAK)}
        masks = self.run / self.names.masks
        return found | {case.name: unet_label(load_case(masks, case.name)) for case in self.cases_with_masks}

    def false_peaks(self, stage: str) -> dict[str, float]:
        """How sure the U-Net of the round before was of blood in healthy single slices, where ``stage`` wrote it."""
        saved = ((case.name, load_case(self.run / stage, case.name)) for case in self.dataset.part("train"))
        return {name: float(file["false_peak"]) for name, file in saved if "false_peak" in file}


def vary(config: Config, variant: Variant) -> Config:
    """The configuration of a variant."""
    if not variant.lstm:
        config = replace(config, sequence=replace(config.sequence, enabled=False))
    if not variant.kmeans:
        config = replace(config, pseudolabels=replace(config.pseudolabels, clusters=0))
    return config


def strip_path(config: Config) -> Path | None:
    """The ONNX file of the learned skull strip that a configuration asks for; None: the paper's steps.

    Raises:
        HemsegError: there is no such file, or hemseg's weights have none.
    """
    if not config.strip:
        return None
    if config.strip != "weights":
        path = Path(config.strip)
    else:
        folder = default_weights()
        path = folder / (Manifest.read(folder).strip_file or "strip.onnx")
    if not path.is_file():
        raise HemsegError(f"{path}: there is no such file; the configuration's `strip` names a learned skull strip.")
    return path


def unet_label(saved: dict[str, np.ndarray]) -> np.ndarray:
    """A saved pseudo-label as the U-Net is to learn it, int8 (z, y, x): 1, 0, and `UNLOCATED` for whole slices."""
    label = saved["mask"].astype(np.int8)
    if "left_out" in saved:
        label[saved["left_out"]] = UNLOCATED
    return label


def load_case(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays that a stage saved for a case."""
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)
