"""``hemseg node``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hemseg.options import Device, Weights, path


def node(
    destination: Annotated[
        str, typer.Option("--return", metavar="HOST:PORT:AE", help="Where results are sent by C-STORE.")
    ],
    queue: Annotated[
        Path,
        typer.Option(
            parser=path, metavar="DIR", help="Folder that holds what is under way; it survives an end of the process."
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where it listens; 0: any free port.")] = 11112,
    title: Annotated[str, typer.Option("--ae-title", help="Its own AE title.")] = "HEMSEG",
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="AE@HOST", help="Who may send; may be repeated. Without it: the node of --return alone."),
    ] = None,
    bind: Annotated[str, typer.Option(help="Address that it listens at; all of this host by default.")] = "",
    quiet_seconds: Annotated[
        float, typer.Option(min=0.0, help="A study is complete when no image came for so long.")
    ] = 30.0,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what looks odd or implausible.")] = False,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Be a DICOM node: receive CT studies, segment one at a time, send the results back. Until Ctrl-C or SIGTERM.

    Needs the extra hemseg[node]. Only application entities that are allowed by title and host may call.
    """
    from hemseg.manifest import default_weights
    from hemseg.node.peers import Peer, ae_title, parse_caller, parse_destination
    from hemseg.node.service import Settings, run_node

    back = parse_destination(destination)
    allowed = tuple(parse_caller(text) for text in allow or ()) or (Peer(back.title, back.host),)
    settings = Settings(ae_title(title, "--ae-title"), (bind, port), back, allowed, queue, quiet_seconds, strict)
    run_node(settings, weights or default_weights(), device)
