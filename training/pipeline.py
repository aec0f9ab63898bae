"""The stages of the paper, from slice labels to ONNX, and what each reads and writes.

prepare      images -> working grid, stripped             prepare/<case>.npz
classify     slices + labels -> ResNet                    classify/network.pt
sequence     volumes + labels -> ResNet (by LSTM)         sequence/network.pt
cam          ResNet -> maps of positive slices            cam/<case>.npz
pseudolabel  maps -> masks, by K-means and differential   pseudolabel/<case>.npz, choices.csv, panels/
segment      pseudo-labels -> 3D U-Net                    segment/network.pt
export       U-Net -> ONNX + manifest                     export/hemseg.onnx, manifest.json
evaluate     ONNX -> Dice etc. on the test split          evaluate/per_case.csv, summary.json
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

import hemseg
from hemseg.errors import HemsegError
from hemseg.preprocessing import WorkingGrid, smoothed
from hemseg.volume import read
from training.cam import activation_maps
from training.classifier import (
    SliceNetwork,
    Volumes,
    cut,
    field,
    paste,
    to_network_size,
    train_classifier,
    train_sequence,
)
from training.config import Config
from training.datasets import DataSet, Prepared, prepare, prepared, read_reference
from training.evaluation import METRICS_VERSION, evaluate, network_predictor, write_table
from training.export import export_model
from training.fitting import load_network
from training.hardware import Hardware
from training.panels import write_panel
from training.pseudolabels import choose
from training.segmenter import build_unet, train_segmenter
from training.stages import Stage, console, fingerprint, minutes

WEAK = ("train", "val")  # what the weakly supervised stages may see, and of it the slice labels alone


@dataclass(frozen=True)
class Variant:
    """A row of the ablation (the paper's Table 2): what is left out of the recipe, or put in its place.

    Its stages have names of their own (``segment@resnet``) from the first one that differs; those before are shared.
    """

    lstm: bool = True
    kmeans: bool = True
    reference: bool = False  # train the U-Net on reference masks: the fully supervised upper bound

    @property
    def network(self) -> str:
        """Suffix of the stages that depend on the classifier alone."""
        return "" if self.lstm else "@resnet"

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
    source = f"pseudolabel{own}"

    def cases(*splits: str) -> list[Prepared]:
        return list(prepared(run / "prepare", dataset, *splits))

    def volumes(*splits: str) -> Volumes:
        return Volumes(cases(*splits), config)

    def classifier() -> SliceNetwork:
        network = SliceNetwork(replace(config.classifier, pretrained=""))
        return load_network(network, run / f"sequence{net}" / "network.pt")  # type: ignore[return-value]

    def labels() -> dict[str, np.ndarray]:
        return {c.name: _load(run / source, c.name)["mask"] for c in dataset.part(*WEAK)}

    def export(folder: Path) -> dict[str, Any]:
        network = build_unet(config.segmenter, len(config.preprocessing.channels))
        load_network(network, run / f"segment{own}" / "network.pt")
        provenance = {
            "data": f"{dataset.name}: {len(dataset.part('train'))} train and {len(dataset.part('val'))} val patients",
            "supervision": "reference masks" if variant.reference else "slice labels",
            "config": config.name,
            "config_hash": fingerprint(config),
            "minutes": minutes(run),
            "hemseg": hemseg.__version__,
            "torch": torch.__version__,
        }
        return export_model(network, config, folder, provenance)

    table = [
        Stage(
            "prepare",
            (),
            (config.preprocessing, dataset.fingerprint),
            lambda f: prepare(dataset, config.preprocessing, f),
        ),
        Stage(
            "classify",
            ("prepare",),
            (config.classifier, config.seed, dataset.splits),
            lambda f: train_classifier(volumes("train"), volumes("val"), config, f, hardware),
            distributed=True,
        ),
        Stage(
            f"sequence{net}",
            ("classify",),
            (config.sequence,),
            lambda f: train_sequence(
                volumes("train"), volumes("val"), run / "classify" / "network.pt", config, f, hardware
            ),
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
            (config.segmenter,),
            lambda f: train_segmenter(cases("train"), cases("val"), labels(), config, f, hardware),
            distributed=True,
        ),
        Stage(f"export{own}", (f"segment{own}",), (config.name, hemseg.__version__), export),
        Stage(
            f"evaluate{own}",
            (f"export{own}",),
            (METRICS_VERSION,),
            lambda f: evaluate(dataset, network_predictor(run / f"export{own}"), f),
        ),
    ]
    stages = {stage.name: stage for stage in table}
    if variant.reference:  # reference masks take the place of the pseudo-labels
        stages[source] = Stage(source, ("prepare",), (), lambda f: reference_labels(dataset, config, f))
    return stages


def reference_labels(dataset: DataSet, config: Config, folder: Path) -> dict[str, int]:
    """Reference masks of train and val on the working grid: for the fully supervised upper bound, and nothing else."""
    cases = dataset.part(*WEAK)
    for case in track(cases, "reference", console=console):
        if case.reference is None:
            raise HemsegError(f"{case.image}: has no reference mask, which the supervised upper bound needs.")
        volume = read(case.image)
        mask = volume.with_voxels(read_reference(case.reference).astype(np.float32))
        array, spacing = mask.in_lps()
        grid = WorkingGrid.of(array.shape, spacing, config.preprocessing)
        np.savez_compressed(folder / f"{case.name}.npz", mask=grid.from_scan(array) >= 0.5)
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
    cases: list[Prepared], network: SliceNetwork, config: Config, maps: Path, folder: Path, panels: int = 8
) -> dict[str, Any]:
    """Pseudo-labels of all weak cases: empty on negative slices. Writes masks, the log of choices, and some panels."""
    settings, background = config.pseudolabels, config.preprocessing.hu_range[0]
    rows = []
    for number, case in enumerate(track(cases, "pseudolabel", console=console)):
        hu, corner = field(case, config.classifier, config.preprocessing.in_plane_mm, background)
        size = (hu.shape[1], hu.shape[2])
        inside = cut(case.intracranial, corner, size, False)
        intensities = smoothed(hu, config.preprocessing) if settings.smooth else hu
        mask = np.zeros(case.hu.shape, bool)
        saved = _load(maps, case.name)
        shown = []
        for z, activation in zip(saved["slices"], saved["maps"].astype(np.float32), strict=True):
            window = cut(activation[None], corner, size, 0.0)[0]
            choice = choose(
                hu[z], intensities[z], window, inside[z], network, config.classifier, settings, background, config.seed
            )
            mask[z] = paste(choice.mask[None], corner, (1, *mask.shape[1:]))[0]
            shown.append((hu[z], window, choice))
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
        np.savez_compressed(folder / f"{case.name}.npz", mask=mask)
        if number < panels and shown:
            write_panel(shown, config.preprocessing.hu_range, folder / "panels" / f"{case.name}.png")
    if rows:
        write_table(rows, folder / "choices.csv")
    chosen = [row for row in rows if row["chosen"]]
    return {
        "slices": len(chosen),
        "mean_hu": float(np.mean([row["mean_hu"] for row in chosen])) if chosen else float("nan"),
    }


def _load(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)
