"""No import runs up the layers, and no modules import each other in a circle; lazy imports count like others."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# from the ground up; a module imports what lies below it or beside it, a package stands for all that is in it
LAYERS = (
    (
        "hemseg",
        "hemseg.names",
        "hemseg.errors",
        "hemseg.choices",
        "hemseg.options",
        "hemseg.startup",
        "hemseg.streams",
        "hemseg.manifest_values",
    ),
    ("hemseg.volume", "hemseg.resources"),
    ("hemseg.io", "hemseg.signals"),
    ("hemseg.dicom",),
    (
        "hemseg.scan",
        "hemseg.components",
        "hemseg.abc2",
        "hemseg.lesions",
        "hemseg.preprocessing",
        "hemseg.working_grid",
        "hemseg.strip",
        "hemseg.hounsfield",
        "hemseg.lesion_features",
        "hemseg.fields_of_view",
        "hemseg.kinds",
        "hemseg.second_opinion",
        "hemseg.outline",
        "hemseg.upright",
    ),
    ("hemseg.manifest", "hemseg.onnx_session", "hemseg.model"),
    ("hemseg.sliding_window", "hemseg.postprocessing"),
    ("hemseg.checks", "hemseg.sanity", "hemseg.segmentation", "hemseg.volume_range"),
    ("hemseg.report", "hemseg.measure", "hemseg.dicom_out", "hemseg.mask_formats"),
    ("hemseg.folder", "hemseg.compare", "hemseg.bids"),
    ("hemseg.node", "hemseg.grand_challenge", "hemseg.api", "hemseg.cli"),
    ("process",),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def modules(folder: Path) -> dict[str, Path]:
    """The modules below a folder's packages, by their names."""
    packages = ("hemseg", "training", "benchmarks")
    paths = [*folder.glob("*.py"), *(path for package in packages for path in folder.glob(f"{package}/**/*.py"))]
    names = {path: ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return {name: path for path, name in names.items()}


def imports(name: str, path: Path, known: set[str]) -> Iterator[str]:
    """The known modules that a module imports, anywhere in it: in functions and for types, too.

    The names that `hemseg` itself offers are exempt: it imports them when they are asked for.
    """
    if name == "hemseg":
        return
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found = [f"{module}.{alias.name}" for alias in node.names]
            found = [one if one in known else module for one in found]
        else:
            continue
        yield from (one for one in found if one in known and one != name)


def graph(folder: Path) -> dict[str, set[str]]:
    found = modules(folder)
    return {name: set(imports(name, path, set(found))) for name, path in found.items()}


def height(name: str) -> int:
    """Of a module, or of the package that it is in."""
    parts = name.split(".")
    return next(HEIGHT[".".join(parts[:n])] for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in HEIGHT)


def upwards(edges: dict[str, set[str]]) -> list[str]:
    """Imports of hemseg that run up, or leave it."""
    found = []
    for name, others in edges.items():
        if name.split(".")[0] != "hemseg":
            continue
        for other in others:
            if other.split(".")[0] not in ("hemseg",) or height(other) > height(name):
                found.append(f"{name} imports {other}")
    return sorted(found)


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other in a circle (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges[name]:
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    sys.setrecursionlimit(max(sys.getrecursionlimit(), 10 * len(edges)))
    for name in edges:
        if name not in index:
            visit(name)
    return found


def test_every_module_has_a_layer() -> None:
    """A new module of hemseg is not at the bottom by oversight: its name, or its package's, stands in the map."""
    tops = {name if name.count(".") == 0 else ".".join(name.split(".")[:2]) for name in modules(ROOT)}
    assert sorted(top for top in tops if top.startswith("hemseg") and top not in HEIGHT) == []


def test_no_import_runs_up_the_layers() -> None:
    assert upwards(graph(ROOT)) == []


@pytest.mark.parametrize("package", ["hemseg", "training", "benchmarks"])
def test_no_cycles(package: str) -> None:
    edges = graph(ROOT)
    assert len([name for name in edges if name.startswith(package)]) > 2  # that something is looked at
    own = {name: {o for o in edges[name] if o.startswith(package)} for name in edges if name.startswith(package)}
    assert cycles(own) == []


def test_lazy_and_relative_imports_count(tmp_path: Path) -> None:
    for name, text in {
        "errors": "",
        "volume": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hemseg.io.files import X",
        "io/__init__": "",
        "io/files": "def f():\n    from ..api import g\n    from . import other",
        "io/other": "def f():\n    import hemseg.io.files",
        "api": "from hemseg import errors",
    }.items():
        path = tmp_path / "hemseg" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    edges = graph(tmp_path)
    assert upwards(edges) == ["hemseg.io.files imports hemseg.api", "hemseg.volume imports hemseg.io.files"]
    assert cycles(edges) == [["hemseg.io.files", "hemseg.io.other"]]
