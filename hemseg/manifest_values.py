"""Is what a manifest holds of the right types and within ranges? A wrong one would segment wrongly, or not end."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import PurePath
from typing import Any, get_args, get_origin, get_type_hints

RANGES = {  # of numbers; lowest and highest
    "in_plane_mm": (0.2, 10.0),
    "slice_mm": (0.2, 50.0),
    "bilateral_diameter": (1, 99),
    "bilateral_sigma_hu": (1e-3, 1e4),
    "bilateral_sigma_mm": (1e-3, 1e3),
    "skull_percentile": (0.0, 100.0),
    "hu_range": (-1e5, 1e5),
    "patch": (1, 1024),
    "threshold": (0.0, 1.0),
    "outline_threshold": (0.0, 1.0),
    "outline_ml": (0.0, 1e4),
    "min_peak": (0.0, 1.0),
    "min_slice_probability": (0.0, 1.0),
    "doubt_slice_probability": (0.0, 1.0),
    "classifier_field": (0, 1024),
    "min_lesion_ml": (0.0, 1e4),
    "max_median_hu": (0.0, 1e5),
    "range_thresholds": (0.0, 1.0),
    "range_margin": (0.0, 10.0),
    "format": (1, 1000),
}
MAX_PATCH_VOXELS = 1 << 27
ACCEPTED: dict[Any, tuple[tuple[type, ...], str]] = {  # by the type of a field: types of JSON, and these in words
    float: ((int, float), "a number"),
    int: ((int,), "a whole number"),
    str: ((str,), "text"),
    bool: ((bool,), "true or false"),
    dict: ((dict, Mapping), "a set of values"),
}


def check_values(values: Any, at: str = "") -> None:
    """Look at a manifest, or at the settings in it.

    Args:
        values: a dataclass of numbers, texts, tuples of them and dictionaries.

    Raises:
        ValueError: says which value is wrong.
    """
    for field in fields(values):
        name, value = f"{at}{field.name}", getattr(values, field.name)
        kind = get_type_hints(type(values))[field.name]
        if hasattr(kind, "__dataclass_fields__"):
            check_values(value, f"{name}.")
            continue
        _check_type(name, value, kind)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not _is_within(number, field.name):
                raise ValueError(f"{name} is {number:g}, and should be {_range(field.name)}")
        if field.name.endswith("file") and value and PurePath(value).name != value:
            raise ValueError(f"{name} should be the name of a file beside the manifest")
        if field.name.endswith("sha256") and value and not re.fullmatch("[0-9a-f]{64}", value):
            raise ValueError(f"{name} should be 64 hexadecimal digits")
        if field.name == "patch" and math.prod(value) > MAX_PATCH_VOXELS:
            raise ValueError(f"{name} holds more than {MAX_PATCH_VOXELS} voxels")


def _is_within(number: float, name: str) -> bool:
    low, high = RANGES.get(name, (-math.inf, math.inf))
    return math.isfinite(number) and low <= number <= high


def _range(name: str) -> str:
    return "from {:g} to {:g}".format(*RANGES[name]) if name in RANGES else "a finite number"


def _check_type(name: str, value: Any, kind: Any) -> None:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        expected = inner[:1] * len(value) if inner[-1] is ... and isinstance(value, tuple) else inner
        if not isinstance(value, tuple) or len(value) != len(expected) or not value:
            raise ValueError(f"{name} should be a list of {len(inner) if inner[-1] is not ... else 'several'} values")
        for one, type_ in zip(value, expected, strict=True):
            _check_type(name, one, type_)
        return
    if (origin or kind) not in ACCEPTED:
        return
    types, words = ACCEPTED[origin or kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} should be {words}")
