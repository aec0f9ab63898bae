"""Random changes of training images. Every one is a function of the generator that it is given."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def in_plane_affine(
    n: int,
    generator: torch.Generator,
    degrees: float = 15.0,
    scale: float = 0.1,
    shift: float = 0.06,
    share_turned: float = 0.0,
) -> Tensor:
    """Random left-right flips, rotations, scalings, shifts: float (n, 2, 3) for `torch.nn.functional.affine_grid`.

    Args:
        share_turned: of the samples to turn by any angle (patients lie on their side); 0 draws no random numbers.
    """
    angle = torch.deg2rad(_uniform(n, -degrees, degrees, generator))
    if share_turned:
        turned = torch.rand(n, generator=generator) < share_turned
        angle = torch.where(turned, _uniform(n, -torch.pi, torch.pi, generator), angle)
    size = 1 + _uniform(n, -scale, scale, generator)
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * size, torch.sin(angle) * size
    move = _uniform(2 * n, -shift, shift, generator).view(2, n)
    return torch.stack([torch.stack([flip * cos, -sin, move[0]], 1), torch.stack([flip * sin, cos, move[1]], 1)], 1)


def random_window(rng: np.random.Generator) -> tuple[float, float]:
    """A window as scans are exported in: bottom -20..10 HU, top 66..100 HU; either at times as wide as it can be."""
    bottom = float(rng.uniform(-20, 10)) if rng.random() < 0.7 else -20.0
    top = float(rng.uniform(66, 100)) if rng.random() < 0.85 else 100.0
    return bottom, top


def degraded(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Blur a share of the images, and pass a share through JPEG: what a smooth kernel and public copies do to a CT.

    Args:
        images: float (n, y, x) in 0..1, each changed on its own.
        share: probability of either, for each image.
    """
    n = len(images)
    sigma = torch.where(torch.rand(n, generator=generator) < share, _uniform(n, 0.4, 1.2, generator), 0.0)
    quality = torch.where(torch.rand(n, generator=generator) < share, _uniform(n, 40, 95, generator), 0.0)
    changed = []
    for image, s, q in zip(images.cpu().numpy(), sigma.tolist(), quality.tolist(), strict=True):
        result = cv2.GaussianBlur(image, (0, 0), s) if s else image
        if q:
            stored = np.clip(result * 255, 0, 255).astype(np.uint8)
            _, code = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, int(q)])
            result = np.asarray(cv2.imdecode(code, cv2.IMREAD_GRAYSCALE), np.float32) / 255
        changed.append(result)
    return torch.from_numpy(np.stack(changed)).to(images)


def augmented_slices(
    hu: Tensor,
    generator: torch.Generator,
    windows: Tensor,
    lengths: Tensor | None = None,
    share_degraded: float = 0.0,
    share_narrow: float = 0.0,
) -> Tensor:
    """Move, shift and roughen slices (n, y, x) in HU.

    Args:
        windows: (window, 2) HU that the network sees; their lowest value comes in from outside.
        lengths: slices per volume: the slices of a volume are changed alike. One by one when None.
        share_degraded: of the slices to blur, and to pass through JPEG; 0 draws no random numbers.
        share_narrow: of the slices (or volumes) to clip to a random window; 0 draws no random numbers.
    """
    background, top = float(windows.min()), float(windows.max())
    n = len(hu) if lengths is None else len(lengths)
    each = torch.ones(n, dtype=torch.long) if lengths is None else lengths.cpu()
    matrix = in_plane_affine(n, generator).repeat_interleave(each, 0)
    grid = F.affine_grid(matrix, [len(hu), 1, *hu.shape[1:]], align_corners=False)
    moved = F.grid_sample((hu - background)[:, None].cpu(), grid, align_corners=False)[:, 0]
    offset = _uniform(n, -4, 4, generator).repeat_interleave(each)[:, None, None]
    gain = (1 + _uniform(n, -0.05, 0.05, generator)).repeat_interleave(each)[:, None, None]
    noise = (
        torch.randn(hu.shape, generator=generator) * _uniform(n, 0, 4, generator).repeat_interleave(each)[:, None, None]
    )
    changed = moved * gain + torch.where(moved > 0, offset + noise, 0.0)
    if share_degraded:
        scale = top - background
        changed = degraded((changed / scale).clamp(0, 1), generator, share_degraded) * scale
    changed = changed + background
    if share_narrow:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        windows_of = [random_window(rng) if rng.random() < share_narrow else (background, top) for _ in range(n)]
        low, high = torch.tensor(windows_of).T.repeat_interleave(each, 1)[:, :, None, None]
        changed = changed.clamp(background, top).maximum(low).minimum(high)
    return changed.to(hu)


def augmented_patches(
    image: Tensor, target: Tensor, generator: torch.Generator, share_degraded: float = 0.0, share_turned: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Move patches (n, channel, z, y, x) and their targets alike, in plane; then change the image's contrast.

    The image is 0 outside the intracranial mask, and stays so.
    """
    n, channels = image.shape[:2]
    matrix = in_plane_affine(n, generator, share_turned=share_turned)
    both = torch.cat([image, target], 1).cpu()
    flat = both.reshape(n, -1, *both.shape[3:])
    grid = F.affine_grid(matrix, list(flat.shape), align_corners=False)
    moved = F.grid_sample(flat, grid, align_corners=False).reshape(both.shape)
    if torch.rand(1, generator=generator) < 0.5:
        moved = moved.flip(2)  # upside down in z: a lesion stays a lesion
    changed, target = moved[:, :channels], moved[:, channels:]
    inside = changed > 0
    gain = 1 + _uniform(n, -0.06, 0.06, generator).view(n, 1, 1, 1, 1)
    offset = _uniform(n, -0.03, 0.03, generator).view(n, 1, 1, 1, 1)
    noise = torch.randn(changed.shape, generator=generator) * _uniform(n, 0, 0.03, generator).view(n, 1, 1, 1, 1)
    changed = torch.where(inside, changed * gain + offset + noise, 0.0)
    if share_degraded:
        worse = degraded(changed.flatten(0, 2), generator, share_degraded).reshape(changed.shape)
        changed = torch.where(inside, worse, 0.0)
    return changed.to(image), target.to(image)
