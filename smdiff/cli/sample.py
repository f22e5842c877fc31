"""`smdiff sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from smdiff.cli.options import Quiet
from smdiff.config import SampleConfig, nearest, resolve
from smdiff.errors import UserError
from smdiff.ranks import ranks

_SHOWS = ("live", "html")
_PAGE = Path("trajectory.html")


def sample(
    model: Annotated[
        str,
        typer.Argument(
            help="Run folder, adapter, Dream, LLaDA or other denoiser folder, MDLM weights, or a hub name.",
            show_default=False,
        ),
    ],
    show: Annotated[
        str | None,
        typer.Option(help="live: watch the text appear; html: write the steps to --show-to.", rich_help_panel="Output"),
    ] = None,
    show_to: Annotated[
        Path | None, typer.Option(help=f"File of --show html; by default {_PAGE}.", rich_help_panel="Output")
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(help="Write every step of every text, one JSON object a line.", rich_help_panel="Output"),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line.", rich_help_panel="Output")
    ] = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Write texts: from nothing, after a prompt, as an answer, or into the gaps of a text."""
    config = resolve(SampleConfig, flags).config
    if show is not None and show not in _SHOWS:
        raise UserError(f"--show {show}", "no such view", nearest(show, _SHOWS))
    if show_to is not None and show != "html":
        raise UserError(
            f"--show-to {show_to} has no effect", "it is the file of --show html", fix="Give --show html too."
        )
    if ranks() > 1 and (show or history):
        why = "the steps of a text are seen by the process that writes it"
        raise UserError(f"{'--show' if show else '--history'} with {ranks()} processes", why, "Leave the launcher out.")

    from smdiff.cli.render import Viewer, samples, setup

    setup(quiet)
    from smdiff.decoding.generate import check, write
    from smdiff.models.load import load, pinned

    check(config)
    viewer = Viewer(show, show_to or _PAGE, history, title=f"{model}, {config.scheduler}")
    loaded = load(pinned(model, config.revision), config.tokenizer, config.device, config.precision)
    with viewer:
        texts = write(
            loaded, config, watch=viewer.watch if viewer.on else None, progress=None if show == "live" else "sampling"
        )
        samples(texts, json, viewer)
