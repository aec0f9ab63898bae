"""The stages of the paper, from slice labels to ONNX, and what each reads and writes.

prepare      images -> working grid, stripped             prepare/<case>.npz
classify     slices + labels -> ResNet                    classify/network.pt
sequence     volumes + labels -> ResNet (by LSTM)         sequence/network.pt
cam          ResNet -> maps of positive slices            cam/<case>.npz
pseudolabel  maps -> masks, by K-means and differential   pseudolabel/<case>.npz, choices.csv
segment      pseudo-labels -> 3D U-Net                    segment/network.pt
relabel      U-Net -> labels of a second round (optional) relabel/<case>.npz
resegment    those -> U-Net, trained on     (optional)    resegment/network.pt
export       U-Net -> ONNX + manifest                     export/hemseg.onnx, manifest.json
panels       all of it -> pictures like the paper's Fig. 3  panels/<case>.png
evaluate     ONNX -> Dice etc. on the test split          evaluate/per_case.csv, summary.json
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

import hemseg
from hemseg.errors import HemsegError
from hemseg.model import Manifest, default_weights, load, load_strip
from hemseg.preprocessing import PREPROCESSING_VERSION, smoothed, working_image
from hemseg.scan import read
from hemseg.segmentation import working_probability

from ..config import Config, Segmenter
from ..data.datasets import Case, DataSet, Prepared, prepare, prepared
from ..evaluation.evaluate import METRICS_VERSION, evaluate, network_predictor, write_table
from ..evaluation.panels import Shown, write_panel
from ..evaluation.quality import reference_on_grid
from ..export.to_onnx import STATES, export_model, write_states
from ..fitting.classifier import (
    SliceNetwork,
    Slices,
    Volumes,
    cut,
    field,
    network_slices,
    paste,
    predicted,
    to_network_size,
    train_classifier,
    train_sequence,
)
from ..fitting.hardware import Hardware
from ..fitting.painted_slices import painted_slices
from ..fitting.segmenter import LEFT_OUT, build_unet, train_segmenter
from ..fitting.trainer import load_network
from ..labels.cam import activation_maps
from ..labels.clusters import METHODS, choose
from ..labels.components import choose_pieces
from ..labels.outline import half_maximum
from ..labels.self_training import false_peak, relabelled, teacher_probability
from .runner import Stage, console, fingerprint, minutes

WEAK = ("train", "val")  # what the weakly supervised stages may see, and of it the slice labels alone


@dataclass(frozen=True)
class Variant:
    """A row of the ablation (the paper's Table 2): what is left out of the recipe, or put in its place.

    Its stages have names of their own (``segment@resnet``) from the first one that differs; those before are shared.
    """

    lstm: bool = True
    kmeans: bool = True
    reference: bool = False  # train the U-Net on reference masks: the fully supervised upper bound
    permuted: bool = False  # shuffle the slice labels within each volume: a control that has to fail

    @property
    def slices(self) -> str:
        """Suffix of the classifier's first stage."""
        return "@permuted" if self.permuted else ""

    @property
    def network(self) -> str:
        """Suffix of the stages that depend on the classifier alone."""
        return self.slices + ("" if self.lstm else "@resnet")

    @property
    def labels(self) -> str:
        """Suffix of the stages from the pseudo-labels on."""
        if self.reference:
            return "@supervised"
        return self.network + ("" if self.kmeans else ("-" if self.network else "@") + "threshold")


def build_stages(
    config: Config, dataset: DataSet, run: Path, variant: Variant | None = None, hardware: Hardware | None = None
) -> dict[str, Stage]:
    """The stages of a run, by name, in order."""
    variant, hardware = variant or Variant(), hardware or Hardware()
    if not variant.lstm:
        config = replace(config, sequence=replace(config.sequence, enabled=False))
    if not variant.kmeans:
        config = replace(config, pseudolabels=replace(config.pseudolabels, clusters=0))
    net, own = variant.network, variant.labels
    first, source = f"classify{variant.slices}", f"pseudolabel{own}"
    again, absent = config.self_training, config.without
    twice = again.enabled and not variant.reference
    rounds = [f"{number if number > 1 else ''}{own}" for number in range(1, again.rounds + 1)] if twice else []
    unets = [f"segment{own}", *(f"resegment{suffix}" for suffix in rounds)]
    marks = [source, *(f"relabel{suffix}" for suffix in rounds)]
    last = unets[-1]

    strip_file = strip_path(config)
    strip_mark = (hashlib.sha256(strip_file.read_bytes()).hexdigest(),) if strip_file else ()
    strip = load_strip(strip_file, *strip_mark) if strip_file else None

    def cases(*splits: str, without: tuple[str, ...] = ()) -> list[Prepared]:
        found = list(prepared(run / "prepare", dataset.without(without), *splits))
        return [permuted(case, config.seed) for case in found] if variant.permuted else found

    def both(without: tuple[str, ...]) -> tuple[list[Prepared], list[Prepared]]:
        return cases("train", without=without), cases("val", without=without)

    def volumes(without: tuple[str, ...]) -> tuple[Volumes, Volumes]:
        train, val = both(without)
        return Volumes(train, config), Volumes(val, config)

    def paint(without: tuple[str, ...]) -> Slices | None:
        return painted_slices(cases("train", without=without), config) if config.classifier.painted else None

    @cache  # evaluation asks for it once a case
    def classifier() -> SliceNetwork:
        network = SliceNetwork(replace(config.classifier, pretrained=""))
        return load_network(network, run / f"sequence{net}" / "network.pt")  # type: ignore[return-value]

    def labels(stage: str) -> dict[str, np.ndarray]:
        return {c.name: label_of(_load(run / stage, c.name)) for c in dataset.part(*WEAK)}

    def false_peaks(stage: str) -> dict[str, float]:
        saved = ((c.name, _load(run / stage, c.name)) for c in dataset.part("train"))
        return {name: float(file["false_peak"]) for name, file in saved if "false_peak" in file}

    def unet(stage: str) -> torch.nn.Module:
        network = build_unet(config.segmenter, len(config.preprocessing.channels))
        return load_network(network, run / stage / "network.pt")

    def slice_scores(case: Case) -> np.ndarray:
        """The classifier's logits, one a slice of the scan, from inferior to superior."""
        (found,) = prepared(run / "prepare", replace(dataset, cases=(case,)), case.split)
        logits = predicted(classifier(), network_slices(found, config)).numpy()
        return np.repeat(logits, -(-len(case.labels) // len(logits)))[: len(case.labels)]

    def export(folder: Path) -> dict[str, Any]:
        network = unet(last)
        provenance = {
            "data": f"{dataset.name}: {len(dataset.part('train'))} train and {len(dataset.part('val'))} val cases",
            "supervision": "reference masks" if variant.reference else "slice labels",
            "config": config.name,
            "config_hash": fingerprint(config),
            "minutes": minutes(run),
            "hemseg": hemseg.__version__,
            "torch": torch.__version__,
        }
        write_states({"unet": network} | ({} if variant.reference else {"classifier": classifier()}), folder / STATES)
        return export_model(network, config, folder, provenance, strip_file)

    def self_training(number: int, teacher: str, before: str, suffix: str) -> list[Stage]:
        """The two stages of a round: new labels by the U-Net before, and that U-Net trained on."""
        own_settings = replace(again, rounds=1)  # one more round does not change those before it
        return [
            Stage(
                f"relabel{suffix}",
                (teacher, before),
                (own_settings, config.pseudolabels.refine_mm),
                lambda f: relabel(cases(*WEAK), unet(teacher), config, run / before, f),
            ),
            Stage(
                f"resegment{suffix}",
                (f"relabel{suffix}",),
                (own_settings,),
                lambda f: train_segmenter(
                    *both(absent.segment),
                    labels(f"relabel{suffix}"),
                    later_round(config, number),
                    f,
                    hardware,
                    run / teacher / "network.pt",
                    false_peaks(f"relabel{suffix}"),
                ),
                distributed=True,
            ),
        ]

    table = [
        Stage(
            "prepare",
            (),
            (config.preprocessing, PREPROCESSING_VERSION, dataset.fingerprint, *strip_mark),
            lambda f: prepare(dataset, config.preprocessing, f, strip),
        ),
        Stage(
            first,
            ("prepare",),
            (config.classifier, config.seed, dataset.splits, *named(absent.classify)),
            lambda f: train_classifier(*volumes(absent.classify), config, f, hardware, paint(absent.classify)),
            distributed=True,
        ),
        Stage(
            f"sequence{net}",
            (first,),
            (config.sequence, *named(absent.sequence)),
            lambda f: train_sequence(*volumes(absent.sequence), run / first / "network.pt", config, f, hardware),
            distributed=True,
        ),
        Stage(
            f"cam{net}", (f"sequence{net}",), (config.cam,), lambda f: make_maps(cases(*WEAK), classifier(), config, f)
        ),
        Stage(
            source,
            (f"cam{net}",),
            (config.pseudolabels,),
            lambda f: make_pseudolabels(cases(*WEAK), classifier(), config, run / f"cam{net}", f),
        ),
        Stage(
            f"segment{own}",
            (source,),
            (trained_part(config.segmenter), *named(absent.segment)),
            lambda f: train_segmenter(*both(absent.segment), labels(source), config, f, hardware),
            distributed=True,
        ),
        *(
            stage
            for number in range(1, len(unets))
            for stage in self_training(number, unets[number - 1], marks[number - 1], rounds[number - 1])
        ),
        Stage(
            f"export{own}",
            (last,),
            (
                config.name,
                config.export,
                config.segmenter.threshold,
                config.segmenter.min_lesion_ml,
                config.segmenter.min_peak,
                config.segmenter.max_median_hu,
                hemseg.__version__,
                *([config.segmenter.operating_points] if config.segmenter.operating_points else []),
                *named((config.weights_license,) if config.weights_license != Config.weights_license else ()),
            ),
            export,
        ),
        Stage(f"panels{own}", (f"export{own}",), (), lambda f: make_panels(dataset, config, run, variant, f)),
        Stage(
            f"evaluate{own}",
            (f"export{own}",),
            (METRICS_VERSION,),
            lambda f: evaluate(
                dataset,
                network_predictor(run / f"export{own}"),
                f,
                classify=None if variant.reference else slice_scores,
            ),
        ),
    ]
    stages = {stage.name: stage for stage in table}
    if variant.reference:  # reference masks take the place of the pseudo-labels
        stages[source] = Stage(source, ("prepare",), (), lambda f: reference_labels(dataset, config, f))
    return stages


def named(without: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Data sets that a stage leaves out, as a part of its fingerprint; nothing when it leaves none out."""
    return (without,) if without else ()


def permuted(case: Prepared, seed: int) -> Prepared:
    """The case with the labels of its slices shuffled among them; slices that carry none keep their place."""
    labels, known = case.labels.copy(), case.labels >= 0
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    labels[known] = rng.permutation(labels[known])
    return replace(case, labels=labels)


def reference_labels(dataset: DataSet, config: Config, folder: Path) -> dict[str, int]:
    """Reference masks of train and val on the working grid: for the fully supervised upper bound, and nothing else."""
    cases = dataset.part(*WEAK)
    for case in track(cases, "reference", console=console):
        if case.reference is None:
            raise HemsegError(f"{case.image}: has no reference mask, which the supervised upper bound needs.")
        np.savez_compressed(folder / f"{case.name}.npz", mask=reference_on_grid(case, config.preprocessing))
    return {"cases": len(cases)}


def make_maps(cases: list[Prepared], network: SliceNetwork, config: Config, folder: Path) -> dict[str, int]:
    """Activation maps of the positive slices, on the working grid; float16 (slice, y, x), one .npz a case."""
    background = config.preprocessing.hu_range[0]
    for case in track(cases, "cam", console=console):
        positive = np.flatnonzero(case.labels == 1)
        hu, corner = field(case, config.classifier, config.preprocessing.in_plane_mm, background)
        maps = np.zeros((0, *case.hu.shape[1:]), np.float16)
        if len(positive):
            window = torch.from_numpy(np.ascontiguousarray(hu[positive]))
            activation = activation_maps(network, to_network_size(window, config.classifier), config.cam)
            shown = torch.nn.functional.interpolate(activation[:, None], hu.shape[1:], mode="bilinear")[:, 0]
            maps = paste(shown.numpy(), corner, (len(positive), *case.hu.shape[1:])).astype(np.float16)
        np.savez_compressed(folder / f"{case.name}.npz", maps=maps, slices=positive)
    return {"slices": sum(int((c.labels == 1).sum()) for c in cases)}


def make_pseudolabels(
    cases: list[Prepared], network: SliceNetwork, config: Config, maps: Path, folder: Path
) -> dict[str, Any]:
    """Pseudo-labels of all weak cases: empty on negative slices. Writes masks and the log of choices."""
    settings, background = config.pseudolabels, config.preprocessing.hu_range[0]
    if settings.method not in METHODS:
        raise HemsegError(f"pseudolabels.method {settings.method!r} is not known; known: {', '.join(METHODS)}.")
    rows, left_out = [], 0
    for case in track(cases, "pseudolabel", console=console):
        hu, corner = field(case, config.classifier, config.preprocessing.in_plane_mm, background)
        size = (hu.shape[1], hu.shape[2])
        inside = cut(case.intracranial, corner, size, False)
        intensities = smoothed(hu, config.preprocessing) if settings.smooth else hu
        mask, clusters = np.zeros(case.hu.shape, bool), np.zeros(case.hu.shape, np.int8)
        saved = _load(maps, case.name)
        for z, activation in zip(saved["slices"], saved["maps"].astype(np.float32), strict=True):
            window = cut(activation[None], corner, size, 0.0)[0]
            where = (hu[z], intensities[z], window, inside[z], network, config.classifier, settings)
            by_pieces = settings.method == "pieces"
            choice = (
                choose_pieces(*where, config.preprocessing.in_plane_mm)
                if by_pieces
                else choose(*where, background, config.seed)
            )
            if settings.refine_mm:
                mm = config.preprocessing.in_plane_mm
                outline = half_maximum(choice.mask, intensities[z], inside[z], round(settings.refine_mm / mm), mm)
                choice = replace(choice, mask=outline)
            mask[z] = paste(choice.mask[None], corner, (1, *mask.shape[1:]))[0]
            clusters[z] = paste(choice.clusters[None], corner, (1, *mask.shape[1:]))[0]
            for i, (n, mean, drop) in enumerate(zip(choice.sizes, choice.means, choice.drops, strict=True), start=1):
                row = {
                    "case": case.name,
                    "slice": int(z),
                    "cluster": i,
                    "pixels": n,
                    "mean_hu": mean,
                    "logit_drop": drop,
                }
                rows.append(row | {"chosen": int(i == choice.chosen)})
        empty = (case.labels == 1) & ~mask.any(axis=(1, 2)) & settings.leave_out_empty
        np.savez_compressed(folder / f"{case.name}.npz", mask=mask, clusters=clusters, left_out=empty)
        left_out += int(empty.sum())
    if rows:
        write_table(rows, folder / "choices.csv")
    chosen = [row for row in rows if row["chosen"]]
    return {
        "slices": len(chosen),
        "left_out": left_out,
        "mean_hu": float(np.mean([row["mean_hu"] for row in chosen])) if chosen else float("nan"),
    }


def trained_part(settings: Segmenter) -> Segmenter:
    """The settings that training depends on; those that clean up its answer are at their defaults."""
    return replace(settings, threshold=0.5, min_lesion_ml=0.0, min_peak=0.0, max_median_hu=0.0, operating_points={})


def later_round(config: Config, number: int) -> Config:
    """The configuration of a round's U-Net (from 1): the first one's, with a schedule and a seed of its own."""
    own = config.self_training
    segmenter = replace(
        config.segmenter,
        optimization=own.optimization,
        patches_per_case=own.patches_per_case,
        single_slices=own.single_slices or config.segmenter.single_slices,
    )
    return replace(config, seed=config.seed + number, segmenter=segmenter)


def relabel(
    cases: list[Prepared], network: torch.nn.Module, config: Config, labels: Path, folder: Path
) -> dict[str, Any]:
    """Labels of the second round (`training.labels.self_training`); one .npz a case, like the first round's."""
    settings, changed, left_out, healthy = config.self_training, [], 0, 0
    for case in track(cases, "relabel", console=console):
        before = _load(labels, case.name)["mask"]
        mask = np.zeros_like(before)
        hard: dict[str, Any] = {}
        if settings.hard_negatives and case.split == "train" and len(case.hu) == 1 and case.labels[0] == 0:
            if healthy % settings.hard_negatives == 0:
                hard = {"false_peak": false_peak(network, case, config)}
            healthy += 1
        if (case.labels == 1).any():
            probability = teacher_probability(network, case, config)
            reach = config.pseudolabels.refine_mm
            mask = relabelled(case, before, probability, settings, config.preprocessing, reach)
            both = int((mask & before).sum())
            changed.append(2 * both / max(1, int(mask.sum() + before.sum())))
        empty = (case.labels == 1) & ~mask.any(axis=(1, 2)) & config.pseudolabels.leave_out_empty
        left_out += int(empty.sum())
        np.savez_compressed(folder / f"{case.name}.npz", mask=mask, left_out=empty, **hard)
    return {"dice_to_first": float(np.mean(changed)) if changed else float("nan"), "left_out": left_out}


def make_panels(
    dataset: DataSet, config: Config, run: Path, variant: Variant, folder: Path, most: int = 12
) -> dict[str, int]:
    """Fig. 3 of the paper for some patients of val: slice, map, clusters, pseudo-label, prediction, reference."""
    model = load(run / f"export{variant.labels}", "cpu")
    by_name = {case.name: case for case in dataset.part("val")}
    shown = [case for case in prepared(run / "prepare", dataset, "val") if (case.labels == 1).any()]
    for case in track(shown[:: max(1, -(-len(shown) // most))], "panels", console=console):
        maps = _load(run / f"cam{variant.network}", case.name)
        label = _load(run / f"pseudolabel{variant.labels}", case.name)
        found = working_probability(
            working_image(read(by_name[case.name].image), config.preprocessing, model.strip), model
        )
        reference = None
        if by_name[case.name].reference:
            reference = reference_on_grid(by_name[case.name], config.preprocessing)
        rows = [
            Shown(
                case.hu[z],
                activation.astype(np.float32),
                label["clusters"][z] if "clusters" in label else None,
                label["mask"][z],
                found[z] >= model.manifest.threshold,
                None if reference is None else reference[z],
            )
            for z, activation in zip(maps["slices"], maps["maps"], strict=True)
        ]
        write_panel(rows, config.preprocessing.hu_range, folder / f"{case.name}.png")
    return {"patients": len(list(folder.glob("*.png")))}


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


def label_of(saved: dict[str, np.ndarray]) -> np.ndarray:
    """A saved pseudo-label as the U-Net is to learn it, int8 (z, y, x): 1, 0, and `LEFT_OUT` for whole slices."""
    label = saved["mask"].astype(np.int8)
    if "left_out" in saved:
        label[saved["left_out"]] = LEFT_OUT
    return label


def _load(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)
