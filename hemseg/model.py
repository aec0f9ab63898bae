"""Loaded weights: the network, the learned skull strip, the slice classifier, and what names kinds of hemorrhage."""

from __future__ import annotations

from contextlib import nullcontext
from copy import copy
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from hemseg.errors import HemsegError
from hemseg.kinds import KindHead
from hemseg.manifest import Manifest, default_weights
from hemseg.onnx_session import check_file, session, shrinking_arena
from hemseg.preprocessing import Strip
from hemseg.resources import cores, share_heap
from hemseg.second_opinion import SliceClassifier
from hemseg.strip import learned_mask

ROUNDING = 1e-5  # of a sigmoid, at most
MAX_CONCURRENT_SCANS = 3  # a thin-slice scan takes 300 MB and more
STRIP_SLICES = 4  # that the strip's network sees at once: a whole scan would take 50 MiB more, and no less time


class Model:
    """A loaded network: ``model(patches)`` gives probabilities.

    Attributes:
        concurrent_scans: how many scans to do at once with it. A GPU still sees one at a time.
        strip: the learned skull strip, or None.
        kinds: what names kinds of hemorrhage, or None.
        classifier: the slice classifier that is asked for a second opinion, or None.
    """

    def __init__(
        self,
        manifest: Manifest,
        session: Any,
        folder: Path,
        concurrent_scans: int = 1,
        strip: Strip | None = None,
        kinds: KindHead | None = None,
        classifier: SliceClassifier | None = None,
    ) -> None:
        self.manifest = manifest
        self.strip = strip
        self.kinds = kinds
        self.classifier = classifier
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

        With `Manifest.flips`, the mean of the answers to the patches and to their mirror images.

        Raises:
            HemsegError: the network answers with something else.
        """
        answer = self._answer(patches)
        if self.manifest.flips:
            answer += self._answer(patches[..., ::-1])[..., ::-1]
            answer /= 2
        return answer

    def _answer(self, patches: np.ndarray) -> np.ndarray:
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
            f"{weights}: the network answers with values from {low:g} to {high:g}, which are not probabilities; "
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
    kinds = load_kinds(folder, manifest)
    classifier = load_classifier(folder, manifest, kinds, threads)
    return Model(manifest, session(path, device, threads), folder, concurrent, strip, kinds, classifier)


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


def load_classifier(
    folder: Path, manifest: Manifest, kinds: KindHead | None = None, threads: int = 1
) -> SliceClassifier | None:
    """The slice classifier, if the weights have one. It runs on the CPU, on the slices that hold something to judge.

    Args:
        kinds: what makes maps of kinds of its features.

    Raises:
        HemsegError: the file is missing, damaged or another one, or the classifier answers with no probabilities.
    """
    if not manifest.classifier_file:
        return None
    path = folder / manifest.classifier_file
    check_file(path, manifest.classifier_sha256)

    @cache  # most heads have nothing to judge
    def network() -> Any:
        return session(path, "cpu", threads)

    def run(slices: np.ndarray) -> np.ndarray:
        (answer,) = network().run(["probability"], {"slices": slices}, shrinking_arena())
        return checked_probability(answer, (len(slices),), folder)

    if kinds is None or not kinds.has_maps:
        return SliceClassifier(manifest.classifier_field, run)

    def with_maps(slices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answer, features = network().run(["probability", "features"], {"slices": slices}, shrinking_arena())
        return checked_probability(answer, (len(slices),), folder), kinds.kind_maps(features)

    return SliceClassifier(manifest.classifier_field, run, with_maps)


def load_kinds(folder: Path, manifest: Manifest) -> KindHead | None:
    """What names kinds of hemorrhage, if the weights have it.

    Raises:
        HemsegError: the file is missing, damaged or another one, or reads another classifier than the weights have.
    """
    if not manifest.kinds_file:
        return None
    check_file(folder / manifest.kinds_file, manifest.kinds_sha256)
    head = KindHead.read(folder / manifest.kinds_file)
    if head.has_maps and str(head.classifier) != manifest.classifier_sha256:
        raise HemsegError(
            f"{folder}: {manifest.kinds_file} was made for another slice classifier than these weights have."
        )
    return head
