"""Reference pages of the two command lines, made from the commands themselves."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import typer


def write_pages(training: Any, folder: Path) -> list[Path]:
    """Write ``cli.md`` and ``training-cli.md``; returns their paths.

    Args:
        training: typer's command of ``python -m training``.
        folder: where to.
    """
    written = []
    for name, text in pages(training).items():
        path = folder / name
        path.write_text(text)
        written.append(path)
    return written


def pages(training: Any) -> dict[str, str]:
    """The text of each page, by its file's name."""
    from hemseg.cli import app as hemseg_app

    hemseg = typer.main.get_command(hemseg_app)
    groups: dict[str, list[str]] = {}
    for name, command in training.commands.items():
        groups.setdefault(command.rich_help_panel, []).append(name)
    return {
        "cli.md": page(hemseg, "hemseg", {}),
        "training-cli.md": page(training, "python -m training", groups)
        + "\nIf hemseg is installed from a wheel, use `hemseg-train` instead.\n",
    }


def page(command: Any, program: str, groups: dict[str, list[str]]) -> str:
    """A page of Markdown.

    Args:
        command: typer's command, or group of commands.
        groups: titles with the commands below each; by default all stand in one list.
    """
    head = [
        f"# `{program}`",
        "",
        "Generated from the commands by `python -m training cli-pages`; a test checks that it is current.",
        "",
        *paragraphs(command.help),
    ]
    found = getattr(command, "commands", None) or {program.split()[-1]: command}
    for title, names in (groups or {"": list(found)}).items():
        head += ["", f"## {title}"] if title else []
        for name in names:
            head += ["", f"{'###' if title else '##'} {name}", "", *section(found[name], f"{program} {name}")]
    return "\n".join(head) + "\n"


def section(command: Any, call: str) -> list[str]:
    """One command: what it does, how it is called, its arguments and options."""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    usage = " ".join([call, *(_metavar(p) for p in arguments), *(["[OPTIONS]"] if options else [])])
    lines = [*paragraphs(command.help), "", f"    {usage}"]
    if arguments or options:
        lines += ["", "| | |", "|---|---|"]
    lines += [f"| `{_metavar(p)}` | {_cell(p.help or '')} |" for p in arguments]
    for option in options:
        value = "" if option.is_flag else " " + _metavar(option)
        names = ", ".join(f"`{name}{_cell(value)}`" for name in [*option.opts, *option.secondary_opts])
        lines.append(f"| {names} | {_cell(option.help or '')}{_default(option)} |")
    return lines


def paragraphs(text: str | None) -> list[str]:
    """A help text as lines of Markdown; what typer is not to wrap becomes code."""
    lines: list[str] = []
    for paragraph in (text or "").strip().split("\n\n"):
        lines += [""] if lines else []
        if paragraph.startswith("\b\n"):
            lines += [f"    {line}" for line in paragraph[2:].splitlines()]
        else:
            lines += paragraph.splitlines()
    return lines


def _metavar(parameter: Any) -> str:
    """What stands for a value: its choices, or its kind."""
    if parameter.metavar:
        return str(parameter.metavar)
    kind = parameter.type_descriptor.annotation
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(typing.get_args(kind))
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    if typing.get_origin(kind) is list:
        (kind,) = typing.get_args(kind)
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _default(option: Any) -> str:
    if option.required:
        return " *Required.*"
    plain = isinstance(option.default, (str, int, float, Path)) and not option.is_flag and str(option.default)
    return f" Default: `{option.default}`." if plain else ""
