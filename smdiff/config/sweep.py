"""Several ways of decoding in one command: lists of schedulers, step budgets and seeds, soft-masked or not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from smdiff.config.options import nearest, option
from smdiff.config.sampling import ADAPTIVE, DECODING, REMASKING, SCHEDULER_NAMES, SOFT, DecodingConfig, SampleConfig
from smdiff.errors import UserError


@dataclass(frozen=True)
class Setting:
    """One way of decoding in a sweep.

    Attributes:
        budget: as it was asked for, "1/4" or "192"; None where the scheduler takes as many steps as it needs.
    """

    scheduler: str
    budget: str | None
    soft_mask: bool
    seed: int


@dataclass(frozen=True)
class SweepConfig(DecodingConfig):
    """Decoding with lists in place of single values."""

    steps: str | None = option(
        None, "Denoising steps, comma-separated: shares of the new tokens (1/4,1/2,1/1) or numbers. Default: 1/1",
        DECODING,
    )  # fmt: skip
    soft_mask: str = option(
        "auto", "on, off, both (with their paired difference), or auto: on if the model has the scalars", SOFT,
        choices=("auto", "on", "off", "both"),
    )  # fmt: skip
    seeds: str = option("0", "Seeds, comma-separated; each gives samples of its own", DECODING)

    @property
    def schedulers(self) -> list[str]:
        """Raises UserError: one is unknown."""
        names = parts(self.scheduler, "--scheduler")
        for name in names:
            if name not in SCHEDULER_NAMES:
                raise UserError(f"--scheduler {name}", "no such choice", nearest(name, SCHEDULER_NAMES))
        return names

    def settings(self, has_scalars: bool) -> list[Setting]:
        """All ways of decoding, in the order of the table.

        Raises:
            UserError: --steps or --seeds cannot be read, or --steps has no effect.
        """
        free = [name for name in self.schedulers if name in ADAPTIVE]
        if self.steps is not None and len(free) == len(self.schedulers):
            raise UserError(
                f"--steps {self.steps} has no effect", f"{free[0]} takes as many steps as it needs", fix="Leave it out."
            )
        budgets = parts(self.steps or "1/1", "--steps")
        arms = {"on": [True], "off": [False], "both": [False, True], "auto": [has_scalars]}[self.soft_mask]
        seeds = [_number(part, "--seeds") for part in parts(self.seeds, "--seeds")]
        return [
            Setting(scheduler, budget, arm, seed)
            for scheduler in self.schedulers
            for budget in ([None] if scheduler in ADAPTIVE else budgets)
            for arm in arms
            for seed in seeds
        ]

    def steps_of(self, budget: str, length: int, scheduler: str = "") -> int:
        """Denoising steps of a budget.

        Raises:
            UserError: it is no whole number of steps from 1 to `length`; a scheduler that remasks may take more.
        """
        try:
            steps = Fraction(budget) * length if "/" in budget else Fraction(budget)
        except (ValueError, ZeroDivisionError):
            raise UserError(f"--steps {budget}", "neither a share nor a number", "Write 1/4, 1/1 or 192.") from None
        if steps.denominator != 1:
            near = max(1, int(steps))
            why = f"{budget} of {length} new tokens is {float(steps):.2f} steps, no whole number"
            raise UserError(f"--steps {budget}", why, f"Give {near}, or another --length.")
        if steps < 1 or (steps > length and scheduler not in REMASKING):
            raise UserError(
                f"--steps {budget}",
                f"that is {steps} steps for {length} new tokens",
                fix=f"Give 1 to {length}, or a share from 1/{length} to 1/1.",
            )
        return int(steps)

    def sample_config(self, setting: Setting, length: int) -> SampleConfig:
        """The same as `smdiff sample` would have it."""
        names = {f.name for f in dataclasses.fields(DecodingConfig)}
        shared: dict[str, Any] = {name: getattr(self, name) for name in names}
        shared["scheduler"] = setting.scheduler
        steps = None if setting.budget is None else self.steps_of(setting.budget, length, setting.scheduler)
        if setting.soft_mask is False:  # the other half of a sweep may have options that mean nothing to this one
            shared |= {"soft_mask_scale": None, "soft_mask_k": None, "soft_mask_schedule": "none"}
        return SampleConfig(**shared, steps=steps, length=length, soft_mask=setting.soft_mask, seed=setting.seed)


def parts(text: str, name: str) -> list[str]:
    """What the commas separate, each once.

    Raises:
        UserError: nothing.
    """
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise UserError(f"{name} is empty", fix="Give at least one.")
    return found


def _number(text: str, name: str) -> int:
    if not text.isdecimal() or int(text) > 2**31:
        raise UserError(f"{name} {text}", "seeds are whole numbers from 0", f"Write {name} 1,2,3.")
    return int(text)
