from __future__ import annotations

import pytest

from training.evaluation.single_slices import kinds_summary, single_summary


def rows() -> list[dict[str, object]]:
    values = (
        ("val", 0, 1, 0.0, 0.1, "", 0, 0),
        ("val", 0, 1, 30.0, 0.9, "", 0, 0),
        ("val", 1, 1, 50.0, 0.95, "subdural", 0, 0),
        ("val", 0, 0, 40.0, 0.8, "", 0, 0),
        ("test", 1, 1, 5.0, 0.3, "subdural epidural", 0, 1),
        ("test", 0, 1, 0.0, 0.0, "", 1, 0),
    )
    keys = ("split", "label", "brain_level", "mm2", "score", "kinds", "refused", "doubtful")
    return [dict(zip(keys, v, strict=True)) for v in values]


def test_single_slices_are_counted_by_level_and_split() -> None:
    brain, every, *_ = summary = single_summary(rows())
    assert (brain["without_blood"], brain["marked"], brain["found"], brain["auc_score"]) == (2, 0.5, 1.0, 1.0)
    assert every["without_blood"] == 3
    assert [row["split"] for row in summary] == ["val"] * 2 + ["test"] * 2 + ["val + test"] * 2
    both = summary[4]
    assert both["refused"] == 1
    assert (both["with_blood"], both["found"]) == (2, 0.5)  # 5 mm² is no blood
    assert (both["found_or_doubtful"], both["marked_or_doubtful"]) == (1.0, 1 / 3)
    assert (both["doubtful_with_blood"], both["doubtful_without_blood"]) == (1, 0)
    assert both["found_low"] < 0.1
    assert both["found_high"] > 0.9


def test_kinds_are_counted_alone_and_with_others() -> None:
    both = {row["kind"]: row for row in kinds_summary(rows()) if row["split"] == "val + test"}
    assert (both["subdural"]["with_blood"], both["subdural"]["found"]) == (2, 0.5)
    assert (both["subdural"]["alone"], both["subdural"]["found_alone"]) == (1, 1.0)
    assert both["epidural"]["found"] == 0.0
    assert both["intraventricular"]["with_blood"] == 0


def test_a_classifier_is_scored_beside_the_mask() -> None:
    asked = [row | {"classifier": 0.9 * float(row["label"])} for row in rows()]  # type: ignore[arg-type]
    assert single_summary(asked)[0]["auc_classifier"] == pytest.approx(1.0)
