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
import tomllib
import types
import typing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from smdiff.errors import UserError

C = TypeVar("C")


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
) -> Any:
    """A field of a configuration.

    Args:
        default: the value without preset, file or flag; None means "see the help".
        help: one line, with the unit.
        panel: heading on the help screen.
        low, high: inclusive bounds; above: exclusive lower bound.
        choices: the only accepted strings.
        run_only: does not change the result (log intervals, say), so a resumed run may change it.
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


def _checked(config: type, name: str, value: Any, source: str) -> Any:
    """`value` as the field's type, within its bounds; UserError otherwise."""
    field = next(f for f in dataclasses.fields(config) if f.name == name)
    kind, rule = value_type(config, name), field.metadata
    where = f"{flag(name)} {value}" if source == "flag" else f"{name} = {value!r} in {source}"
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
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
            raise UserError(where, "must be " + " and ".join(text for _, text in limits))
    return value


def _read_toml(text: str, source: str, known: set[str]) -> dict[str, Any]:
    """The flat keys of a TOML text; unknown ones are refused with the nearest name."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source} is not valid TOML", str(error)) from None
    values = {key.replace("-", "_"): value for key, value in values.items()}
    for key in values:
        if key not in known:
            raise UserError(f"unknown key {key!r} in {source}", fix=nearest(key, known))
    return values


def presets() -> dict[str, str]:
    """Names and texts of the presets that come with the package."""
    files = resources.files("smdiff.presets").iterdir()
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
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {file}", getattr(error, "strerror", None) or "not a text file") from None
        from_file = _read_toml(text, str(file), set(fields))
    values: dict[str, Any] = {}
    explicit: set[str] = set()
    if "preset" in fields:
        chosen = given.get("preset", from_file.get("preset"))
        name = chosen if chosen is not None else fields["preset"].default
        known = presets()
        if name not in known:
            raise UserError(f"unknown preset {name!r}", fix=nearest(str(name), known))
        from_preset = _read_toml(known[name], f"preset {name}", set(fields))
        values |= {k: _checked(config, k, v, f"preset {name}") for k, v in from_preset.items()}
        explicit |= set(from_preset) if chosen is not None else set()
    values |= {k: _checked(config, k, v, str(file)) for k, v in from_file.items()}
    values |= {k: _checked(config, k, v, "flag") for k, v in given.items()}
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


DATA, MODEL, SOFT, OBJECTIVE, OPTIM, RUN = (
    "Data", "Model", "Soft-masking", "Objective", "Optimisation", "Run",
)  # fmt: skip


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides a pretraining run. The defaults are those of the preset `tiny`'s recipe."""

    data: str = option(
        "python-stdlib",
        "python-stdlib, python-docs, markov[:SEED], a file or folder (text, jsonl, parquet, .gz), or a hub dataset",
        DATA,
    )
    valid_data: str | None = option(None, "Held-out data; without it a part of --data is held out by document", DATA)
    valid_fraction: float = option(0.05, "Share of the documents that is held out", DATA, above=0, high=0.5)
    text_column: str = option("text", "Column with the text, in jsonl, parquet and hub data", DATA)
    streaming: bool = option(False, "Stream a hub dataset instead of downloading it", DATA)
    tokenizer: str | None = option(
        None, "bytes, bpe:N (trained on the data, N ids), a folder or a hub name; with --init the run's own", DATA
    )
    length: int = option(128, "Tokens in a sequence", DATA, low=2, high=131072)

    preset: str = option("tiny", "Starting values: tiny, small (the paper's 169M DiT) or medium", MODEL)
    init: str | None = option(None, "Start from a run folder, or from a checkpoint in MDLM's layout", MODEL)
    hidden_size: int = option(128, "Width", MODEL, low=8, high=65536)
    layers: int = option(4, "Blocks", MODEL, low=1, high=1000)
    heads: int = option(4, "Attention heads", MODEL, low=1, high=1024)
    cond_dim: int = option(32, "Width of the conditioning vector", MODEL, low=1, high=65536)
    dropout: float = option(0.0, "Dropout of both residual branches", MODEL, low=0, high=0.9)

    soft_mask: bool = option(False, "Train with soft-masking (two passes with probability --p-sm)", SOFT)
    k: int = option(3, "Predictions mixed into a mask; 0 mixes the whole vocabulary", SOFT, low=0, high=1000)
    p_sm: float = option(0.8, "Probability that a step makes two passes", SOFT, low=0, high=1)
    w_s: float = option(0.3, "Start of the scale", SOFT, low=0, high=0.999)
    w_a: float = option(6.66, "Start of the steepness, per nat", SOFT, above=0, high=100)
    w_b: float = option(-0.75, "Start of the centre, nats of negative entropy", SOFT, low=-100, high=-1e-3)
    soft_mask_lr: float = option(0.05, "Learning rate of the three scalars", SOFT, above=0, high=10)
    budget: str = option(
        "iso-update",
        "iso-update: --steps steps; iso-compute: as many forward passes as --steps binary steps",
        SOFT,
        choices=("iso-update", "iso-compute"),
    )

    noise: str = option(
        "log-linear", "Noise schedule", OBJECTIVE, choices=("log-linear", "cosine", "polynomial")
    )  # fmt: skip
    t_min: float = option(1e-3, "Smallest training time", OBJECTIVE, above=0, high=1)
    t_max: float = option(1.0, "Largest training time", OBJECTIVE, above=0, high=1)
    antithetic: bool = option(True, "Spread the times of a batch evenly over the range", OBJECTIVE)

    steps: int = option(1000, "Optimiser steps", OPTIM, low=1, high=100_000_000)
    batch_size: int = option(32, "Sequences in a step, over all processes", OPTIM, low=1, high=1_000_000)
    accumulation: int = option(1, "Micro-batches a step", OPTIM, low=1, high=100_000)
    lr: float = option(2e-3, "Learning rate of the network", OPTIM, above=0, high=10)
    schedule: str = option(
        "constant",
        "Learning rate after the warm-up",
        OPTIM,
        choices=("constant", "linear", "cosine"),
    )
    warmup: int = option(50, "Steps of linear warm-up", OPTIM, low=0, high=10_000_000)
    weight_decay: float = option(0.0, "AdamW's weight decay (never on the scalars)", OPTIM, low=0, high=10)
    clip: float = option(1.0, "Largest gradient norm; 0 does not clip", OPTIM, low=0, high=1e6)
    ema: float = option(0.999, "Decay of the averaged weights, which are the result; 0 turns it off", OPTIM,
                        low=0, high=0.999999)  # fmt: skip
    precision: str = option(
        "auto", "auto: bf16 on a GPU that has it, else fp32", OPTIM, choices=("auto", "fp32", "bf16")
    )
    seed: int = option(0, "Seed of weights, data order and noise", OPTIM, low=0, high=2**31)

    out: str | None = option(None, "Folder of the run", RUN, run_only=True)
    resume: str = option(
        "auto", "auto: continue what --out holds; never: refuse a folder in use", RUN, choices=("auto", "never"),
        run_only=True,
    )  # fmt: skip
    log_every: int = option(10, "Steps between two lines of metrics.jsonl", RUN, low=1, high=10**9, run_only=True)
    eval_every: int = option(250, "Steps between two looks at held-out data; 0: only the end", RUN, low=0, high=10**9,
                             run_only=True)  # fmt: skip
    eval_sequences: int = option(128, "Held-out sequences that training looks at", RUN, low=1, high=10**7)
    save_every: int = option(250, "Steps between two checkpoints", RUN, low=1, high=10**9, run_only=True)
    keep: int = option(2, "Checkpoints kept", RUN, low=1, high=10**6, run_only=True)
    report_to: str = option("none", "Trackers that transformers knows (wandb, tensorboard, ...)", RUN, run_only=True)

    def __post_init__(self) -> None:
        """What the bounds of single options cannot say."""
        if self.hidden_size % (2 * self.heads):
            raise UserError(
                f"--hidden-size {self.hidden_size} --heads {self.heads}",
                "the width must be a multiple of twice the heads (rotary positions)",
            )
        if self.t_min > self.t_max:
            raise UserError(f"--t-min {self.t_min:g} --t-max {self.t_max:g}", "the smallest time is above the largest")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"--batch-size {self.batch_size} --accumulation {self.accumulation}",
                "the batch does not divide into that many micro-batches",
            )

    @property
    def total_steps(self) -> int:
        """Optimiser steps after the budget: equal forward passes mean 1 / (1 + p_sm) of the steps."""
        if self.soft_mask and self.budget == "iso-compute":
            return max(1, round(self.steps / (1 + self.p_sm)))
        return self.steps


