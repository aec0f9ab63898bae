"""The names of stages, which are those of their folders: this module makes them all, others ask it.

A variant of the recipe has stages of its own from the first one that differs on (``segment@resnet``,
``evaluate@permuted-threshold``); those before are shared. Later rounds of self-training are numbered from the second
one (``relabel``, ``relabel2@resnet``).
"""

from __future__ import annotations

from dataclasses import dataclass

STAGES = {  # of the recipe itself, in order: what each makes
    "prepare": "Resample the scans to the working grid and remove skull and scalp.",
    "classify": "Train the slice classifier on the slice labels.",
    "sequence": "Train the classifier further through an LSTM along the slices.",
    "cam": "Compute the activation maps of the positive slices.",
    "pseudolabel": "Derive pseudo-label masks from the maps by differential prediction.",
    "segment": "Train the first U-Net on the pseudo-labels.",
    "relabel": "Relabel the positive slices with the U-Net, if self-training is enabled.",
    "resegment": "Train the U-Net further on these labels, or train another one.",
    "export": "Export ONNX weights and their manifest.",
    "panels": "Draw panels of val like Fig. 3 of the paper.",
    "evaluate": "Compute the metrics on the test split.",
}
NETWORK = "network.pt"  # in the folder of a stage that trains one
THRESHOLD_BASELINE = "evaluate@baseline"  # the threshold of the tables' row 0


@dataclass(frozen=True)
class Variant:
    """A row of the ablation (the paper's Table 2): what is left out of the recipe, or put in its place."""

    lstm: bool = True
    kmeans: bool = True
    reference: bool = False  # train the U-Net on reference masks: the fully supervised upper bound
    permuted: bool = False  # shuffle the slice labels (`data.permuted`): a control that has to fail
    masks: bool = False  # reference masks of train cases in place of their pseudo-labels, where there are some

    @property
    def slices(self) -> str:
        """Suffix of the classifier's first stage."""
        return "@permuted" if self.permuted else ""

    @property
    def network(self) -> str:
        """Suffix of the stages that depend on the classifier alone."""
        return self.slices + ("" if self.lstm else "@resnet")

    @property
    def pseudolabels(self) -> str:
        """Suffix of the pseudo-labels."""
        if self.reference:
            return "@supervised"
        return self.network + ("" if self.kmeans else ("-" if self.network else "@") + "threshold")

    @property
    def labels(self) -> str:
        """Suffix of the stages from the first U-Net on."""
        return self.pseudolabels + (("-" if self.pseudolabels else "@") + "masks" if self.masks else "")


@dataclass(frozen=True)
class StageNames:
    """The stages of one variant. ``relabel`` and ``resegment`` have a name per round of self-training."""

    prepare: str
    classify: str
    sequence: str
    cam: str
    pseudolabel: str
    masks: str
    segment: str
    relabel: tuple[str, ...]
    resegment: tuple[str, ...]
    export: str
    panels: str
    evaluate: str

    @property
    def unets(self) -> tuple[str, ...]:
        """The stages that train a U-Net, in order; the last one's is exported."""
        return self.segment, *self.resegment

    @property
    def labels(self) -> tuple[str, ...]:
        """The stages whose labels each of `unets` learns from."""
        return self.pseudolabel, *self.relabel


def stage_names(variant: Variant | None = None, rounds: int = 0) -> StageNames:
    """The names of a variant's stages.

    Args:
        rounds: of self-training; 0 where it is off.
    """
    variant = variant or Variant()
    own = variant.labels
    later = [f"{number if number > 1 else ''}{own}" for number in range(1, rounds + 1)]
    return StageNames(
        prepare="prepare",
        classify=f"classify{variant.slices}",
        sequence=f"sequence{variant.network}",
        cam=f"cam{variant.network}",
        pseudolabel=f"pseudolabel{variant.pseudolabels}",
        masks="masks",  # of train cases; only a variant with `masks` has this stage
        segment=f"segment{own}",
        relabel=tuple(f"relabel{suffix}" for suffix in later),
        resegment=tuple(f"resegment{suffix}" for suffix in later),
        export=f"export{own}",
        panels=f"panels{own}",
        evaluate=f"evaluate{own}",
    )


def folder_of(stage: str, variant: str, present: set[str]) -> str | None:
    """Where a variant has a stage among those present: its own, or the one that it shares; None where it has none.

    Args:
        variant: its suffix (``@resnet-threshold``), '' for the recipe itself.
    """
    suffixes = (variant, variant.partition("-")[0], "")
    return next((stage + suffix for suffix in suffixes if stage + suffix in present), None)


def with_suffix(stage: str, variant: str) -> str:
    """The folder of a variant's own stage, by its suffix (``@supervised``)."""
    return stage + variant


def pseudolabels_of(variant: str) -> str:
    """The folder of the pseudo-labels of a variant, by its suffix: masks of train cases come after them."""
    return with_suffix("pseudolabel", variant.removesuffix("masks").rstrip("@-"))


def without_suffix(name: str) -> str:
    """The stage that a folder's name says: ``segment`` for ``segment@resnet``."""
    return name.partition("@")[0]
