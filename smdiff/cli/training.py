"""`smdiff pretrain` and `smdiff finetune`: one command line over two ways to prepare a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from smdiff.cli.options import Json, Quiet
from smdiff.config import FinetuneConfig, PretrainConfig, Resolved, resolve
from smdiff.config.training import TrainingConfig
from smdiff.errors import UserError


def _command(name: str, config_type: type[TrainingConfig], summary: str) -> Callable[..., None]:
    """The command that trains as smdiff.training.`name` prepares it; its other options are `config_type`'s fields."""

    def command(
        config: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option("--config", help="TOML file with options by name; flags win over it.", rich_help_panel="Run"),
        ] = None,
        dry_run: Annotated[
            bool,
            typer.Option("--dry-run", help="Load everything, print the plan, train nothing.", rich_help_panel="Run"),
        ] = False,
        json: Json = False,
        quiet: Quiet = False,
        **flags: Any,
    ) -> None:
        resolved = resolve(config_type, flags, config)

        from smdiff.cli.render import setup, training_plan, training_result

        setup(quiet)
        from smdiff.training.run import plan

        resolved = _pinned(resolved)
        module = import_module(f"smdiff.training.{name}")
        if dry_run:
            training_plan(plan(resolved.config, module.prepare(resolved)), json)
        else:
            training_result(getattr(module, name)(resolved), json)

    order = "Options come from the preset, then the file, then the flags. Stopped runs go on where they were."
    command.__doc__ = f"{summary}\n\n{order}"
    return command


def _pinned(resolved: Resolved[TrainingConfig]) -> Resolved[TrainingConfig]:
    """With the model at its --revision."""
    from smdiff.models.load import pinned

    config = resolved.config
    name, revision = ("init" if isinstance(config, PretrainConfig) else "model"), config.revision
    if revision is None:
        return resolved
    if (model := getattr(config, name)) is None:
        fix = f"Leave it out, or give --{name} too."
        raise UserError(f"--revision {revision} has no effect", f"there is no --{name}", fix)
    changed: dict[str, Any] = {name: pinned(model, revision)}
    return dataclasses.replace(resolved, config=dataclasses.replace(config, **changed))


pretrain = _command(
    "pretrain", PretrainConfig, "Train a masked diffusion model, binary or soft-masked, from scratch or from --init."
)
finetune = _command(
    "finetune", FinetuneConfig,
    "Train an adapter, or all weights, of a masked diffusion model, or of a causal model that becomes one.",
)  # fmt: skip
