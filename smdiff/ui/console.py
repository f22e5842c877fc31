"""Two streams: what the command is doing on stderr, its result on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from smdiff.ranks import is_first

# Without a terminal there is no width to fit: tables keep their columns in logs and pipes.
out = Console(width=None if Console().is_terminal else 160, highlight=False, quiet=not is_first())
err = Console(stderr=True, highlight=False, quiet=not is_first())

_LINE_SECONDS = 10.0
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence notes and progress; results and errors stay."""
    global _quiet
    _quiet = quiet


def note(text: str) -> None:
    """One line about what is going on."""
    if not _quiet:
        err.print(text, markup=False, soft_wrap=True)


class Tracker:
    """Progress of one piece of work: a live bar on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, label: str, total: int, done: int, bar: Progress | None) -> None:
        self._label, self._total, self._done, self._first = label, total, done, done
        self._bar = bar
        self._task = bar.add_task(label, total=total, completed=done, status="") if bar else None
        self._start = self._shown = time.monotonic()

    def update(self, done: int, status: str = "") -> None:
        """Now `done` of the total, with a short `status` such as the loss."""
        self._done = done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, status=status)
            return
        now = time.monotonic()
        if not _quiet and now - self._shown >= _LINE_SECONDS:
            self._shown = now
            left = (self._total - done) * (now - self._start) / max(1, done - self._first)
            note(f"{self._label} {done}/{self._total}  {status}  {left:.0f} s left".replace("    ", "  "))

    def advance(self, by: int) -> None:
        """`by` more."""
        self.update(self._done + by)


@contextmanager
def track(label: str, total: int, done: int = 0) -> Iterator[Tracker]:
    """Show the progress of `total` units while the block runs."""
    if _quiet or not err.is_terminal:
        yield Tracker(label, total, done, None)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    # By default the bar also takes what is printed on stdout to its own console, and with it a result meant for a file.
    with Progress(*columns, console=err, redirect_stdout=sys.stdout.isatty()) as bar:
        yield Tracker(label, total, done, bar)


def tails(paths: Iterable[str]) -> dict[str, str]:
    """The last parts of each of `paths`, as many as it takes to tell them apart."""
    names = set(paths)
    for kept in range(1, 1 + max((len(Path(n).parts) for n in names), default=0)):
        found = {name: "/".join(Path(name).parts[-kept:]) for name in names}
        if len(set(found.values())) == len(names):
            return found
    return {name: name for name in names}
