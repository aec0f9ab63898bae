"""What each stage does: reads what earlier stages wrote, writes its own folder, returns metrics for ``done.json``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

import hemseg
from hemseg.errors import HemsegError
from hemseg.fields_of_view import cut
from hemseg.model import load, load_strip
from hemseg.preprocessing import smoothed, working_image
from hemseg.scan import read
from hemseg.sliding_window import working_probability

from ..config import Config
from ..console import console
from ..data.datasets import Case, Prepared, prepare, prepared
from ..data.field_of_view import crop_field_of_view, network_slices, paste, to_network_size
from ..evaluation.evaluate import evaluate, network_predictor
from ..evaluation.panels import PanelRow, write_panel
from ..evaluation.quality import reference_on_grid
from ..evaluation.tables import write_table
from ..export.classifier import export_classifier
from ..export.to_onnx import STATES, export_model, rounded, write_states
from ..fitting.classifier import predict, train_classifier, train_sequence
from ..fitting.painted_slices import painted_slices
from ..fitting.segmenter import train_segmenter
from ..labels.cam import activation_maps
from ..labels.differential import Choice, Probe, SliceView
from ..labels.methods import choose_method
from ..labels.outline import half_maximum
from ..labels.self_training import false_peak, relabel_case, teacher_probability
from ..rounds import first_round_of_network, starts_new_network
from .context import UNPAINTED, WEAK, Context, load_case
from .initial_weights import combined_supervision, copy_license, with_combined_license
from .runner import fingerprint, stage_minutes
from .train_masks import write_mask_labels


def prepare_scans(context: Context, folder: Path) -> dict[str, Any]:
    """Every scan on the working grid, without what lies outside the skull."""
    strip = load_strip(context.strip_file, context.strip_sha256) if context.strip_file else None
    return prepare(context.dataset, context.config.preprocessing, folder, strip)


def train_on_slices(context: Context, folder: Path) -> dict[str, Any]:
    """The slice classifier, on slices and, if so configured, on painted copies of them; and one without these."""
    without = context.config.without.classify
    paint = None
    if context.config.classifier.painted and context.config.classifier.optimization.epochs:
        cases, workers = context.cases("train", without=without), context.hardware.workers
        paint = painted_slices(cases, context.config, context.slice_kinds, workers)
    start, volumes = context.initial.classifier if context.initial else None, context.volumes(without)
    metrics = train_classifier(*volumes, context.config, folder, context.hardware, paint, start)
    if context.config.classifier.unpainted:
        start, config = context.initial.unpainted if context.initial else None, without_paint(context.config)
        other = train_classifier(*volumes, config, folder / UNPAINTED, context.hardware, start=start)
        metrics |= {f"{UNPAINTED}_{name}": value for name, value in other.items()}
    return metrics


def without_paint(config: Config) -> Config:
    """The configuration of the classifier that learns the data's own slices alone."""
    own = config.classifier
    epochs = own.unpainted if own.optimization.epochs and not own.unpainted_stays else 0
    schedule = replace(own.optimization, epochs=epochs, patience=epochs)
    return replace(config, classifier=replace(own, painted=0, optimization=schedule))


def train_through_lstm(context: Context, folder: Path) -> dict[str, Any]:
    """The classifier's backbone, trained on through the LSTM."""
    start = context.network_file(context.names.classify)
    volumes = context.volumes(context.config.without.sequence)
    return train_sequence(*volumes, start, context.config, folder, context.hardware)


def make_maps(context: Context, folder: Path) -> dict[str, Any]:
    """Activation maps of the positive slices, on the working grid; float16 (slice, y, x), one .npz per case."""
    config, cases = context.config, context.cases(*WEAK)
    for case in track(cases, "cam", console=console):
        positive = np.flatnonzero(case.labels == 1)
        hu, corner = crop_field_of_view(case, config)
        maps = np.zeros((0, *case.hu.shape[1:]), np.float16)
        if len(positive):
            window = torch.from_numpy(np.ascontiguousarray(hu[positive]))
            activation = activation_maps(context.cam_network, to_network_size(window, config.classifier), config.cam)
            shown = torch.nn.functional.interpolate(activation[:, None], hu.shape[1:], mode="bilinear")[:, 0]
            maps = paste(shown.numpy(), corner, (len(positive), *case.hu.shape[1:])).astype(np.float16)
        np.savez_compressed(folder / f"{case.name}.npz", maps=maps, slices=positive)
    return {"slices": sum(int((c.labels == 1).sum()) for c in cases)}


