"""Configuration: dataclasses with defaults in code, YAML on top. An unknown key is an error that names its like."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hemseg.errors import HemsegError, one_line
from hemseg.manifest_values import check_values
from hemseg.preprocessing import Settings

CONFIGS = Path(__file__).parent / "configs"


def _formerly(default: Any, key: str = "", **values: str) -> Any:
    """A field whose key, or values of which, had other names: those are still read, and a run that has them stands.

    Args:
        key: the former key.
        values: former values, each under its present name.
    """
    return field(default=default, metadata={"key": key, "values": values})


@dataclass(frozen=True)
class Optimization:
    """How a network is trained. ``patience``: epochs without a better validation loss before it stops."""

    optimizer: str = "sgd"  # sgd | adam | adamw
    lr: float = 1e-4
    schedule: str = "constant"  # constant | onecycle
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0
    batch: int = 32  # what one step of the optimiser sees, over all processes
    micro_batch: int = 0  # what fits the device at once; gradients add up to the batch. 0: the batch itself
    epochs: int = 100  # 0: the weights that training starts from (`init`), as they are
    patience: int = 25
    keep: str = "best"  # best: the epoch with the lowest validation loss | last: where that loss is no good judge
    frozen_statistics: bool = False  # batch norms keep the means and variances that they start with (fine-tuning)


@dataclass(frozen=True)
class Classifier:
    """Slice classifier (docs/method.md, 1). Sizes in pixels of the network's input, windows in HU."""

    backbone: str = "resnet101"  # resnet18, 34, 50, 101 | efficientnet_lite0
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)  # of a ResNet's stages
    output_stride: int = 32  # 16 or 8: the last stages keep their resolution, and the CAM its detail
    image_size: tuple[int, int] = (512, 512)  # (y, x), what `field_mm` is sampled to
    field_mm: tuple[float, float] = (230.0, 230.0)  # (y, x), centred on the intracranial mask
    stripped: bool = False  # look at what is intracranial only
    leveled: bool = False  # at the brain's level (`preprocessing.level_hu`), as the U-Net
    windows: tuple[tuple[float, float], ...] = ((0, 80), (-20, 180), (-800, 2000))
    pretrained: str = ""  # imagenet (efficientnet_lite0); a ResNet's torchvision state dict on disk; '' from scratch
    frozen_stages: int = 0  # so many of the four stay as they are, with their batch norms, which saves time
    positive_weight: float = 1.0
    kinds: float = 0.0  # weight of a second loss: the kinds of hemorrhage, where a data set's slice labels name them
    augment: bool = False
    degrade: float = 0.0  # with `augment`: share of the slices that are blurred, and that pass through JPEG
    narrow: float = 0.0  # with `augment`: share of the slices that are clipped to a random window
    painted: int = (
        0  # copies of each training scan with painted bleeds, whose slices are added (training/data/painted.py)
    )
    unpainted: int = 0  # epochs of a second network without painted slices: both together give the second opinion
    unpainted_stays: bool = False  # it does not go on from the initial weights, the one with painted slices does
    optimization: Optimization = field(default_factory=Optimization)


@dataclass(frozen=True)
class Sequence:
    """ResNet-LSTM (docs/method.md, 2). A batch is a number of volumes; ``enabled: false`` leaves the step out."""

    enabled: bool = True
    hidden: int = 256
    optimization: Optimization = field(default_factory=lambda: Optimization(lr=1e-3, batch=1))


@dataclass(frozen=True)
class Cam:
    """Class activation maps (docs/method.md, 3)."""

    method: str = "cam"  # of labels/cam.py: cam (Zhou et al. 2016), layercam (Jiang et al. 2021) ...
    stage: int = 4  # of the backbone; `cam` knows only the last, 4
    flips: bool = False  # average with the map of the mirrored slice
    stages: tuple[int, ...] = ()  # several stages instead of one: the geometric mean of their maps
    output_stride: int = 0  # 8 or 16: finer maps of the same weights, except those of kinds; 0: as trained


