"""`smdiff sample`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from smdiff.cli.options import Quiet
from smdiff.config import SampleConfig, resolve


def sample(
    model: Annotated[str, typer.Argument(help="Run folder, or weights in MDLM's layout.", show_default=False)],
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line.", rich_help_panel="Output")
    ] = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Write unconditional texts: on stdout, or with --json one JSON object a line."""
    config = resolve(SampleConfig, flags).config

    from smdiff.cli.render import samples, setup

    setup(quiet)
    from smdiff.decoding.generate import generate
    from smdiff.models.load import load

    samples(generate(*load(model, config.tokenizer), config), json)
