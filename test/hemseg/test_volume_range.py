"""--range: the changed runs come back to their place, and the range holds the volume."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import hemseg_here

from hemseg.errors import HemsegError
from hemseg.folder.plan import OutputOptions
from hemseg.folder.rows import settings_key
from hemseg.model import load
from hemseg.scan import read
from hemseg.segmentation import segment
from hemseg.volume_range import augmented_probabilities, manifest_at_threshold, volume_range


def test_mirrored_and_shifted_runs_come_back_to_their_place(bleed_scan: Path, light: Path) -> None:
    """A network that looks at each voxel alone answers the same, however the head lies."""
    model = load(light, "cpu")
    model.manifest = replace(model.manifest, threshold=0.3, outline_threshold=0.7)
    result = segment(read(bleed_scan), model)
    mirrored, shifted = augmented_probabilities(result.working, model)
    assert result.working_probability is not None
    assert result.working_probability.max() > 0.9
    np.testing.assert_allclose(mirrored, result.working_probability, atol=1e-5)
    np.testing.assert_allclose(shifted, result.working_probability, atol=1e-5)

    def range_with(low: float, high: float, margin: float) -> tuple[float, float]:
        model.manifest = replace(model.manifest, range_thresholds=(low, high), range_margin=margin)
        return volume_range(result, model)

    ml, at = result.volume_ml, model.manifest.outline_threshold
    assert range_with(at, at, 0.0) == pytest.approx((ml, ml), rel=1e-3)
    assert range_with(at, at, 0.25) == pytest.approx((ml / 1.25, ml * 1.25), rel=1e-3)
    low, high = range_with(0.1, 0.9, 0.0)
    assert 0 < low < ml < high < 2 * ml
    plain = replace(model.manifest, threshold=0.5, outline_threshold=0.0)  # one threshold for both
    assert manifest_at_threshold(plain, 0.9) == replace(plain, threshold=0.9)
    assert manifest_at_threshold(model.manifest, 0.1) == replace(model.manifest, threshold=0.1, outline_threshold=0.1)
    assert manifest_at_threshold(model.manifest, 0.9).threshold == model.manifest.threshold
    with pytest.raises(HemsegError, match="has no range"):
        volume_range(replace(result, working_probability=None), model)


def test_the_command_writes_it(bleed_scan: Path, light: Path, tmp_path: Path) -> None:
    words = ("segment", bleed_scan.parent, tmp_path / "out", "--weights", light, "--report", "--range")
    hemseg_here(*words)
    (row,) = csv.DictReader((tmp_path / "out" / "summary.csv").open(newline=""))
    low, ml, high = (float(row[name]) for name in ("volume_ml_low", "volume_ml", "volume_ml_high"))
    assert low < ml < high
    report = json.loads((tmp_path / "out" / "bleed" / "report.json").read_text())
    assert report["volume_ml_range"] == [low, high]
    assert f"<dd>{low:.1f} to {high:.1f} mL</dd>" in (tmp_path / "out" / "bleed" / "report.html").read_text()


def test_calibration_changes_no_other_run(light: Path) -> None:
    """The constants of the range are part of a case's key only where there is a range."""
    one = load(light, "cpu").manifest
    two = replace(one, range_margin=one.range_margin + 0.1)
    assert settings_key(one) == settings_key(two)
    assert settings_key(one, OutputOptions(range=True)) != settings_key(two, OutputOptions(range=True))
