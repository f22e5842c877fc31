"""Command-line options from the fields of a configuration, and the options that commands share."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

from smdiff.config import flag, value_type

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel="Output")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No notes and no progress on stderr.", rich_help_panel="Output")]


def _parameter(config: type, field: dataclasses.Field) -> inspect.Parameter:
    """The option of one field. It defaults to None, "not given", so that presets and files can speak."""
    kind, rule = value_type(config, field.name), field.metadata
    names = [flag(field.name)]
    if kind is bool:
        names = [f"{names[0]}/{names[0].replace('--', '--no-', 1)}"]
    if rule["alias"]:
        names.append(rule["alias"])
    help = f"{rule['help']}."
    if field.default is not None:
        shown = ("on" if field.default else "off") if kind is bool else field.default
        help += f" [dim]Default: {shown}.[/dim]"
    help = help.replace("[:SEED]", r"\[:SEED]")
    option = typer.Option(*names, help=help, rich_help_panel=rule["panel"], show_default=False)
    annotation = Annotated[typing.Optional[kind], option]  # type: ignore[valid-type]  # noqa: UP045
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


# Panels come on the help screen in the order of their first option; these come first, in this order.
_FIRST = ("Data", "Likelihood", "Generated texts", "Model", "Adapter", "Soft-masking", "Objective")


def _in_panels(config: type) -> list[dataclasses.Field]:
    """The fields, those of a panel together."""
    fields = dataclasses.fields(config)
    panels = [*_FIRST, *(f.metadata["panel"] for f in fields)]
    return sorted(fields, key=lambda f: panels.index(f.metadata["panel"]))


def from_config(config: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that ends in **flags one option for every field of `config`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        added = [_parameter(config, f) for f in _in_panels(config)]

        def run(**arguments: Any) -> None:
            command(**arguments)

        run.__doc__ = command.__doc__
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept]
        parameters = (
            [p for p in parameters if p.default is p.empty]
            + added
            + [p for p in parameters if p.default is not p.empty]
        )
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate
