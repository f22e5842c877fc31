"""The processes that a launcher (torchrun, accelerate) has started; one without a launcher."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

from smdiff.errors import RunFailed

T = TypeVar("T")
# A batch of a large model takes minutes, and who waits for it cannot tell; that a process has died is seen at once.
_PATIENCE = timedelta(days=1)


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Its number on this machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def ranks() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the one that speaks, and writes what is written once."""
    return rank() == 0


def turns(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """`items` in their order, as many at a time as there are processes."""
    for start in range(0, len(items), ranks()):
        yield items[start : start + ranks()]


def share(turn: Sequence[T]) -> tuple[T, bool]:
    """This process's item of a turn and True; if the turn has none for it, the last one and False.

    Where weights are spread over the processes, all of them must make a forward pass, though it be for nothing.
    """
    return turn[min(rank(), len(turn) - 1)], rank() < len(turn)


def gather(value: T) -> list[T]:
    """The `value` of every process, in their order. All must ask, and equally often.

    Raises:
        RunFailed: another process has ended.
    """
    if ranks() == 1:
        return [value]
    import torch.distributed as dist

    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_PATIENCE)  # it is for objects, not for tensors on a device
        found: list[T] = [value] * ranks()
        dist.all_gather_object(found, value)
    except RuntimeError as error:
        raise lost() from error
    return found


def lost(fix: str = "Run the same command to go on.") -> RunFailed:
    """What to say when another process does not answer any more."""
    return RunFailed("another process of this job has ended", "the connection to it is lost", fix)