@dataclass(frozen=True)
class Pseudolabels:
    """From a map to a mask (docs/method.md, 4)."""

    threshold: float = 0.7
    clusters: int = 4  # K of K-means; 0: the thresholded map itself, without K-means
    replace: str = "lowest"  # what a removed cluster becomes: lowest | mean (of the brain around it)
    intracranial: bool = False  # only what is intracranial
    smooth: bool = False  # of the bilateral-filtered intensities
    min_pixels: int = 0  # drop small in-plane components, below this area (working-grid pixels)
    method: str = _formerly("clusters", components="pieces")  # clusters (the paper's) | components: labels/methods.py
    # of `components` alone:
    contrast_hu: float = 14.0  # candidates are so much brighter than the slice's brain
    max_hu: float = 0.0  # candidates that are brighter in the mean are the skull's blurred edge; 0: no limit
    candidates: int = _formerly(8, key="pieces")  # at most so many per slice
    opening_mm: float = 0.0  # candidates lose what is thinner than about twice this (the skull's blurred edge)
    rounds: int = 3  # after the first, take out so many more while the classifier still says yes
    # of every method:
    min_drop: float = 0.0  # nothing is chosen in a slice whose logit no removal lowers by so much; 0: no limit
    leave_out_empty: bool = False  # positive slices without a pseudo-label do not count in the U-Net's loss
    refine_mm: float = 0.0  # outline at half maximum, at most so far outside the chosen cluster; 0: the cluster itself


@dataclass(frozen=True)
class Encoder:
    """A 2D encoder with weights learned from ImageNet in place of the 3D U-Net's (networks.pretrained_unet)."""

    name: str = ""  # efficientnet_lite0; '': the paper's 3D U-Net
    frozen_stages: int = 0  # the first of its four stages, with its stem, stay as they were when training began
    # weight of what it says of each slice (networks.unet.slice_head_loss), of the slices that `slice_loss` knows
    slice_head: float = 0.0


@dataclass(frozen=True)
class Segmenter:
    """3D U-Net (docs/method.md, 5). Strides and patches are (z, y, x)."""

    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    strides: tuple[tuple[int, int, int], ...] = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    residual_units: int = 2
    encoder: Encoder = field(default_factory=Encoder)  # with one, channels, strides and units above do not count
    train_patch: tuple[int, int, int] = (16, 128, 128)
    patch: tuple[int, int, int] = (32, 192, 160)  # at inference, goes into the manifest
    patches_per_case: int = 1  # an epoch
    augment: bool = False
    degrade: float = 0.0  # as the classifier's
    narrow: float = 0.0  # with `augment`: share of the samples that are clipped to a random window
    few_slices: float = 0.0  # with `augment`: share of the samples that are cut down to one to five slices
    turned: float = 0.0  # with `augment`: share of the samples that are turned in plane by any angle
    loose_mask: float = (
        0.0  # with `augment`: share of the samples whose intracranial mask is one or two pixels too wide
    )
    painted: float = 0.0  # with `augment`: share of the samples that get bleeds painted in (training/data/painted.py)
    distractors: float = 0.0  # with `augment`: share that gets bright things that are no blood
    dura: bool = False  # painted bleeds along falx and skull are brighter than dura, which is among the distractors
    artefacts: float = 0.0  # with `augment`: share that gets streaks or more noise
    # with `augment`: share whose noise is reduced, down to none, as iterative and learned reconstruction do
    denoised: float = 0.0
    # weight of a loss in which each slice counts once (networks.unet.slice_loss); 0: voxels alone, as in the paper
    slice_loss: float = 0.0
    # weight of a loss in which each lesion of each slice counts once (networks.unet.lesion_loss); 0: none
    lesion_loss: float = 0.0
    # with `slice_loss`: a positive slice without a pseudo-label counts, too, by its surest voxels, wherever they are;
    # for patches that hold whole slices
    unlocated: bool = False
    # in the weights that a training leaves, share of those that it went on from, which know something, too
    # (fitting.segmenter.average_weights)
    start_share: float = 0.0
    single_slices: int = (
        0  # scans of one slice in an epoch, two in five of them with a bleed; 0: all of them, as other scans
    )
    optimization: Optimization = field(default_factory=lambda: Optimization("adam", lr=1e-3, batch=4))
    threshold: float = 0.5
    outline_threshold: float = 0.0  # where a lesion's outline lies, if higher (hemseg/outline.py); 0: at the threshold
    min_lesion_ml: float = 0.0
    min_peak: float = 0.0  # connected components whose highest probability stays below it are dropped
    # and those that the slice classifier sees in none of their main slices (hemseg.second_opinion); 0: it is not asked
    min_slice_probability: float = 0.0
    doubt_slice_probability: float = 0.0  # a slice of which it is as sure, and in which nothing is marked, is named
    operating_points: dict[str, dict[str, float]] = field(default_factory=dict)  # others, by name
    flips: bool = False  # at inference, the mean of the answers to a patch and to its mirror image
    max_median_hu: float = 0.0  # and those with a higher median: calcifications; 0: no limit


