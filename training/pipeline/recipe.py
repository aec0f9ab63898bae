"""The stages of the paper, from slice labels to ONNX, and what each reads and writes.

prepare      images -> working grid, stripped             prepare/<case>.npz
classify     slices + labels -> ResNet                    classify/network.pt
sequence     volumes + labels -> ResNet (by LSTM)         sequence/network.pt
cam          ResNet -> maps of positive slices            cam/<case>.npz
pseudolabel  maps -> masks, by differential prediction    pseudolabel/<case>.npz, choices.csv
segment      pseudo-labels -> 3D U-Net                    segment/network.pt
masks        reference masks of train cases (optional) masks/<case>.npz
relabel      U-Net -> labels of a second round (optional) relabel/<case>.npz
resegment    those -> U-Net, trained on or another (optional) resegment/network.pt
export       U-Net -> ONNX + manifest                     export/hemseg.onnx, manifest.json
panels       all of it -> pictures like the paper's Fig. 3  panels/<case>.png
evaluate     ONNX -> Dice etc. on the test split          evaluate/per_case.csv, summary.json

`steps` has what each does, `stage_names` what each is called, `context` what they share.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import hemseg
from hemseg.errors import HemsegError
from hemseg.preprocessing import PREPROCESSING_VERSION

from ..config import Config, Encoder, Segmenter
from ..data.datasets import DataSet
from ..evaluation.evaluate import METRICS_VERSION
from ..export.to_onnx import EXPORT_VERSION
from ..fitting.hardware import Hardware
from ..networks.efficientnet_lite import imagenet_file
from ..networks.pretrained_unet import COARSEST, HU_RANGE
from ..networks.slice_network import IMAGENET, LITE, check_frozen_stages, check_output_stride
from ..networks.unet import multiples
from ..rounds import later_rounds, round_config, starts_new_network
from ..stage_names import Variant
from . import steps
from .context import WEAK, Context, vary
from .initial_weights import find_initial_weights, initial_hash
from .runner import Stage, fingerprint
from .train_masks import mask_fingerprints


def build_stages(
    config: Config, dataset: DataSet, run: Path, variant: Variant | None = None, hardware: Hardware | None = None
) -> dict[str, Stage]:
    """The stages of a run, by name, in order.

    Raises:
        HemsegError: a network is to stay as it is, and there are no weights to take it from.
    """
    variant = variant or Variant()
    context = Context(vary(config, variant), dataset, run, variant, hardware or Hardware())
    check_networks(config, len(context.names.unets))
    table = [
        prepare(context),
        *classifier(context),
        *labels(context),
        *masks(context),
        segment(context),
        *(stage for number in range(1, len(context.names.unets)) for stage in self_training(context, number)),
        *results(context),
    ]
    return {stage.name: stage for stage in table}


def check(config: Config) -> None:
    """Raises HemsegError where a run would stop, after minutes of making phantoms: its networks cannot be, or the
    weights that it is to start from are not there or do not fit."""
    check_networks(config, 1 + later_rounds(config))
    if initial := find_initial_weights(config.init):
        initial.check(config)


def check_networks(config: Config, rounds: int) -> None:
    """Raises HemsegError where a network cannot be what the configuration says; there are so many U-Nets, each of a
    round."""
    check_epochs(config)
    check_stages(config)
    for number in range(rounds):
        check_round(config, number)


def check_epochs(config: Config) -> None:
    """Raises HemsegError where a network has 0 epochs, so stays as it is, but begins with random numbers."""
    networks = {"classifier": config.classifier.optimization, "segmenter": config.segmenter.optimization}
    for name, optimization in networks.items():
        if not optimization.epochs and not config.init:
            raise HemsegError(
                f"configuration {config.name}: {name} has 0 epochs, so it is taken as it is, but nothing says from "
                "where; name weights with --init, or give it epochs."
            )
    if config.classifier.unpainted_stays and not (config.init and config.classifier.unpainted):
        raise HemsegError(
            f"configuration {config.name}: classifier.unpainted_stays takes a second classifier as it is, so name "
            "weights with --init, and give classifier.unpainted the epochs that it had."
        )


def check_stages(config: Config) -> None:
    """Raises HemsegError where the classifier's stages, or the maps', cannot be what the configuration says, before
    hours of training."""
    own, where = config.classifier, f"configuration {config.name}: "
    check_frozen_stages(own.frozen_stages, f"{where}classifier.frozen_stages")
    if own.frozen_stages and not (own.pretrained or config.init):
        raise HemsegError(
            f"{where}classifier.frozen_stages is {own.frozen_stages}, so random numbers would stay as they "
            "are; give it pretrained weights, or name some with --init."
        )
    if config.cam.output_stride:
        check_output_stride(config.cam.output_stride, f"{where}cam.output_stride")
    if own.pretrained == IMAGENET and not config.init:
        imagenet_file()


def check_round(config: Config, number: int) -> None:
    """Raises HemsegError where a round's U-Net (`rounds`) cannot be what the configuration says."""
    part, where = "self_training" if number else "segmenter", f"configuration {config.name}: "
    named = config.self_training.encoder if number else config.segmenter.encoder
    if not named.name and named != Encoder():
        raise HemsegError(f"{where}{part}.encoder has settings and no name, so they would not count; name it.")
    own = round_config(config, number).segmenter
    new_network = starts_new_network(config, number) and (number > 0 or not config.init)
    if number and new_network and not own.optimization.epochs:
        raise HemsegError(f"{where}{part} has 0 epochs, but another network than before, which would learn nothing.")
    if number and new_network and own.optimization.frozen_statistics:
        raise HemsegError(f"{where}{part} begins anew, so frozen_statistics would keep those of no scan.")
    if own.start_share and new_network:
        raise HemsegError(f"{where}{part} begins anew, so start_share has no weights to take a share of.")
    if not 0 <= own.start_share < 1:
        raise HemsegError(f"{where}{part}.start_share is {own.start_share}; it is 0 or more, and less than 1.")
    if own.encoder.name:
        check_encoder(own, config, where)
        if new_network:
            imagenet_file()


def check_encoder(own: Segmenter, config: Config, where: str) -> None:
    """Raises HemsegError where an encoder cannot be what the configuration says; ``where`` begins the sentence."""
    encoder = own.encoder
    if encoder.name != LITE:
        raise HemsegError(f"{where}encoder {encoder.name!r} is not known; known: {LITE}.")
    check_frozen_stages(encoder.frozen_stages, f"{where}encoder.frozen_stages")
    if encoder.slice_head and not own.slice_loss:
        raise HemsegError(f"{where}encoder.slice_head needs slice_loss, which brings what is known of whole slices.")
    if config.preprocessing.channels[0] != "hu":
        raise HemsegError(f"{where}an encoder sees preprocessing.channels' first one, which must be hu.")
    if config.preprocessing.hu_range != HU_RANGE:
        raise HemsegError(f"{where}an encoder's windows are parts of {list(HU_RANGE)} HU (preprocessing.hu_range).")
    for name in ("train_patch", "patch"):
        sides = getattr(own, name)
        if any(side % step for side, step in zip(sides, multiples(own), strict=True)):
            raise HemsegError(f"{where}{name} is {list(sides)}; with an encoder, y and x are multiples of {COARSEST}.")


def prepare(context: Context) -> Stage:
    """Scans on the working grid, stripped."""
    strip = (context.strip_sha256,) if context.strip_file else ()
    settings = (context.config.preprocessing, PREPROCESSING_VERSION, context.dataset.fingerprint, *strip)
    return Stage(context.names.prepare, (), settings, partial(steps.prepare_scans, context))


def classifier(context: Context) -> list[Stage]:
    """The slice classifier, alone and through the LSTM."""
    config, names = context.config, context.names
    kinds = [(name, rows.tolist()) for name, rows in sorted(context.slice_kinds.items())]
    return [
        Stage(
            names.classify,
            (names.prepare,),
            (
                config.classifier,
                config.seed,
                context.dataset.splits,
                *_unless_empty(config.without.classify),
                *initial_hash(context.initial, "classifier"),
                *([fingerprint(kinds)] if kinds else []),
            ),
            partial(steps.train_on_slices, context),
            distributed=True,
            check=partial(context.require, names.classify, WEAK, config.without.classify),
        ),
        Stage(
            names.sequence,
            (names.classify,),
            (config.sequence, *_unless_empty(config.without.sequence)),
            partial(steps.train_through_lstm, context),
            distributed=True,
            check=partial(context.require, names.sequence, WEAK, config.without.sequence),
        ),
    ]


