"""The tables of README.md and weights/MODEL_CARD.md, filled in from the result tables that other commands wrote.

    python -m training card

Between ``<!-- table: NAME -->`` and ``<!-- end -->`` stands what a function of `TABLES` returns; a test compares. So a
figure that people read is a figure in `docs/results`, and a table of older weights cannot stay behind.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from hemseg.errors import HemsegError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = (ROOT / "README.md", ROOT / "weights" / "MODEL_CARD.md")
MARKED = re.compile(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)
HEADS = (("phe-sich-heads", "**whole heads**"), ("phe-sich", "skull stripped before"))
Row = dict[str, str]


def filled(text: str, results: Path = RESULTS) -> str:
    """A page with its tables refreshed.

    Raises:
        HemsegError: a table that is not known, or whose values are missing.
    """

    def table(found: re.Match[str]) -> str:
        name = found[1]
        if name not in TABLES:
            raise HemsegError(f"table {name!r} is not known; known: {', '.join(TABLES)}.")
        try:
            return f"<!-- table: {name} -->\n{TABLES[name](results)}\n<!-- end -->"
        except KeyError as missing:
            raise HemsegError(f"table {name!r}: its results have no {missing}; measure again.") from None

    return MARKED.sub(table, text)


def _rows(path: Path) -> list[Row]:
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        raise HemsegError(f"{path}: cannot be read; docs/method.md names the command that writes it.") from None


def _summary(path: Path) -> dict[str, float]:
    try:
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    except (OSError, ValueError):
        raise HemsegError(f"{path}: cannot be read; `python -m training measure` writes it.") from None


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(value: str, low: str = "", high: str = "") -> str:
    text = f"{100 * float(value):.0f} %" if value else "-"
    return text + (f" ({100 * float(low):.0f}..{100 * float(high):.0f})" if value and low else "")


def heads(results: Path) -> str:
    """PHE-SICH-CT-IDS, test: whole heads, and the same patients stripped before."""
    good = float(_rows(results / "robustness" / "changes_summary.csv")[0]["dice_good"])
    rows = []
    for name, title in HEADS:
        s = _summary(results / "best" / name / "summary.json")
        rows.append(
            [
                title,
                f"{s['dice_mean']:.2f} ± {s['dice_sd']:.2f}, median {s['dice_median']:.2f}",
                f"{good:.2f}" if name == "phe-sich-heads" else "",
                f"{s['rvd_median']:.2f} / {s['rvd_mean']:.2f}",
                f"{s['tpr_mean']:.2f}",
                f"{s['hd_mean']:.1f}",
                f"{s['patients_found_count']}",
                f"{s['false_lesions_per_scan']:.2f}",
                f"{s['slice_auc']:.3f}",
            ]
        )
    return _table(
        (
            "20 patients",
            "Dice",
            "Dice, 17 good references",
            "RVD, median / mean",
            "TPR",
            "HD, mm",
            "patients found",
            "false lesions per scan",
            "slice AUC",
        ),
        rows,
    )


def _by_hemorrhage(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Patients by whether one of their slices is labelled with hemorrhage."""
    return [r for r in rows if int(r["positive_slices"])], [r for r in rows if not int(r["positive_slices"])]


def _patients_found(positive: list[Row]) -> str:
    return f"{sum(int(row['slices_found']) > 0 for row in positive)} of {len(positive)}"


def _slices_found(positive: list[Row]) -> str:
    return (
        f"{sum(int(row['slices_found']) for row in positive)} of {sum(int(row['positive_slices']) for row in positive)}"
    )


def _false_positives(healthy: list[Row]) -> str:
    return f"{sum(float(row['predicted_ml']) >= 0.5 for row in healthy)} of {len(healthy)}"


