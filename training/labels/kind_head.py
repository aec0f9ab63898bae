"""The regression that names lesions: fitted to what slice labels allow them to be.

A lesion whose slices have several kinds is one of them: the loss is minus the logarithm of the probability that the
regression gives to all that is allowed together (learning from partial labels, Cour, Sapp and Taskar 2011, JMLR 12).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from hemseg.kinds import KINDS, MAX_DEVIATIONS, KindHead

from .lesion_kinds import LesionSample

PENALTY = 0.001  # of the squared weights; ranked on val, as the two below
STEPS = 60  # of L-BFGS
PAINTED_SHARE = 0.3  # of all weight
PHANTOM = 0.5  # weight of a phantom's lesion
NAMED_RIGHT = 0.75  # of the lesions that are named, so many are to be right
CANDIDATES = np.round(np.arange(0.3, 0.91, 0.02), 2)


def fit_head(samples: list[LesionSample], maps: KindHead) -> KindHead:
    """A head whose regression was fitted to lesions; ``unsure_below`` is 0.

    Args:
        samples: of train; their inputs are those of the head.
        maps: a head with its maps, if any.
    """
    inputs, allowed = np.stack([s.inputs for s in samples]), np.stack([s.allowed for s in samples])
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-6
    weight, offset = _regression(
        ((inputs - mean) / scale).clip(-MAX_DEVIATIONS, MAX_DEVIATIONS), allowed, sample_weights(samples)
    )
    return replace(maps, mean=mean, scale=scale, weight=weight, offset=offset, unsure_below=np.array(0.0))


def _regression(inputs: np.ndarray, allowed: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (kind, input) and offsets (kind,) of the regression; the loss is convex but where labels are partial."""
    x = torch.tensor(inputs, dtype=torch.float64)
    log_allowed = torch.tensor(np.where(allowed, 0.0, -1e9))
    share = torch.tensor(weight)
    layer = torch.zeros(len(KINDS), x.shape[1], dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(len(KINDS), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([layer, offset], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        log_probability = F.log_softmax(x @ layer.T + offset, 1)
        loss = -(share * torch.logsumexp(log_probability + log_allowed, 1)).sum() + PENALTY * (layer**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return layer.detach().numpy(), offset.detach().numpy()


def sample_weights(samples: list[LesionSample]) -> np.ndarray:
    """Weights that add up to 1.

    The lesions of a scan together count as the square root of their number, painted ones together for `PAINTED_SHARE`
    of all; among these, a kind counts as the square root of its number.
    """
    number = Counter(s.case for s in samples if s.source != "painted")
    kinds = Counter(int(s.allowed.argmax()) for s in samples if s.source == "painted")
    is_painted = np.array([s.source == "painted" for s in samples])
    weight = np.array(
        [(kinds[int(s.allowed.argmax())] if s.source == "painted" else number[s.case]) ** -0.5 for s in samples]
    )
    weight[[s.source == "phantoms" for s in samples]] *= PHANTOM
    if is_painted.any() and not is_painted.all():
        weight[is_painted] *= PAINTED_SHARE / weight[is_painted].sum()
        weight[~is_painted] *= (1 - PAINTED_SHARE) / weight[~is_painted].sum()
    return np.asarray(weight / weight.sum())


def unsure_below(probabilities: np.ndarray, allowed: np.ndarray) -> float:
    """The lowest probability from which lesions that are named are right in `NAMED_RIGHT` of them.

    Args:
        probabilities: (lesion, kind), of lesions of one kind that nothing was fitted to.
        allowed: bool (lesion, kind).
    """
    best, right = probabilities.max(axis=1), allowed[np.arange(len(allowed)), probabilities.argmax(axis=1)]
    for candidate in CANDIDATES:
        named = best >= candidate
        if named.any() and right[named].mean() >= NAMED_RIGHT:
            return float(candidate)
    return float(CANDIDATES[-1])
