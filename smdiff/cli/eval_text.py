"""`smdiff eval-text`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from smdiff.cli.options import Json, Quiet
from smdiff.config import EvalTextConfig, resolve


def eval_text(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Run folders, adapters, denoiser folders, MDLM weights, or hub names; runs of --objective ar.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--out",
            help="Folder of the evaluation; by default under runs/, named after what decides it.",
            rich_help_panel="Output",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Perplexity of models on the same text, with paired differences; with --generate the quality of their own texts.

    Stopped evaluations go on where they were; nothing is done twice.
    """
    resolved = resolve(EvalTextConfig, flags)
    resolved.config.check(resolved.given)

    from smdiff.cli.render import setup, text_scores

    setup(quiet)
    from smdiff.evaluation.evaluate_text import evaluate

    text_scores(evaluate(models, resolved.config, out), json)
