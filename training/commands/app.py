"""Train hemseg: slice labels in, ONNX weights out.

\b
python -m training all --config smoke --run runs/smoke
python -m training all --config phe_sich --data ../data/phe-sich --run runs/phe_sich
python -m training all --config best --data ../data/phe-sich --data ../data/ct-ich --run runs/best
python -m training measure --data ../data/ct-ich --out OUT
python -m training phantoms FOLDER --cases 20

A finished stage is skipped, and an interrupted one resumes. A stage whose configuration or inputs changed starts over;
if it had finished training a network, that network is moved to RUN/former. Naming a stage also runs the stages that it
needs before it.
"""

from __future__ import annotations

import typer

from . import experiments, kinds, measure, pipeline, tools

GROUPS = {"Pipeline": pipeline, "Measure": measure, "Kinds": kinds, "Experiments": experiments, "Tools": tools}

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for _title, _module in GROUPS.items():
    for _command in _module.app.registered_commands:
        _command.rich_help_panel = _title
    app.add_typer(_module.app)