@dataclass(frozen=True)
class SelfTraining:
    """Later rounds (beyond the paper): the U-Net relabels its own positive slices, and is trained on with them.

    With another ``encoder`` than before, that network is trained on them from its beginning.
    """

    enabled: bool = False
    rounds: int = 1
    core: float = 0.7  # probability from which the first U-Net adds to a label
    sure: float = 0.95  # and what a component must reach somewhere to be added
    doubt: float = 0.1  # a component of the pseudo-label with a lower mean probability is taken out
    keep_emptied: bool = False  # a positive slice in which the U-Net leaves nothing keeps the label that it had
    patches_per_case: int = 1
    single_slices: int = 0  # as the segmenter's, of later rounds; 0: the same
    slice_loss: float = 0.0  # likewise
    lesion_loss: float = 0.0  # likewise
    painted: float = 0.0  # likewise
    unlocated: bool = False  # likewise
    start_share: float = 0.0  # likewise
    train_patch: tuple[int, int, int] = (0, 0, 0)  # likewise
    encoder: Encoder = field(default_factory=Encoder)  # likewise; another network than before starts over
    # each n-th healthy single slice is shown to the U-Net before, and drawn the more often the surer that is of blood
    hard_negatives: int = 0
    optimization: Optimization = field(default_factory=lambda: Optimization("adam", lr=5e-4, batch=4, epochs=12))


@dataclass(frozen=True)
class Phantoms:
    """Phantoms to train on: when no data set is given, or beside those given. Shape (z, y, x), spacing (x, y, z) mm."""

    cases: int = 0
    beside_data: bool = False  # of phantoms, too, the weakly supervised stages see the slice labels alone
    shape: tuple[int, int, int] = (28, 128, 128)
    spacing: tuple[float, float, float] = (1.8, 1.8, 5.0)
    varied: bool = False  # each has pixels and noise of its own, in the same field of view (data.phantom.protocol)


@dataclass(frozen=True)
class Without:
    """Data sets, by the names of their folders, that a stage does not learn from; all others that are given it does."""

    classify: tuple[str, ...] = ()
    sequence: tuple[str, ...] = ()  # scans of a single slice are left out in any case: there is no sequence
    segment: tuple[str, ...] = ()


