"""The rounds of self-training: by which configuration each U-Net of a run is trained. The first is number 0."""

from __future__ import annotations

from dataclasses import replace

from .config import Config


def round_config(config: Config, number: int) -> Config:
    """The configuration of a round's U-Net: later ones have a seed of their own, and the schedule, samples, losses and
    network of `config.SelfTraining`."""
    return _later(config, number) if number else config


def later_rounds(config: Config) -> int:
    """How many rounds of self-training follow the first U-Net."""
    return config.self_training.rounds if config.self_training.enabled else 0


def starts_new_network(config: Config, number: int) -> bool:
    """Whether a round trains a new U-Net: it is the first one, or has another encoder than the round before."""
    before, own = (round_config(config, max(0, n)).segmenter.encoder.name for n in (number - 1, number))
    return number == 0 or before != own


def first_round_of_network(config: Config, number: int) -> int:
    """The round in which the network that a round trains was new."""
    return max(n for n in range(number + 1) if starts_new_network(config, n))


def _later(config: Config, number: int) -> Config:
    own = config.self_training
    segmenter = replace(
        config.segmenter,
        optimization=own.optimization,
        patches_per_case=own.patches_per_case,
        single_slices=own.single_slices or config.segmenter.single_slices,
        slice_loss=own.slice_loss or config.segmenter.slice_loss,
        lesion_loss=own.lesion_loss or config.segmenter.lesion_loss,
        painted=own.painted or config.segmenter.painted,
        unlocated=own.unlocated or config.segmenter.unlocated,
        start_share=own.start_share or config.segmenter.start_share,
        train_patch=own.train_patch if any(own.train_patch) else config.segmenter.train_patch,
        encoder=own.encoder if own.encoder.name else config.segmenter.encoder,
    )
    return replace(config, seed=config.seed + number, segmenter=segmenter)
