"""Train hemseg: slice labels in, ONNX weights out.

\b
python -m training all --config smoke --run runs/smoke
python -m training all --config phe_sich --data ../data/phe-sich --run runs/phe_sich
python -m training all --config best --data ../data/phe-sich --data ../data/ct-ich --run runs/best
python -m training measure --data ../data/ct-ich --out OUT
python -m training phantoms FOLDER --cases 20

A stage that is done is skipped; one that was interrupted goes on where it was; one whose configuration or inputs
changed starts over. Naming a stage runs what it needs first.
"""

from __future__ import annotations

import sys

import typer

from hemseg.errors import HemsegError

from .commands import experiments, measure, pipeline, tools

GROUPS = {"Pipeline": pipeline, "Measure": measure, "Experiments": experiments, "Tools": tools}

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for _title, _module in GROUPS.items():
    for _command in _module.app.registered_commands:
        _command.rich_help_panel = _title
    app.add_typer(_module.app)


def main() -> None:
    """Run the command line; a mistake of the user ends in one sentence."""
    try:
        app(standalone_mode=True)
    except HemsegError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("hemseg", (__package__ or "").split(".")[0]):
            raise
        print(f"error: training needs {error.name}; `pip install 'hemseg[training]'`.", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
