"""``hemseg node``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hemseg.options import Device, Weights, path


def node(
    destination: Annotated[
        str, typer.Option("--return", metavar="HOST:PORT:AE", help="Destination of the results (C-STORE).")
    ],
    queue: Annotated[
        Path,
        typer.Option(
            parser=path, metavar="DIR", help="Folder for studies in progress; they survive the end of the process."
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port.")] = 11112,
    title: Annotated[str, typer.Option("--ae-title", help="AE title of this node.")] = "HEMSEG",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AE@HOST", help="Node that may send; may be repeated. Without it, only the --return node may send."
        ),
    ] = None,
    bind: Annotated[str, typer.Option(help="Address to listen on; by default, all addresses of this host.")] = "",
    quiet_seconds: Annotated[
        float, typer.Option(min=0.0, help="A study is complete when no image has arrived for this long.")
    ] = 30.0,
    strict: Annotated[bool, typer.Option("--strict", help="Reject odd-looking scans and implausible results.")] = False,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Run a DICOM node: receive CT studies, segment them one at a time, and send the results back.

    Runs until Ctrl-C or SIGTERM. Requires the extra hemseg[node]. Only application entities whose AE title and host are
    allowed may connect.
    """
    from hemseg.manifest import default_weights
    from hemseg.node.peers import Peer, ae_title, parse_caller, parse_destination
    from hemseg.node.service import Settings, run_node

    back = parse_destination(destination)
    allowed = tuple(parse_caller(text) for text in allow or ()) or (Peer(back.title, back.host),)
    settings = Settings(ae_title(title, "--ae-title"), (bind, port), back, allowed, queue, quiet_seconds, strict)
    run_node(settings, weights or default_weights(), device)