def labels(context: Context) -> list[Stage]:
    """Activation maps and pseudo-labels; of the supervised upper bound, reference masks in their place."""
    config, names = context.config, context.names
    maps = Stage(names.cam, (names.sequence,), (config.cam,), partial(steps.make_maps, context))
    if context.variant.reference:
        return [maps, Stage(names.pseudolabel, (names.prepare,), (), partial(steps.write_reference_labels, context))]
    return [
        maps,
        Stage(names.pseudolabel, (names.cam,), (config.pseudolabels,), partial(steps.make_pseudolabels, context)),
    ]


def masks(context: Context) -> list[Stage]:
    """Reference masks of train cases, where they are asked for; no stage otherwise."""
    names = context.names
    if not context.cases_with_masks:
        return []
    settings = (mask_fingerprints(context.cases_with_masks),)
    return [Stage(names.masks, (names.prepare,), settings, partial(steps.write_train_mask_labels, context))]


def segment(context: Context) -> Stage:
    """The first U-Net."""
    config, names = context.config, context.names
    return Stage(
        names.segment,
        (names.pseudolabel, *((names.masks,) if context.cases_with_masks else ())),
        (
            training_settings(config.segmenter),
            *_unless_empty(config.without.segment),
            *initial_hash(context.initial, "unet"),
        ),
        partial(steps.train_unet, context),
        distributed=True,
        check=partial(context.require, names.segment, WEAK, config.without.segment),
    )


def self_training(context: Context, number: int) -> list[Stage]:
    """The two stages of a round, from 1: new labels by the U-Net before, and that U-Net trained on, or another."""
    names = context.names
    teacher, before, own = names.unets[number - 1], names.labels[number - 1], names.labels[number]
    settings = replace(context.config.self_training, rounds=1)  # one more round does not change those before it
    return [
        Stage(
            own,
            (teacher, before),
            (settings, context.config.pseudolabels.refine_mm),
            partial(steps.relabel, context, number),
        ),
        Stage(
            names.unets[number], (own,), (settings,), partial(steps.continue_unet, context, number), distributed=True
        ),
    ]


def results(context: Context) -> list[Stage]:
    """What leaves the run: the exported U-Net, pictures, metrics."""
    config, names, network = context.config, context.names, context.config.segmenter
    own_license = config.weights_license if config.weights_license != Config.weights_license else ""
    shipped = (
        config.name,
        config.export,
        network.threshold,
        network.min_lesion_ml,
        network.min_peak,
        network.max_median_hu,
        hemseg.__version__,
        EXPORT_VERSION,
        *([network.operating_points] if network.operating_points else []),
        *([network.min_slice_probability] if network.min_slice_probability else []),
        *([{"doubt": network.doubt_slice_probability}] if network.doubt_slice_probability else []),
        *([{"outline": network.outline_threshold}] if network.outline_threshold else []),
        *([{"flips": True}] if network.flips else []),
        *_unless_empty((own_license,) if own_license else ()),
        *([context.initial.provenance] if context.initial else []),
    )
    return [
        Stage(names.export, (names.unets[-1],), shipped, partial(steps.export, context)),
        Stage(names.panels, (names.export,), (), partial(steps.draw_panels, context)),
        Stage(
            names.evaluate,
            (names.export,),
            (METRICS_VERSION,),
            partial(steps.measure, context),
            check=partial(context.require, names.evaluate, ("test",)),
        ),
    ]


def training_settings(settings: Segmenter) -> Segmenter:
    """The settings that training depends on; those that clean up its answer are at their defaults."""
    return replace(
        settings,
        threshold=0.5,
        outline_threshold=0.0,
        min_lesion_ml=0.0,
        min_peak=0.0,
        max_median_hu=0.0,
        min_slice_probability=0.0,
        doubt_slice_probability=0.0,
        operating_points={},
        flips=False,
    )


def _unless_empty(values: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """A part of a fingerprint that does not count where it is empty: runs from before it existed stay valid."""
    return (values,) if values else ()