def patients(results: Path) -> str:
    """CT-ICH, val and test: patients found, and blood called in those without."""
    rows = _rows(results / "best" / "ct-ich" / "per_case.csv")
    lines = []
    for title, splits in (("val", ("val",)), ("test", ("test",)), ("**val + test**", ("val", "test"))):
        positive, healthy = _by_hemorrhage([row for row in rows if row["split"] in splits])
        middle = median(float(row["predicted_ml"]) for row in healthy) if healthy else 0.0
        found_or_doubtful = sum(int(row["slices_found"]) + int(row["slices_doubtful"]) > 0 for row in positive)
        with_doubtful = sum(int(row["doubtful_false"]) > 0 for row in healthy)
        lines.append(
            [
                title,
                _patients_found(positive),
                f"{found_or_doubtful} of {len(positive)}",
                _slices_found(positive),
                _false_positives(healthy),
                f"{middle:.1f}",
                f"{with_doubtful} of {len(healthy)}",
            ]
        )
    head = (
        "CT-ICH",
        "patients with hemorrhage found",
        "found, or a doubtful slice with hemorrhage",
        "slices found",
        "healthy with 0.5 mL or more",
        "median mL in the healthy",
        "healthy with a doubtful slice",
    )
    return _table(head, lines)


def changes(results: Path) -> str:
    """The test heads in other windows, with other HU, with artefacts."""
    units = {"window": " HU", "hu": " HU"}
    rows = [
        [
            f"{row['kind']} {row['change']}{units.get(row['kind'], '')}".replace("change ", ""),
            f"{float(row['dice']):.2f} / {float(row['dice_good']):.2f}",
            f"{float(row['false_lesions_per_scan']):.2f}",
            f"{float(row['outside_ml_most']):.1f}",
            f"{_share(row['volume_change_median'])} / {_share(row['volume_change_most'])}",
        ]
        for row in _rows(results / "robustness" / "changes_summary.csv")
    ]
    head = ("", "Dice, all / good", "false lesions per scan", "mL outside the skull, most", "volume, median / most")
    return _table(head, rows)


def few_slices(results: Path) -> str:
    """Slices cut from the middle of the bleed."""
    rows = [
        [row["slices"], f"{float(row['dice_to_whole']):.2f}", f"{float(row['dice']):.2f}", row["found_of_large"]]
        for row in _rows(results / "robustness" / "few_slices_summary.csv")
    ]
    return _table(("slices", "Dice to the whole scan's mask", "Dice", "found, of those with 1 mL and more"), rows)


def phantom_heads(results: Path) -> str:
    """Phantom heads in full HU, tilted, turned, open, small."""
    rows = [
        [
            row["head"],
            row["window"],
            *(f"{float(row[key]):.1f}" for key in ("true_ml", "found_ml")),
            f"{float(row['dice']):.2f}",
            *(f"{float(row[key]):.1f}" for key in ("healthy_ml_most", "outside_ml_most")),
            row["implausible"],
        ]
        for row in _rows(results / "robustness" / "phantom_heads_summary.csv")
    ]
    head = ("head", "window", "true mL", "found mL", "Dice", "healthy, most mL", "outside, most mL", "implausible")
    return _table(head, rows)


def slices(results: Path) -> str:
    """Single slices of the RSNA set."""
    rows = [
        [
            f"{row['split']}, {row['slices']}",
            row["without_blood"],
            _share(row["marked"], row["marked_low"], row["marked_high"]),
            _share(row["marked_or_doubtful"]),
            row["with_blood"],
            _share(row["found"], row["found_low"], row["found_high"]),
            _share(row["found_or_doubtful"], row["found_or_doubtful_low"], row["found_or_doubtful_high"]),
            f"{float(row['auc_score']):.2f} ({float(row['auc_score_low']):.2f}..{float(row['auc_score_high']):.2f})",
            f"{float(row['auc_classifier']):.2f}" if row.get("auc_classifier") else "-",
        ]
        for row in _rows(results / "slices" / "summary.csv")
    ]
    head = (
        "RSNA slices",
        "without blood",
        "of these marked",
        "marked or doubtful",
        "with blood",
        "of these found",
        "found or doubtful",
        "AUC",
        "AUC, classifier",
    )
    return _table(head, rows)


