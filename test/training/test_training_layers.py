"""The training's layers: no import runs upwards, lazy ones neither (test/hemseg/test_layers.py looks for circles)."""

from __future__ import annotations

import ast

from conftest import ROOT

SOURCE = ROOT / "training"
LAYERS = (
    ("console", "stage_names", "config", "rounds"),
    ("data",),
    ("networks",),
    ("fitting",),
    ("labels",),
    ("evaluation",),
    ("export",),
    ("pipeline",),
    ("experiments",),
    ("commands",),
    ("__main__",),
)


def imports() -> dict[str, set[str]]:
    """The modules of the training that each of them imports."""
    files = {file: file.relative_to(SOURCE).with_suffix("").parts for file in SOURCE.rglob("*.py")}
    modules = {".".join(parts) for parts in files.values()}
    found: dict[str, set[str]] = {}
    for file, parts in files.items():
        own = found.setdefault(".".join(parts), set())
        tree = ast.parse(file.read_text())
        for_types = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
        ignored = {id(node) for block in for_types for node in ast.walk(block)}  # no import when it runs
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not node.level or id(node) in ignored:
                continue
            above = parts[: len(parts) - node.level]
            for alias in node.names:
                names = (*above, *(node.module or "").split("."), alias.name)
                dotted = [".".join(filter(None, names[:n])) for n in range(1, len(names) + 1)]
                own |= {name for name in dotted if name in modules}
    return found


def test_no_import_runs_upwards() -> None:
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    pairs = [(a, b) for a, others in imports().items() for b in others]
    assert len(pairs) > 100
    top = [(a.split(".")[0], b.split(".")[0]) for a, b in pairs if a != "__init__"]
    assert [f"{a} imports {b}" for a, b in top if layer[b] > layer[a]] == []