def make_pseudolabels(context: Context, folder: Path) -> dict[str, Any]:
    """Pseudo-labels of all weak cases: empty on negative slices. Writes masks and the log of choices."""
    settings = context.config.pseudolabels
    method, probe = choose_method(settings.method), Probe(context.classifier, context.config.classifier)
    rows: list[dict[str, Any]] = []
    left_out = 0
    for case in track(context.cases(*WEAK), "pseudolabel", console=console):
        mask, candidates = np.zeros(case.hu.shape, bool), np.zeros(case.hu.shape, np.int8)
        for z, corner, view in slice_views(case, context.config, context.run / context.names.cam):
            choice = refine_outline(method(view, probe, settings), view, settings.refine_mm)
            mask[z] = paste(choice.mask[None], corner, (1, *mask.shape[1:]))[0]
            candidates[z] = paste(choice.candidates[None], corner, (1, *mask.shape[1:]))[0]
            rows += choice_rows(case.name, z, choice)
        empty = (case.labels == 1) & ~mask.any(axis=(1, 2)) & settings.leave_out_empty
        np.savez_compressed(folder / f"{case.name}.npz", mask=mask, clusters=candidates, left_out=empty)
        left_out += int(empty.sum())
    if rows:
        write_table(rows, folder / "choices.csv")
    chosen = [row for row in rows if row["chosen"]]
    return {
        "slices": len(chosen),
        "left_out": left_out,
        "mean_hu": float(np.mean([row["mean_hu"] for row in chosen])) if chosen else float("nan"),
    }


def slice_views(case: Prepared, config: Config, maps: Path) -> Iterator[tuple[int, tuple[int, int], SliceView]]:
    """Each positive slice as the methods see it: its number, the corner of the field of view, and the view."""
    grid = config.preprocessing
    hu, corner = crop_field_of_view(case, config)
    size = (hu.shape[1], hu.shape[2])
    inside = cut(case.intracranial, corner, size, False)
    intensities = smoothed(hu, grid) if config.pseudolabels.smooth else hu
    saved = load_case(maps, case.name)
    for z, activation in zip(saved["slices"], saved["maps"].astype(np.float32), strict=True):
        window = cut(activation, corner, size, 0.0)
        yield (
            int(z),
            corner,
            SliceView(hu[z], intensities[z], window, inside[z], grid.in_plane_mm, grid.hu_range[0], config.seed),
        )


def refine_outline(choice: Choice, view: SliceView, reach_mm: float) -> Choice:
    """The choice with its outline at half maximum, at most ``reach_mm`` outside; 0 leaves it as it is."""
    if not reach_mm:
        return choice
    reach = round(reach_mm / view.mm)
    return replace(choice, mask=half_maximum(choice.mask, view.intensities, view.intracranial, reach, view.mm))


def choice_rows(case: str, z: int, choice: Choice) -> list[dict[str, Any]]:
    """A row of ``choices.csv`` per candidate of a slice."""
    return [
        {
            "case": case,
            "slice": z,
            "cluster": i,
            "pixels": n,
            "mean_hu": mean,
            "logit_drop": drop,
            "chosen": int(i == choice.chosen),
        }
        for i, (n, mean, drop) in enumerate(zip(choice.sizes, choice.means, choice.drops, strict=True), start=1)
    ]


def write_reference_labels(context: Context, folder: Path) -> dict[str, Any]:
    """Reference masks of train and val on the working grid: for the fully supervised upper bound, and nothing else."""
    cases = context.dataset.part(*WEAK)
    for case in track(cases, "reference", console=console):
        if case.reference is None:
            raise HemsegError(f"{case.image}: has no reference mask, which the supervised upper bound needs.")
        mask = reference_on_grid(case, context.config.preprocessing)
        np.savez_compressed(folder / f"{case.name}.npz", mask=mask)
    return {"cases": len(cases)}


def write_train_mask_labels(context: Context, folder: Path) -> dict[str, Any]:
    """Reference masks of train cases, where ``--masks-train`` asked for them."""
    return write_mask_labels(context.cases_with_masks, context.cases("train"), context.config.preprocessing, folder)


def train_unet(context: Context, folder: Path) -> dict[str, Any]:
    """The U-Net, on the pseudo-labels."""
    cases, labels = context.train_and_val(context.config.without.segment), context.labels(context.names.pseudolabel)
    start = context.initial.unet if context.initial else None
    return train_segmenter(*cases, labels, context.config, folder, context.hardware, start)


def relabel(context: Context, number: int, folder: Path) -> dict[str, Any]:
    """Labels of a later round (`labels.self_training`), by the U-Net before; one .npz per case, like the first ones."""
    config, settings = context.config, context.config.self_training
    network, labels = context.unet(context.names.unets[number - 1]), context.run / context.names.labels[number - 1]
    changed, left_out, healthy = [], 0, 0
    for case in track(context.cases(*WEAK), "relabel", console=console):
        before = load_case(labels, case.name)["mask"]
        mask = np.zeros_like(before)
        hard: dict[str, Any] = {}
        if settings.hard_negatives and case.split == "train" and len(case.hu) == 1 and case.labels[0] == 0:
            if healthy % settings.hard_negatives == 0:
                hard = {"false_peak": false_peak(network, case, config)}
            healthy += 1
        if (case.labels == 1).any():
            probability = teacher_probability(network, case, config)
            reach = config.pseudolabels.refine_mm
            mask = relabel_case(case, before, probability, settings, config.preprocessing, reach)
            both = int((mask & before).sum())
            changed.append(2 * both / max(1, int(mask.sum() + before.sum())))
        empty = (case.labels == 1) & ~mask.any(axis=(1, 2)) & config.pseudolabels.leave_out_empty
        left_out += int(empty.sum())
        np.savez_compressed(folder / f"{case.name}.npz", mask=mask, left_out=empty, **hard)
    return {"dice_to_first": float(np.mean(changed)) if changed else float("nan"), "left_out": left_out}