def doubtful(results: Path) -> str:
    """Slices that are called doubtful, and how many of them hold hemorrhage by their labels."""
    lines = []
    for row in _rows(results / "slices" / "summary.csv"):
        if row["slices"] == "all" and "+" not in row["split"]:
            true, false = int(row["doubtful_with_blood"]), int(row["doubtful_without_blood"])
            scans = f"{int(row['with_blood']) + int(row['without_blood'])} single slices"
            lines.append([f"RSNA, {row['split']}", scans, str(true + false), str(true)])
    for name, title in (("ct-ich", "CT-ICH, val + test"), ("phe-sich-heads", "PHE-SICH-CT-IDS, whole heads, test")):
        rows = _rows(results / "best" / name / "per_case.csv")
        true, false = (sum(int(row[key]) for row in rows) for key in ("slices_doubtful", "doubtful_false"))
        lines.append([title, f"{len(rows)} scans", str(true + false), str(true)])
    return _table(("", "looked at", "doubtful slices", "of these with hemorrhage"), lines)


def slices_by_kind(results: Path) -> str:
    """Single slices of the RSNA set by kind, val and test together."""
    rows = [
        [row["kind"], row["with_blood"], _share(row["found"], row["found_low"], row["found_high"])]
        for row in _rows(results / "slices" / "kinds.csv")
        if row["split"] == "val + test"
    ]
    return _table(("kind", "slices with it", "of these found (95 %)"), rows)


def phantoms(results: Path) -> str:
    """Phantoms by kind of hemorrhage."""
    rows = [
        [
            row["kind"],
            *(f"{float(row[key]):.1f}" for key in ("true_ml", "found_ml")),
            f"{float(row['dice']):.2f}" if row["dice"] and row["kind"] != "none" else "-",
            f"{row['with_blood_found']} of {row['phantoms']}",
        ]
        for row in _rows(results / "phantom_kinds.csv")
    ]
    return _table(("hemorrhage", "true mL", "found mL", "Dice", "phantoms in which blood was found"), rows)


def painted(results: Path) -> str:
    """Bleeds painted into the test heads."""
    rows = [
        [
            row["bleeds"],
            row["number"],
            *(_share(row[key]) if row["number"] != "0" else "-" for key in ("found", "found_or_doubtful")),
            f"{float(row['dice']):.2f}" if row["dice"] not in ("", "nan") else "-",
        ]
        for row in _rows(results / "painted" / "summary.csv")
    ]
    return _table(("painted bleeds", "number", "found", "found, or in a doubtful slice", "Dice"), rows)


def other_weights(results: Path) -> str:
    """What ships beside the same from another seed, weights without the RSNA slices, and these of permuted labels."""
    others = {
        "the same, seed 1": results / "others" / "seed1",
        "`best_open`, seed 0": results / "others" / "best_open",
        "control: `best_open`, permuted labels": results / "others" / "permuted",
    }
    rows = [["**what ships**", *_main_metrics(results / "best", results / "slices")]]
    rows += [[title, *_main_metrics(folder, folder / "slices")] for title, folder in others.items()]
    return _table(
        (
            "weights",
            "Dice, 20 whole heads",
            "false lesions per scan",
            "CT-ICH: patients found, of these in test",
            "slices found",
            "healthy with 0.5 mL or more",
            "RSNA: found",
            "marked",
            "AUC",
        ),
        rows,
    )


def _main_metrics(measured: Path, slices: Path) -> list[str]:
    heads = _summary(measured / "phe-sich-heads" / "summary.json")
    positive, healthy = _by_hemorrhage(_rows(measured / "ct-ich" / "per_case.csv"))
    brain = next(
        row for row in _rows(slices / "summary.csv") if (row["split"], row["slices"]) == ("val + test", "brain level")
    )
    return [
        f"{heads['dice_mean']:.3f} ± {heads['dice_sd']:.2f}",
        f"{heads['false_lesions_per_scan']:.2f}",
        f"{_patients_found(positive)}, {_patients_found([row for row in positive if row['split'] == 'test'])}",
        _slices_found(positive),
        _false_positives(healthy),
        _share(brain["found"]),
        _share(brain["marked"]),
        f"{float(brain['auc_score']):.2f}",
    ]


TABLES: dict[str, Callable[[Path], str]] = {
    "heads": heads,
    "patients": patients,
    "changes": changes,
    "few-slices": few_slices,
    "phantom-heads": phantom_heads,
    "slices": slices,
    "doubtful": doubtful,
    "slices-by-kind": slices_by_kind,
    "phantoms": phantoms,
    "painted": painted,
    "other-weights": other_weights,
}
