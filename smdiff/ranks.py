"""The processes that a launcher (torchrun, accelerate) has started; one without a launcher."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the one that speaks, and writes what is written once."""
    return rank() == 0
