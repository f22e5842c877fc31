"""Resolved configurations: preset < file (TOML) < flag, checked once, before anything heavy is imported.

A command's options are the fields of one frozen dataclass. `option` gives a field its help, panel and bounds; the
command line, the TOML reader, the checks and the fingerprint all read the same fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import reprlib
import tomllib
import types
import typing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from smdiff.errors import UserError, said
from smdiff.files import read_whole

C = TypeVar("C")

REVISION = "Of a model on the hub: branch, tag or commit; as in owner/model@commit"


def option(
    default: Any,
    help: str,
    panel: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    run_only: bool = False,
    alias: str | None = None,
) -> Any:
    """A field of a configuration.

    Args:
        default: the value without preset, file or flag; None means "see the help".
        help: one line, with the unit.
        panel: heading on the help screen.
        low, high: inclusive bounds; above: exclusive lower bound.
        choices: the only accepted strings.
        run_only: does not change the result (log intervals, say), so a resumed run may change it.
        alias: another flag for it.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "panel": panel,
            "low": low,
            "high": high,
            "above": above,
            "choices": choices,
            "run_only": run_only,
            "alias": alias,
        },
    )


_hints = functools.cache(typing.get_type_hints)


def value_type(config: type, name: str) -> type:
    """The plain type (int, float, str or bool) of a field that may also be None."""
    hint = _hints(config)[name]
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """A sentence offering the known name nearest to `name`, or all of them where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")


# Beyond all bounds of options.
_LARGEST = 10**15


def _shown(value: Any) -> str:
    """A value of a file, in a few words."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a number of thousands of digits
        return "a number"


def checked(config: type, name: str, value: Any, source: str) -> Any:
    """`value` as the field's type, within its bounds; UserError otherwise."""
    field = next(f for f in dataclasses.fields(config) if f.name == name)
    kind, rule = value_type(config, name), field.metadata
    if type(value) is int and abs(value) > _LARGEST:  # too large for a float, or to be shown
        value = math.inf if value > 0 else -math.inf
    where = f"{flag(name)} {value}" if source == "flag" else f"{name} = {_shown(value)} in {source}"
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is int and isinstance(value, float) and math.isinf(value):
        raise UserError(where, f"{name} is a much smaller number", f"{rule['help']}.")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(where, f"{name} is a {kind.__name__}", f"{rule['help']}.")
    if rule["choices"] and value not in rule["choices"]:
        raise UserError(where, "no such choice", nearest(str(value), rule["choices"]))
    if isinstance(value, int | float) and kind is not bool:
        limits = []
        if rule["low"] is not None:
            limits.append((value >= rule["low"], f"at least {rule['low']:g}"))
        if rule["above"] is not None:
            limits.append((value > rule["above"], f"more than {rule['above']:g}"))
        if rule["high"] is not None:
            limits.append((value <= rule["high"], f"at most {rule['high']:g}"))
        if not math.isfinite(value) or not all(ok for ok, _ in limits):
            raise UserError(where, "must be " + " and ".join(text for _, text in limits), fix=f"{rule['help']}.")
    return value


def _read_toml(text: str, source: str, known: set[str]) -> dict[str, Any]:
    """The flat keys of a TOML text; unknown ones are refused with the nearest name."""
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{source} is not valid TOML", why, "Write lines such as steps = 1000.") from None
    values = {key.replace("-", "_"): value for key, value in values.items()}
    for key in values:
        if key not in known:
            raise UserError(f"unknown key {key!r} in {source}", fix=nearest(key, known))
    return values


def presets(kind: str) -> dict[str, str]:
    """Names and texts of the presets that come with the package, for one kind of training."""
    files = (resources.files("smdiff.presets") / kind).iterdir()
    return {f.name.removesuffix(".toml"): f.read_text() for f in files if f.name.endswith(".toml")}


@dataclass(frozen=True)
class Resolved(typing.Generic[C]):
    """A configuration and which of its keys somebody set on purpose.

    Attributes:
        given: keys from the file or a flag.
        explicit: those, and the keys of a preset that was asked for by name.
    """

    config: C
    given: frozenset[str]
    explicit: frozenset[str]


def resolve(config: type[C], flags: dict[str, Any], file: Path | None = None) -> Resolved[C]:
    """Merge preset, file and flags into a checked `config`.

    Args:
        flags: values from the command line; None means not given. "preset" picks the preset.
        file: a TOML file of flat keys, which may itself name a preset.

    Raises:
        UserError: an unknown key or preset, a value of the wrong type or out of bounds, an unreadable file.
    """
    fields = {f.name: f for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    given = {name: value for name, value in flags.items() if value is not None}
    from_file: dict[str, Any] = {}
    if file is not None:
        try:
            text = read_whole(file)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {file}", said(error), "Give --config a TOML file.") from None
        from_file = _read_toml(text, str(file), set(fields))
    values: dict[str, Any] = {}
    explicit: set[str] = set()
    if "preset" in fields:
        chosen = given.get("preset", from_file.get("preset"))
        name = chosen if chosen is not None else fields["preset"].default
        known = presets(config.presets)  # type: ignore[attr-defined]
        if name is not None and name not in known:
            raise UserError(f"unknown preset {name!r}", fix=nearest(str(name), known))
        from_preset = {} if name is None else _read_toml(known[name], f"preset {name}", set(fields))
        values |= {k: checked(config, k, v, f"preset {name}") for k, v in from_preset.items()}
        explicit |= set(from_preset) if chosen is not None else set()
    values |= {k: checked(config, k, v, str(file)) for k, v in from_file.items()}
    values |= {k: checked(config, k, v, "flag") for k, v in given.items()}
    on_purpose = frozenset([*from_file, *given])
    return Resolved(config(**values), on_purpose, on_purpose | explicit)


def as_dict(config: Any) -> dict[str, Any]:
    """The configuration as JSON-ready values."""
    return dataclasses.asdict(config)


def identity(config: Any) -> dict[str, Any]:
    """The part of a configuration that decides its result."""
    run_only = {f.name for f in dataclasses.fields(config) if f.metadata.get("run_only")}
    return {k: v for k, v in as_dict(config).items() if k not in run_only}


def fingerprint(values: dict[str, Any]) -> str:
    """A short hash of JSON-ready values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
