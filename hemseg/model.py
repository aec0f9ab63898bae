"""Weights on disk: ``manifest.json`` + ONNX, and the ONNX Runtime session that runs them.

All that inference must know about a model is in its manifest and nowhere else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, get_args

import numpy as np

from hemseg.choices import Device
from hemseg.errors import HemsegError, first_line
from hemseg.io.files import write_text
from hemseg.kinds import Head, KindModel
from hemseg.manifest_values import check_values
from hemseg.preprocessing import Settings, Strip
from hemseg.resources import check_model_memory, cores, share_heap
from hemseg.strip import learned_mask

logger = logging.getLogger("hemseg")
FORMAT = 7  # of the manifest; raised when an older hemseg could misread a newer one
MANIFEST = "manifest.json"
PLATFORM_MODEL = Path("/opt/ml/model")  # where Grand Challenge unpacks a model tarball
DEVICES = get_args(Device)
ROUNDING = 1e-5  # of a sigmoid, at most
DEFAULT_POINT = "balanced"
POINT_KEYS = ("threshold", "min_peak", "min_lesion_ml")  # what an operating point may set
MAX_CONCURRENT_SCANS = 3  # a thin-slice scan takes 300 MB and more
STRIP_SLICES = 4  # that the strip's network sees at once: a whole scan would take 50 MiB more, and no less time


@dataclass(frozen=True)
class Manifest:
    """What inference must know.

    Attributes:
        name, version: of the weights.
        file: the ONNX file beside the manifest. Input ``image`` float32 (n, channel, z, y, x), output
            ``probability`` of hemorrhage, float32 (n, 1, z, y, x): the sigmoid is inside the graph.
        sha256: of that file.
        patch: (z, y, x) voxels of the working grid that the network takes at once.
        preprocessing: see `hemseg.preprocessing.Settings`.
        threshold: probability from which a voxel is hemorrhage.
        min_lesion_ml: smaller connected components are dropped.
        min_peak: connected components whose highest probability stays below it are dropped (format 2).
        max_median_hu: connected components with a higher median of the scan's HU are dropped: clotted blood stays
            below about 100 HU, calcifications and metal do not (the median, as a subdural bleed's border is half
            bone); 0 for no limit (format 3).
        strip_file, strip_sha256: the ONNX file of the learned skull strip (`hemseg.strip`) beside the manifest; '' for
            the paper's steps (format 4).
        license: under which the weights may be used (format 5).
        operating_points: other values of `POINT_KEYS` by name, such as ``sensitive`` (format 6); see `at`.
        operating_point: the name of the values above.
        range_thresholds: low and high, at which the probability is cut for the volume's range
            (`hemseg.volume_range`; format 6).
        range_margin: share by which either end of that range is widened. Its default is for weights that were not
            calibrated.
        kinds_file, kinds_sha256: the numbers that name kinds of hemorrhage (`hemseg.kinds.Head`) beside the manifest;
            '' for weights that name none (format 7).
        kinds_network_file, kinds_network_sha256: the ONNX file of the slice network that they read, if any. Input
            ``slices`` float32 (n, y, x) in HU, output ``features`` float32 (n, channel, y', x').
        provenance: how the weights came about (data, recipe, seed, commit, metrics); not read by inference.
    """

    name: str
    version: str
    file: str
    sha256: str
    patch: tuple[int, int, int]
    preprocessing: Settings
    threshold: float = 0.5
    min_lesion_ml: float = 0.1
    min_peak: float = 0.0
    max_median_hu: float = 0.0
    strip_file: str = ""
    strip_sha256: str = ""
    license: str = "MIT"
    operating_points: dict[str, dict[str, float]] = field(default_factory=dict)
    operating_point: str = DEFAULT_POINT
    range_thresholds: tuple[float, float] = (0.2, 0.8)
    range_margin: float = 0.25
    kinds_file: str = ""
    kinds_sha256: str = ""
    kinds_network_file: str = ""
    kinds_network_sha256: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into a folder, all or nothing."""
        write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", folder / MANIFEST)

    def at(self, point: str) -> Manifest:
        """The same weights at another operating point; '' is the present one.

        Raises:
            HemsegError: these weights have no such point.
        """
        if point in ("", self.operating_point):
            return self
        if point not in self.operating_points:
            known = ", ".join(dict.fromkeys((self.operating_point, *self.operating_points)))
            raise HemsegError(f"operating point {point!r}: {self.name} has none of that name; give {known}.")
        return dataclasses.replace(self, **self.operating_points[point], operating_point=point)  # type: ignore[arg-type]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises HemsegError: missing, not JSON, made for a newer hemseg, or with fields missing or wrong."""
        path = folder / MANIFEST
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise HemsegError(f"{path}: there is no such file; give --weights a folder with a {MANIFEST}.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise HemsegError(f"{path}: cannot be read as a manifest ({first_line(error)}).") from None
        if not isinstance(values, dict) or not isinstance(values.get("format"), int):
            raise HemsegError(f"{path}: is not a hemseg manifest.")
        if values["format"] > FORMAT:
            raise HemsegError(
                f"{path}: has format {values['format']}, this hemseg reads up to {FORMAT}; update hemseg."
            )
        try:
            settings = Settings(**{k: _as_tuple(v) for k, v in values.pop("preprocessing").items()})
            manifest = cls(preprocessing=settings, **{k: _as_tuple(v) for k, v in values.items()})
            check_values(manifest)
            if manifest.kinds_network_file and not manifest.kinds_file:
                raise ValueError("kinds_network_file needs kinds_file")
            for name, values in manifest.operating_points.items():
                if not isinstance(values, dict) or not values or set(values) - set(POINT_KEYS):
                    raise ValueError(f"operating_points.{name} should set some of {', '.join(POINT_KEYS)}")
                check_values(manifest.at(name), f"operating_points.{name}.")
            return manifest
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HemsegError(f"{path}: is not a valid manifest ({error}).") from None


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def default_weights() -> Path:
    """The weights used when none are named: the platform's model tarball, else those that came with hemseg."""
    package = Path(__file__).parent
    own = (package.parent / "weights", package / "weights")  # in a clone and in the container; in a wheel
    for folder in (PLATFORM_MODEL, *own):
        if (folder / MANIFEST).is_file():
            return folder
    raise HemsegError(f"no weights found in {', '.join(map(str, (PLATFORM_MODEL, *own)))}; give --weights FOLDER.")


class Model:
    """A loaded network: ``model(patches)`` gives probabilities.

    Attributes:
        concurrent_scans: how many scans to do at once with it. A GPU still sees one at a time.
        strip: the learned skull strip, or None.
        kinds: what names kinds of hemorrhage, or None.
    """

    def __init__(
        self,
        manifest: Manifest,
        session: Any,
        folder: Path,
        concurrent_scans: int = 1,
        strip: Strip | None = None,
        kinds: KindModel | None = None,
    ) -> None:
        self.manifest = manifest
        self.strip = strip
        self.kinds = kinds
        self.folder = folder
        self.concurrent_scans = concurrent_scans
        self._session = session
        self._turn = Lock() if self.provider != "CPUExecutionProvider" else nullcontext()

    def at(self, point: str) -> Model:
        """The same network at another operating point; see `Manifest.at`."""
        manifest = self.manifest.at(point)
        if manifest is self.manifest:
            return self
        other = copy(self)
        other.manifest = manifest
        return other

    @property
    def provider(self) -> str:
        """The ONNX Runtime provider that really runs, e.g. ``CPUExecutionProvider``."""
        return str(self._session.get_providers()[0])

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Probabilities (n, 1, z, y, x) of patches (n, channel, z, y, x), both float32.

        Raises:
            HemsegError: the network answers with something else.
        """
        options = (shrinking_arena(),) if self.provider == "CPUExecutionProvider" else ()  # a GPU has no such arena
        with self._turn:
            answer = self._session.run(None, {"image": np.ascontiguousarray(patches, dtype=np.float32)}, *options)[0]
        return checked_probability(answer, (patches.shape[0], 1, *patches.shape[2:]), self.folder)


def checked_probability(answer: Any, shape: tuple[int, ...], weights: Path) -> np.ndarray:
    """What a network answers, if it is probabilities of that shape: NaN would be no hemorrhage, ones a head full of it.

    Raises:
        HemsegError: it is not.
    """
    if not isinstance(answer, np.ndarray) or answer.shape != shape or answer.dtype.kind != "f":
        given = f"{answer.dtype} of shape {answer.shape}" if isinstance(answer, np.ndarray) else type(answer).__name__
        raise HemsegError(f"{weights}: the network answers with {given} instead of probabilities of shape {shape}.")
    low, high = float(answer.min()), float(answer.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN, too: it spreads to the lowest and the highest
        raise HemsegError(
            f"{weights}: the network answers with values from {low:g} to {high:g}, which are no probabilities; "
            "the weights are damaged, or were made for other input."
        )
    return answer


def load(weights: str | Path | None = None, device: str = "auto", threads: int = 0, scans: int = 1) -> Model:
    """Load weights.

    Args:
        weights: folder with a manifest; `default_weights` when None.
        device: ``auto`` (CUDA where it works, else CPU), ``cpu``, or ``cuda`` (CUDA or an error).
        threads: of the network; `cores`, shared among the scans that are under way at once, when 0.
        scans: how many it is for. Of several, up to three are done at once (`Model.concurrent_scans`): a network on
            one thread wastes less of a core than one whose threads wait for each other, and for the reading and writing
            beside it.

    Raises:
        HemsegError: weights missing, damaged or of a newer format; CUDA asked for but not available.
    """
    folder = Path(weights) if weights is not None else default_weights()
    manifest = Manifest.read(folder)
    path = folder / manifest.file
    check_file(path, manifest.sha256)
    concurrent = min(scans, MAX_CONCURRENT_SCANS, max(2, cores()))
    if concurrent > 1:
        share_heap()
    threads = threads or -(-cores() // concurrent)
    strip = load_strip(folder / manifest.strip_file, manifest.strip_sha256, threads) if manifest.strip_file else None
    kinds = load_kinds(folder, manifest, threads)
    return Model(manifest, session(path, device, threads), folder, concurrent, strip, kinds)


def load_strip(path: Path, sha256: str, threads: int = 1) -> Strip:
    """The learned skull strip of an ONNX file. It runs on the CPU: it takes less time than the way to a GPU.

    Raises:
        HemsegError: the file is missing, damaged or another one.
    """
    check_file(path, sha256)
    network = session(path, "cpu", threads)

    def run(slices: np.ndarray) -> np.ndarray:
        parts = [slices[at : at + STRIP_SLICES] for at in range(0, len(slices), STRIP_SLICES)]
        last = len(parts) - 1
        answers = [
            network.run(None, {"image": part}, shrinking_arena() if n == last else None) for n, part in enumerate(parts)
        ]
        return np.concatenate([answer for (answer,) in answers])

    return partial(learned_mask, network=run)


def load_kinds(folder: Path, manifest: Manifest, threads: int = 1) -> KindModel | None:
    """What names kinds of hemorrhage, if the weights have it. It runs on the CPU, on the slices of lesions alone.

    Raises:
        HemsegError: a file is missing, damaged or another one.
    """
    if not manifest.kinds_file:
        return None
    check_file(folder / manifest.kinds_file, manifest.kinds_sha256)
    head = Head.read(folder / manifest.kinds_file)
    if not head.has_maps:
        return KindModel(head)
    path = folder / manifest.kinds_network_file
    if not manifest.kinds_network_file:
        raise HemsegError(f"{folder}: {manifest.kinds_file} reads a slice network, and the manifest names none.")
    check_file(path, manifest.kinds_network_sha256)

    @cache  # most heads have no lesion to name
    def network() -> Any:
        return session(path, "cpu", threads)

    def run(slices: np.ndarray) -> np.ndarray:
        return np.asarray(network().run(None, {"slices": slices}, shrinking_arena())[0])

    return KindModel(head, run)


def shrinking_arena() -> Any:
    """ONNX Runtime's options of a run after which a session gives its working memory back to the system."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def check_file(path: Path, sha256: str) -> None:
    """Raise HemsegError unless a model file is there and is the one that the manifest means."""
    check_model_memory(path)
    try:
        content = path.read_bytes()
    except OSError:
        raise HemsegError(f"{path}: the manifest names it, but it cannot be read.") from None
    if content.startswith(b"version https://git-lfs"):
        raise HemsegError(f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull`.")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise HemsegError(f"{path}: does not match the manifest's sha256; it is damaged or of another version.")


def session(path: Path, device: str, threads: int) -> Any:
    """The ONNX Runtime session of a model file; arguments and errors as for `load`."""
    import onnxruntime as ort

    if device not in DEVICES:
        raise HemsegError(f"device {device!r} is not known; give one of {', '.join(DEVICES)}.")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its warnings about missing GPUs are replaced by one sentence below
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False  # its one block for everything is a third larger than what is in use at once
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it burns a sixth of the CPU time
    wanted = device != "cpu" and "CUDAExecutionProvider" in ort.get_available_providers()
    if device == "cuda" and not wanted:
        raise HemsegError("device cuda was asked for, but this ONNX Runtime has no CUDA; see requirements-cuda.txt.")
    if wanted:
        ort.set_default_logger_severity(4)
        ort.preload_dlls()
        providers = [("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}), "CPUExecutionProvider"]
        try:  # without its own fallback, which prints a page of C++ before it goes on
            found = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
        except Exception:  # ONNX Runtime raises many types of its own
            found = None
        if found and found.get_providers()[0] == "CUDAExecutionProvider":
            return found
        if device == "cuda":
            raise HemsegError(
                "device cuda was asked for, but CUDA does not work here; "
                "check the driver (nvidia-smi) and `docker run --gpus all`, or use --device cpu."
            )
        logger.warning("CUDA does not work here, running on the CPU (--device cpu says so without this line)")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise HemsegError(f"{path}: ONNX Runtime cannot load it ({str(error).splitlines()[0][:160]}).") from None