DECODING, RULE, BLOCKS, TEXTS = "Decoding", "Scheduler's own", "Blocks", "Texts"
SCHEDULER_NAMES = (
    "ancestral", "origin", "maskgit_plus", "topk_margin", "entropy", "low_confidence", "threshold", "entropy_bound",
    "remdm-cap", "remdm-rescale", "remdm-conf", "remdm-loop",
)  # fmt: skip


@dataclass(frozen=True)
class SampleConfig:
    """How texts are written. An option of None takes the scheduler's or the model's own value."""

    scheduler: str = option(
        "ancestral", f"How masks are revealed: {', '.join(SCHEDULER_NAMES)}", DECODING, choices=SCHEDULER_NAMES
    )
    steps: int | None = option(
        None,
        "Denoising steps; by default 64, or the number of new tokens if that is less",
        DECODING,
        low=1,
        high=1_000_000,
    )
    temperature: float | None = option(
        None, "Of the draw, 0 for the likeliest; by default 1 at random orders, 0.1 in Dream's, else 0", DECODING,
        low=0, high=100,
    )  # fmt: skip
    top_p: float | None = option(
        None, "Nucleus, 1 keeps all tokens; by default 0.9, but 1 for low_confidence", DECODING, above=0, high=1
    )
    top_k: int = option(0, "Most tokens kept, after the nucleus; 0 keeps all", DECODING, low=0, high=10_000_000)
    guidance: float = option(
        0.0, "Classifier-free guidance, away from the text without its prompt; doubles the passes", DECODING,
        low=0, high=100,
    )  # fmt: skip

    soft_mask: bool | None = option(
        None, "Feed predictions back into the masks; on by default if the model has the scalars", SOFT
    )
    soft_mask_schedule: str = option(
        "none", "lambda over decoding progress: none, linear or step", SOFT, choices=("none", "linear", "step")
    )
    soft_mask_scale: float | None = option(
        None, "Use this w_s; for a model without scalars, with the paper's start of the other two", SOFT,
        low=0, high=0.999,
    )  # fmt: skip
    soft_mask_k: int | None = option(
        None, "Predictions mixed into a mask, for a model without scalars; by default 3", SOFT, low=1, high=1000
    )

    alg_temp: float | None = option(
        None, "Dream's and LLaDA's orders: above 0, positions are drawn from softmax(score / it)",
        RULE, low=0, high=1000,
    )  # fmt: skip
    threshold: float | None = option(
        None, "threshold: reveal at this confidence; its default is 0.9", RULE, low=0, high=1
    )
    entropy_bound: float | None = option(
        None, "entropy_bound: most nats revealed at once, the largest aside; its default is 0.1", RULE, low=0, high=1e6
    )
    eta: float | None = option(
        None, "remdm-*: cap (0.04; 0.02 from 1,024 steps), share of the largest rate (0.015), rate in the loop (0.02)",
        RULE, low=0, high=1,
    )  # fmt: skip
    t_on: float | None = option(None, "remdm-loop: time at which remasking starts; 0.55", RULE, above=0, high=0.999)
    t_off: float | None = option(None, "remdm-loop: time at which it ends; 0.05", RULE, above=0, high=0.999)
    alpha_on: float | None = option(
        None, "remdm-loop: share of tokens visible meanwhile; 0.9", RULE, above=0, high=0.999
    )

    block_length: int | None = option(
        None, "Fill the new tokens in blocks of so many, one after the other", BLOCKS, low=1, high=131072
    )
    cache: str = option(
        "none", "Keys and values kept over a block's steps: none, prefix (all before it), dual (all but it)", BLOCKS,
        choices=("none", "prefix", "dual"),
    )  # fmt: skip
    cache_refresh: int = option(
        0, "Steps between two passes over everything; 0 makes one at the start of each block", BLOCKS,
        low=0, high=1_000_000,
    )  # fmt: skip

    prompt: str | None = option(None, "Text to continue", TEXTS)
    infill: str | None = option(None, "Text with <mask> or <mask:12> (so many tokens) to fill, anywhere in it", TEXTS)
    prompt_file: str | None = option(
        None, 'JSON lines: {"prompt": ...}, {"infill": ...} or {"messages": [...]}, or a string each', TEXTS
    )
    chat: bool = option(False, "Put prompts into the tokenizer's chat template, as a user's turn", TEXTS)
    num: int = option(1, "Texts, of each prompt if there are prompts", TEXTS, low=1, high=10_000_000)
    length: int | None = option(
        None, "New tokens; by default the training length from nothing, else what is left of it, at most 256", TEXTS,
        low=1, high=131072,
    )  # fmt: skip
    stop: bool = option(True, "End a continuation at its first end-of-text", TEXTS)
    suppress_eos: int = option(0, "No end-of-text within so many first new tokens", TEXTS, low=0, high=131072)
    batch_size: int = option(16, "Texts written at once; does not change them", TEXTS, low=1, high=100_000)
    seed: int = option(0, "For a given length and steps, text i depends on the seed and i", TEXTS, low=0, high=2**31)

    tokenizer: str | None = option(None, "Folder or hub name, for weights that carry none", MODEL)
    device: str | None = option(None, "cpu, cuda, cuda:1, ...; by default the GPU if there is one", MODEL)
    precision: str = option(
        "auto", "auto: the checkpoint's own on a GPU, fp32 on a CPU", MODEL, choices=("auto", "fp32", "bf16")
    )

    def __post_init__(self) -> None:
        """The bounds of single options (made from Python, nobody has checked them yet), and what they cannot say."""
        for f in dataclasses.fields(self):
            if getattr(self, f.name) is not f.default:
                _checked(SampleConfig, f.name, getattr(self, f.name), "flag")
        if self.temperature and self.temperature < 1e-3:
            raise UserError(
                f"--temperature {self.temperature:g}", "too small to compute with", "0 takes the likeliest."
            )
        sources = [flag(n) for n in ("prompt", "infill", "prompt_file") if getattr(self, n) is not None]
        if len(sources) > 1:
            raise UserError(" ".join(sources), "more than one says what to write", "Give one of them.")
        if self.chat and self.infill is not None:
            raise UserError("--chat --infill", "a chat is answered, it has no spans", "Use one of them.")
        if self.cache != "none" and self.block_length is None:
            raise UserError(f"--cache {self.cache}", "a cache lives for one block", "Give --block-length.")
        if self.cache != "none" and self.guidance:
            raise UserError(f"--cache {self.cache} --guidance {self.guidance:g}", "guidance has no cached pass")
        if self.cache_refresh and self.cache == "none":
            raise UserError(
                f"--cache-refresh {self.cache_refresh}", "there is no cache", "Give --cache prefix or dual."
            )
        if self.block_length is not None and self.scheduler.startswith("remdm"):
            raise UserError(
                f"--scheduler {self.scheduler} --block-length {self.block_length}",
                "remasking runs on a clock over the whole text, not over blocks or a cache",
                "Leave out one of them.",
            )
        if self.block_length is not None and self.infill is not None:
            raise UserError(
                f"--infill --block-length {self.block_length}", "blocks go through a continuation, in order"
            )


@dataclass(frozen=True)
class EvalTextConfig:
    """How models are scored on text."""

    data: str = option("python-stdlib", "What to score on: as in smdiff pretrain", DATA)
    split: str = option(
        "auto",
        "auto: the held-out part of built-in data and of data that a model was trained on, else all; or say which",
        DATA,
        choices=("auto", "held-out", "all"),
    )
    valid_fraction: float = option(0.05, "Share that is held out, as in training", DATA, above=0, high=0.5)
    text_column: str = option("text", "Column with the text, in jsonl, parquet and hub data", DATA)
    tokenizer: str | None = option(None, "Folder or hub name, for bare weights that carry none", DATA)
    length: int | None = option(None, "Tokens in a sequence; by default the training length", DATA, low=2, high=131072)
    limit: int = option(512, "Sequences scored, at most; spread evenly over the data", DATA, low=1, high=100_000_000)
    draws: int = option(8, "Masks drawn for each sequence, stratified over the masked share", "Estimate",
                        low=1, high=100_000)  # fmt: skip
    seed: int = option(0, "Seed of the masks, which all models share", "Estimate", low=0, high=2**31)
    batch_size: int = option(32, "Sequences at once; does not change the result", "Estimate", low=1, high=100_000)
