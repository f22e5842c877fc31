"""`smdiff finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from smdiff.cli.options import Json, Quiet
from smdiff.config import FinetuneConfig, resolve


def finetune(
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--config", help="TOML file with options by name; flags win over it.", rich_help_panel="Run"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load everything, print the plan, train nothing.", rich_help_panel="Run")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Train an adapter, or all weights, of a masked diffusion model, or of a causal model that becomes one.

    Options come from the preset, then the file, then the flags. Stopped runs go on where they were.
    """
    resolved = resolve(FinetuneConfig, flags, config)

    from smdiff.cli.render import setup, training_plan, training_result

    setup(quiet)
    from smdiff.training.finetune import finetune as train
    from smdiff.training.finetune import prepare
    from smdiff.training.run import plan

    if dry_run:
        training_plan(plan(resolved.config, prepare(resolved)), json)
    else:
        training_result(train(resolved), json)
