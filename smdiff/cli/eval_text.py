"""`smdiff eval-text`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from smdiff.cli.options import Json, Quiet
from smdiff.config import EvalTextConfig, resolve
from smdiff.errors import UserError


def eval_text(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Run folders, adapters, denoiser folders, MDLM weights, or hub names.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Also write the result to this JSON file.", rich_help_panel="Output"),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Perplexity of models on the same text: the ELBO bound in one pass and two, with paired differences."""
    config = resolve(EvalTextConfig, flags).config
    if out is not None and (out.is_dir() or not os.access(out.resolve().parent, os.W_OK)):
        raise UserError(f"--out {out}", "a JSON file in a folder that exists and can be written is needed")

    from smdiff.cli.render import setup, text_scores, write_out

    setup(quiet)
    from smdiff.evaluation.compare import compare

    result = compare(models, config)
    text_scores(result, json)
    if out is not None:
        write_out(out, result)