def continue_unet(context: Context, number: int, folder: Path) -> dict[str, Any]:
    """The U-Net before, trained on with the labels of a later round; another network starts over."""
    names, stage = context.names, context.names.labels[number]
    return train_segmenter(
        *context.train_and_val(context.config.without.segment),
        context.labels(stage),
        context.round_config(number),
        folder,
        context.hardware,
        None if starts_new_network(context.config, number) else context.network_file(names.unets[number - 1]),
        context.false_peaks(stage),
    )


def export(context: Context, folder: Path) -> dict[str, Any]:
    """The last U-Net as ONNX with its manifest, and the weights that training goes on from."""
    dataset, initial = context.dataset, context.initial
    network = rounded(context.unet(context.names.unets[-1]))
    provenance: dict[str, Any] = {
        "data": f"{dataset.name}: {len(dataset.part('train'))} train and {len(dataset.part('val'))} val cases",
        "supervision": combined_supervision(context.supervision, initial),
        "config": context.config.name,
        "config_hash": fingerprint(context.config),
        "minutes": stage_minutes(context.run, context.variant.labels),
        "hemseg": hemseg.__version__,
        "torch": torch.__version__,
    }
    if context.config.classifier.pretrained and not (initial or context.variant.reference):
        provenance["classifier_began_with"] = Path(context.config.classifier.pretrained).name
    last = len(context.names.unets) - 1
    encoder = context.round_config(last).segmenter.encoder.name
    if encoder and (first_round_of_network(context.config, last) or not initial):
        provenance["unet_began_with"] = f"{encoder}, ImageNet"
    networks, second_opinion_networks = {"unet": network}, []
    if not context.variant.reference:
        networks["classifier"] = rounded(context.classifier)
        second_opinion_networks = [rounded(each) for each in context.second_opinion_networks]
        if context.config.classifier.unpainted:
            networks["classifier_unpainted"] = second_opinion_networks[-1]
    write_states(networks, context.round_config(last), folder / STATES)
    if initial:
        provenance["initial_weights"] = initial.provenance
        copy_license(initial, folder)
    beside = None
    if context.config.segmenter.min_slice_probability and second_opinion_networks:
        beside = export_classifier(second_opinion_networks, context.config, folder)
    return export_model(
        network, with_combined_license(context.config, initial), folder, provenance, context.strip_file, beside
    )


def draw_panels(context: Context, folder: Path, most: int = 12) -> dict[str, Any]:
    """Fig. 3 of the paper for some patients of val: slice, map, clusters, pseudo-label, prediction, reference."""
    names, settings = context.names, context.config.preprocessing
    model = load(context.run / names.export, "cpu")
    by_name = {case.name: case for case in context.dataset.part("val")}
    shown = [c for c in prepared(context.run / names.prepare, context.dataset, "val") if (c.labels == 1).any()]
    for case in track(shown[:: max(1, -(-len(shown) // most))], "panels", console=console):
        maps = load_case(context.run / names.cam, case.name)
        label = load_case(context.run / names.pseudolabel, case.name)
        found = working_probability(working_image(read(by_name[case.name].image), settings, model.strip), model)
        reference = None
        if by_name[case.name].reference:
            reference = reference_on_grid(by_name[case.name], settings)
        rows = [
            PanelRow(
                case.hu[z],
                activation.astype(np.float32),
                label["clusters"][z] if "clusters" in label else None,
                label["mask"][z],
                found[z] >= model.manifest.threshold,
                None if reference is None else reference[z],
            )
            for z, activation in zip(maps["slices"], maps["maps"], strict=True)
        ]
        write_panel(rows, settings.hu_range, folder / f"{case.name}.png")
    return {"patients": len(list(folder.glob("*.png")))}


def measure(context: Context, folder: Path) -> dict[str, Any]:
    """The exported weights on the test split, through the path that users take."""

    def slice_scores(case: Case) -> np.ndarray:
        """The classifier's logits, one per slice of the scan, from inferior to superior."""
        one = replace(context.dataset, cases=(case,))
        (found,) = prepared(context.run / context.names.prepare, one, case.split)
        logits = predict(context.classifier, network_slices(found, context.config)).numpy()
        return np.repeat(logits, -(-len(case.labels) // len(logits)))[: len(case.labels)]

    predictor = network_predictor(context.run / context.names.export)
    classify = None if context.variant.reference else slice_scores
    return evaluate(context.dataset, predictor, folder, classify=classify)
