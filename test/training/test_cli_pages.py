"""The reference pages of both command lines hold every command and option, as they are."""

from __future__ import annotations

import pytest
import typer
from conftest import ROOT, training

from hemseg.cli import app as hemseg_app
from training.commands.app import GROUPS, app
from training.commands.reference import pages


@pytest.mark.parametrize("name", ["cli.md", "training-cli.md"])
def test_the_pages_are_current(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == pages(typer.main.get_command(app))[name], (
        "run `python -m training cli-pages`"
    )


@pytest.mark.parametrize(("name", "of"), [("cli.md", hemseg_app), ("training-cli.md", app)])
def test_every_command_and_option_is_in_them(name: str, of: typer.Typer) -> None:
    text = (ROOT / "docs" / name).read_text()
    commands = typer.main.get_command(of).commands  # type: ignore[attr-defined]
    assert len(commands) >= 2
    for command, found in commands.items():
        section = text.partition(f"# {command}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
        assert section, command
        options = [option for p in found.params if p.param_type_name == "option" for option in p.opts]
        assert not [option for option in options if f"`{option}" not in section and option != "--help"], command
        assert all(p.help for p in found.params if p.name != "help"), command  # each says what it is


def test_the_help_is_in_groups() -> None:
    text = training("--help").stdout
    places = [text.index(f" {title} ") for title in GROUPS]
    assert places == sorted(places)
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    assert len(commands) >= 28
    assert {command.rich_help_panel for command in commands} == set(GROUPS)


def test_an_unknown_precision_is_wrong_usage() -> None:
    done = training("all", "--config", "smoke", "--run", "run", "--precision", "fp8", check=2)
    assert "bf16-mixed" in done.stderr
