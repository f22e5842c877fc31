"""Evaluations that are killed, or whose disk is full, at any moment: what comes out in the end is what would have come.

python tests/torture/kill_evaluations.py --rounds 50           SIGKILL, at random moments and at random writes
python tests/torture/kill_evaluations.py --failures every      the n-th write fails, for every n
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib.pyplot  # noqa: F401  once, and not in every child

import smdiff.evaluation.code.evaluate
import smdiff.evaluation.evaluate_text  # noqa: F401
from smdiff.cli import main
from tests.torture.evaluations import World, check_files, leftovers, outcome
from tests.torture.write_faults import Faults, injected

KINDS = ("eval-code", "eval-text")


def start(arguments: list[str], faults: Faults) -> int:
    """The command in a process of its own, forked from this one. Returns its pid."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        with injected(faults):
            code = main(arguments)
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """The exit code of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Round:
    """One evaluation that is killed `kills` times and then left alone."""

    def __init__(self, arguments: list[str], out: Path, seconds: float, operations: int, draw: random.Random) -> None:
        self._arguments, self._out, self._draw = arguments, out, draw
        self._seconds, self._operations = seconds, operations

    def kill(self) -> str:
        """Start it and kill it: at a random time, or at a random one of the things that it does to its files."""
        at = self._draw.randint(1, self._operations) if self._draw.random() < 0.5 else 0
        pid = start(self._arguments, Faults(self._out, at, kill=True))
        if not at:
            time.sleep(self._draw.uniform(0, self._seconds))
            os.kill(pid, signal.SIGKILL)
        code = ended(pid)
        check_files(self._out)
        return {-signal.SIGKILL: "killed", 0: "done"}.get(code, f"failed with {code}")

    def fail(self, at: int) -> str:
        """Start it on a disk that is full at the n-th of the things that it does to its files."""
        code = ended(start(self._arguments, Faults(self._out, at)))
        check_files(self._out)
        return "" if code in (0, 1, 2) else f"failed with {code}"

    def finish(self, whole: dict[str, Any]) -> str:
        """Let it end; "" if all is as it was without any kill."""
        code = ended(start(self._arguments, Faults(self._out)))
        if code:
            return f"exit code {code}"
        if found := leftovers(self._out):
            return f"left {found}"
        other = outcome(self._out)
        return "".join(
            f"{name} differs; " for name in whole.keys() | other.keys() if whole.get(name) != other.get(name)
        )


def undisturbed(arguments: list[str], out: Path) -> tuple[dict[str, Any], float, int]:
    """What comes out, how long it takes, and how many things it does to its files."""
    began, read, written = time.monotonic(), *os.pipe()
    if not (pid := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        with injected(Faults(out)) as faults:
            code = main(arguments)
        os.write(written, str(faults.count).encode())
        os._exit(code)
    if code := ended(pid):
        raise SystemExit(f"the undisturbed command ends with {code}")
    return outcome(out), time.monotonic() - began, int(os.read(read, 20))


def torture(kind: str, rounds: int, seed: int, folder: Path, tell: Callable[[str], None] = print) -> list[str]:
    """Rounds of one kind of evaluation. Returns what went wrong."""
    world = World.made(folder)
    whole, seconds, operations = undisturbed(world.command(kind, folder / "whole"), folder / "whole")
    draw, wrong, kills = random.Random(seed), [], 0
    for number in range(rounds):
        out = folder / f"round-{number}"
        one = Round(world.command(kind, out), out, seconds, operations, draw)
        ends = [one.kill() for _ in range(draw.randint(1, 2))]
        kills += ends.count("killed")
        problem = "; ".join(e for e in ends if e.startswith("failed")) or one.finish(whole)
        if problem:
            wrong.append(f"{kind}, round {number}: {problem}")
            tell(wrong[-1])
    equal = rounds - len(wrong)
    tell(f"{kind}: {equal} of {rounds} rounds end as the undisturbed command, after {kills} kills")
    return wrong


def full_disks(kind: str, folder: Path, tell: Callable[[str], None] = print) -> list[str]:
    """The n-th write of one kind of evaluation fails, for every n. Returns what went wrong."""
    world = World.made(folder)
    whole, seconds, operations = undisturbed(world.command(kind, folder / "whole"), folder / "whole")
    wrong = []
    for at in range(1, operations + 1):
        out = folder / f"full-{at}"
        one = Round(world.command(kind, out), out, seconds, operations, random.Random())
        if problem := one.fail(at) or one.finish(whole):
            wrong.append(f"{kind}, write {at}: {problem}")
            tell(wrong[-1])
    tell(f"{kind}: {operations - len(wrong)} of {operations} failed writes end as the undisturbed command")
    return wrong


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--failures", choices=("none", "every"), default="none")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if not asked.rounds and asked.failures == "none":
        parser.error("nothing to do: give --rounds N or --failures every")
    wrong = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            if asked.rounds:
                wrong += torture(kind, asked.rounds, asked.seed, Path(folder))
        with tempfile.TemporaryDirectory() as folder:
            if asked.failures == "every":
                wrong += full_disks(kind, Path(folder))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(_main())
