"""hemseg: intracranial hemorrhage on non-contrast head CT, outlined in 3D. Research software, not a medical device.

>>> import hemseg
>>> result = hemseg.segment("scan.nii.gz")                                      # doctest: +SKIP
>>> result.volume_ml, len(result.lesions), result.save("mask.nii.gz")           # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hemseg.api import segment as segment
    from hemseg.errors import HemsegError as HemsegError
    from hemseg.lesions import Lesion as Lesion
    from hemseg.scan import read as read
    from hemseg.segmentation import Segmentation as Segmentation
    from hemseg.volume import Volume as Volume

__version__ = "0.1.0"
__all__ = ["HemsegError", "Lesion", "Segmentation", "Volume", "read", "segment"]
_HOMES = {
    "segment": "api",
    "HemsegError": "errors",
    "Lesion": "lesions",
    "Segmentation": "segmentation",
    "Volume": "volume",
    "read": "scan",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for: `import hemseg` alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hemseg' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"hemseg.{_HOMES[name]}"), name)
