"""Schedulers: which masked positions to reveal at each step, and with what. They know no model.

A new scheduler is one file and one line in `SCHEDULERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from smdiff.decoding.schedulers.ancestral import Ancestral
from smdiff.decoding.schedulers.base import Scheduler, State

SCHEDULERS: dict[str, Callable[..., Scheduler]] = {"ancestral": Ancestral}

__all__ = ["SCHEDULERS", "Ancestral", "Scheduler", "State"]
