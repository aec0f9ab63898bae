"""The calibration of a volume's range: margins whose answer is known."""

from __future__ import annotations

import math

import pytest

from hemseg.errors import HemsegError
from training.evaluation.volume_range import PAIRS, Scan, calibrate, margin_of, page, rounded_up, summary

NARROW, WIDE = PAIRS[0], PAIRS[-1]


def scan(reference: float, spread: float = 0.1, volume: float = 10.0) -> Scan:
    """A volume of 10 mL that moves by ``spread`` at the outermost thresholds, and by a little less at others."""
    volumes = {}
    for number, pair in enumerate(PAIRS, start=1):
        share = spread * number / len(PAIRS)
        volumes |= {pair[0]: [volume * (1 + share), volume], pair[1]: [volume * (1 - share), volume]}
    return Scan("case", reference, volume, volumes)


def test_the_margin_that_holds_the_reference() -> None:
    assert scan(10.0).needed(NARROW) == 0
    assert scan(10.9).needed(WIDE) == 0
    assert scan(12.1).needed(WIDE) == pytest.approx(0.1)
    assert scan(6.0).needed(WIDE) == pytest.approx(0.5)
    nothing = scan(10.0, volume=0.0)
    assert nothing.needed(WIDE) == math.inf
    for reference in (3.0, 6.0, 12.1, 20.0):
        one = scan(reference)
        low, high = one.range(NARROW, rounded_up(one.needed(NARROW)))
        assert low <= reference <= high


def test_nine_of_ten_by_split_conformal_prediction() -> None:
    """With 9 scans the largest margin counts, with 19 the second largest (18th of 19)."""
    few = [scan(11.0 + 0.5 * n) for n in range(9)]
    assert margin_of(few, WIDE) == pytest.approx(15 / 11 - 1)
    many = [scan(11.0 + 0.5 * n) for n in range(19)]
    assert margin_of(many, WIDE) == pytest.approx(19.5 / 11 - 1)
    row = summary(many, WIDE)
    assert row["held"] == pytest.approx(18 / 19)
    assert row["left_out"] == pytest.approx(18 / 19)  # of 18 the largest counts


def test_the_narrowest_ranges_are_taken() -> None:
    """Where the references lie at the volume, the narrowest pair; where they lie at the wide ends, no wider margin."""
    rows, chosen = calibrate([scan(10.0) for _ in range(9)])
    assert len(rows) == len(PAIRS)
    assert (chosen["low_threshold"], chosen["high_threshold"]) == NARROW
    assert (chosen["margin"], chosen["held"]) == (0, 1)
    scans = [scan(11.0 if n % 2 else 9.0, 0.1) for n in range(9)]
    _, chosen = calibrate(scans)
    assert chosen["held"] >= 0.9
    text = page(rows, chosen, scans, "test 1")
    assert text.count("\n| 9.0 | 10.0 |") == 5
    assert f"a margin of {chosen['margin']:.3f}" in text
    with pytest.raises(HemsegError, match="no margin holds nine of ten"):
        calibrate([scan(10.0, volume=0.0) for _ in range(9)])
