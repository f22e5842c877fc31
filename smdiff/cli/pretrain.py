"""`smdiff pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from smdiff.cli.options import Json, Quiet
from smdiff.config import PretrainConfig, resolve


def pretrain(
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
    """Train a masked diffusion model, binary or soft-masked, from scratch or from --init.

    Options come from the preset, then the file, then the flags. Stopped runs go on where they were.
    """
    resolved = resolve(PretrainConfig, flags, config)

    from smdiff.cli.render import setup, training_plan, training_result

    setup(quiet)
    from smdiff.training.pretrain import prepare
    from smdiff.training.pretrain import pretrain as train
    from smdiff.training.run import plan

    if dry_run:
        training_plan(plan(resolved.config, prepare(resolved)), json)
    else:
        training_result(train(resolved), json)