@dataclass(frozen=True)
class Export:
    """How the U-Net leaves. ``half``: weights and arithmetic in float16 (input and output stay float32), for GPUs."""

    half: bool = False


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on, beside its data."""

    name: str
    seed: int = 0
    weights_license: str = "MIT"  # of the weights: what their data allow; that of the initial weights is added to it
    init: str = ""  # weights to start from: `weights` (hemseg's), a run, an export's folder; '' starts from nothing
    without: Without = field(default_factory=Without)
    strip: str = ""  # the learned skull strip: `weights` (that of hemseg's weights) or an ONNX file; '': the paper's
    preprocessing: Settings = field(default_factory=Settings)
    classifier: Classifier = field(default_factory=Classifier)
    sequence: Sequence = field(default_factory=Sequence)
    cam: Cam = field(default_factory=Cam)
    pseudolabels: Pseudolabels = field(default_factory=Pseudolabels)
    segmenter: Segmenter = field(default_factory=Segmenter)
    self_training: SelfTraining = field(default_factory=SelfTraining)
    export: Export = field(default_factory=Export)
    phantoms: Phantoms = field(default_factory=Phantoms)


def load_config(path: str | Path) -> Config:
    """Read a configuration from a path, or by the bare name of a file in ``training/configs``.

    A file that ``extends`` another one says what differs from it.

    Raises:
        HemsegError: no such file, not YAML, an unknown key, a value of the wrong type, or one of the preprocessing that
            is out of its range.
    """
    path, values = _read_values(path)
    return _build(Config, {"name": path.stem} | values, str(path))


def classifier_settings(values: Any, where: str) -> Classifier:
    """Settings of a slice classifier from plain values, as an export keeps them.

    Raises:
        HemsegError: it says, after ``where``, what does not fit.
    """
    return _build(Classifier, values, where)  # type: ignore[no-any-return]


def _read_values(path: str | Path, above: tuple[Path, ...] = ()) -> tuple[Path, dict[str, Any]]:
    """A file's own path and its values on top of those of the file that it extends."""
    path = Path(path)
    if not path.suffix and not path.exists():
        path = CONFIGS / f"{path}.yaml"
    try:
        values = yaml.safe_load(path.read_bytes())  # it finds UTF-16, too, and has a sentence for what is no text
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yaml")))
        raise HemsegError(f"{path}: there is no such configuration; there are {known}.") from None
    except OSError as error:
        raise HemsegError(f"{path}: cannot be read ({error.strerror}).") from None
    except yaml.YAMLError as error:  # its place in the file stands in its last lines
        raise HemsegError(f"{path}: cannot be read as YAML ({one_line(str(error))}).") from None
    values = values or {}
    if not isinstance(values, dict):
        raise HemsegError(f"{path}: expects a mapping, not {values!r}.")
    if "extends" not in values:
        return path, values
    base = Path(str(values.pop("extends")))
    if path in above:
        raise HemsegError(f"{path}: extends itself.")
    if base.suffix and not base.is_absolute():
        base = path.parent / base
    return path, _on_top(_read_values(base, (*above, path))[1], values)


def _on_top(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """``values`` over ``base``; mappings are merged, all else is replaced."""
    both = {k: _on_top(base[k], v) for k, v in values.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return base | values | both


def _present_names(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The mapping with former keys and values under their present names (`_formerly`)."""
    renamed = [f for f in dataclasses.fields(kind) if f.metadata]
    keys = {f.metadata["key"]: f.name for f in renamed if f.metadata["key"]}
    former = {f.name: {old: new for new, old in f.metadata["values"].items()} for f in renamed}
    present = {keys.get(key, key): value for key, value in values.items()}
    return {k: former.get(k, {}).get(v, v) if isinstance(v, str) else v for k, v in present.items()}


def _build(kind: Any, values: Any, where: str) -> Any:
    """A value of type ``kind`` from plain YAML; HemsegError says where it does not fit."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(values, dict):
            raise HemsegError(f"{where}: expects a mapping, not {values!r}.")
        hints = typing.get_type_hints(kind)
        values = _present_names(kind, values)
        for key in values:
            if key not in hints:
                near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
                raise HemsegError(f"{where}: unknown key {key!r}; did you mean {near[0]!r}?")
        try:
            made = kind(**{k: _build(hints[k], v, f"{where}: {k}") for k, v in values.items()})  # type: ignore[operator]
            if isinstance(made, Settings):
                check_values(made)  # as in a manifest: pixels of 0 mm would end in a division by zero
            return made
        except (TypeError, ValueError) as error:
            raise HemsegError(f"{where}: {error}.") from None
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        if not isinstance(values, (list, tuple)):
            raise HemsegError(f"{where}: expects a list, not {values!r}.")
        if inner[-1] is Ellipsis:
            inner = (inner[0],) * len(values)
        if len(inner) != len(values):
            raise HemsegError(f"{where}: expects {len(inner)} values, not {len(values)}.")
        return tuple(_build(k, v, where) for k, v in zip(inner, values, strict=True))
    if typing.get_origin(kind) is dict:
        if not isinstance(values, dict):
            raise HemsegError(f"{where}: expects a mapping, not {values!r}.")
        inner = typing.get_args(kind)[1]
        return {str(k): _build(inner, v, f"{where}: {k}") for k, v in values.items()}
    if kind is float and isinstance(values, int) and not isinstance(values, bool):
        return float(values)
    if (
        isinstance(kind, types.UnionType)
        or not isinstance(values, kind)
        or (isinstance(values, bool) and kind is not bool)
    ):
        raise HemsegError(f"{where}: expects {getattr(kind, '__name__', kind)}, not {values!r}.")
    return values
