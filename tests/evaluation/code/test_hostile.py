"""No hostile program passes, makes the runner fail, or leaves anything outside its walls.

SMDIFF_HOSTILE_LEVEL names other walls than namespaces.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from smdiff.errors import UserError
from smdiff.evaluation.code import grading, runner, sandbox
from smdiff.evaluation.code.benchmarks import Task
from smdiff.evaluation.code.grading import Grader, Verdict
from smdiff.evaluation.code.runner import Limits
from tests.evaluation.code.hostile import HARMFUL_BUT_RIGHT, PORT, PROGRAMS, RIGHT

LEVEL = os.environ.get("SMDIFF_HOSTILE_LEVEL", "namespaces")
# The number marks the command lines of this run's sandboxes and of all that forks from them.
LIMITS = Limits(memory=(1 << 30) + 4096 * os.getpid())
CALLS = ((1, 2), (-4, 9), ("a", "b"), ([1], [2]), (2.5, 0.25))
SCRIPT = """
def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate(-4, 9) == 5
    assert candidate("a", "b") == "ab"
    assert candidate([1], [2]) == [1, 2]
    assert candidate(2.5, 0.25) == 2.75
"""
TASK = Task("hostile/0", "", "add", RIGHT, script=SCRIPT)
INPUTS = Task("hostile/1", "", "add", RIGHT, base=tuple(map(list, CALLS[:2])), plus=tuple(map(list, CALLS[2:])))

# Of those that tamper with results, as what is compared with results of a reference comes in one stream.
FOR_INPUTS = [name for name in PROGRAMS if name.startswith(("channel", "equal", "odd", "patch"))][::3]


# --- what is outside -------------------------------------------------------------------------------------------------


def folders() -> set[Path]:
    """Where the corpus tries to write: near the root, at home, around this process and beside what it has loaded."""
    found = {Path("/"), Path.home(), Path("/dev/mqueue"), Path("/etc/cron.d"), Path("/etc/profile.d")}
    for top in Path("/").iterdir():
        if top.is_dir() and not top.is_symlink() and top.name not in ("proc", "sys"):
            found.add(top)
            with contextlib.suppress(OSError):
                found |= {below for below in top.iterdir() if below.is_dir() and not below.is_symlink()}
    found |= {Path.home() / name for name in (".ssh", ".config", ".cache")} | {Path.cwd(), *Path.cwd().parents}
    found |= {Path(m.__file__).parent for m in list(sys.modules.values()) if getattr(m, "__file__", None)}
    return found | set(map(Path, sysconfig.get_paths().values()))


def traces() -> set[str]:
    """Everything by the corpus' name that lies there, and in the kernel."""
    found = set()
    for folder in folders():
        try:
            found |= {str(folder / name) for name in os.listdir(folder) if name.startswith("smdiff-hostile")}
        except OSError:
            continue
    for listing, mark in (("/proc/keys", "smdiff-hostile"), ("/proc/sysvipc/shm", str(0x5D1FF00 // 0x100))):
        try:
            found |= {line for line in Path(listing).read_text().splitlines() if mark in line}
        except OSError:
            continue
    return found


def processes() -> list[str]:
    """Command lines of this run's sandboxes, and of processes that bear the corpus' name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            name = (folder / "comm").read_text()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        marked = f'"memory": {LIMITS.memory}' in command or "smdiff-hostile" in command + name
        if marked and state != "Z":  # a corpse awaits its parent
            found.append(command)
    return found


def condition(pid: int) -> tuple[Any, ...]:
    """What the corpus would change of a process, and of the files that are everybody's."""
    library = Path(os.__file__).parent
    files = [library / "this.py", *(Path(m.__file__ or "") for m in (sandbox, runner, grading))]
    return (
        os.getpriority(os.PRIO_PROCESS, pid), resource.prlimit(pid, resource.RLIMIT_CORE),
        Path(f"/proc/{pid}/oom_score_adj").read_text(), Path("/proc/sys/kernel/domainname").read_text(),
        *(b"\n# smdiff-hostile\n" in path.read_bytes() for path in files),
        *(stat.filemode(path.stat().st_mode) for path in (library, library.parent)),
    )  # fmt: skip


@dataclass
class World:
    """Verdicts of all programs, and what the outside was like before and after them."""

    script: dict[str, Verdict] = field(default_factory=dict)
    inputs: dict[str, Verdict] = field(default_factory=dict)
    harmful: dict[str, Verdict] = field(default_factory=dict)
    arrived: list[str] = field(default_factory=list)
    signals: int = 0
    changed: list[str] = field(default_factory=list)


def bind(listener: socket.socket, address: Any, seconds: float = 120) -> None:
    """The programs' fixed address, once another run of these tests on the machine is done with it."""
    until = time.monotonic() + seconds
    while True:
        try:
            return listener.bind(address)
        except OSError:
            assert time.monotonic() < until, f"somebody else listens at {address!r}"
            time.sleep(1)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    try:
        runner.choose(LEVEL)
    except UserError as error:
        pytest.skip(f"no {LEVEL} here: {error}")
    found = World()
    listeners = [socket.socket(), socket.socket(type=socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)]
    for listener, address in zip(listeners, (("127.0.0.1", PORT),) * 2 + ("\0smdiff-hostile",), strict=True):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bind(listener, address)
        if listener.type == socket.SOCK_STREAM:
            listener.listen(1024)
        listener.setblocking(False)
    victims = [Path.home() / "smdiff-hostile-victim", Path("/tmp/smdiff-hostile-victim")]
    canaries = []
    for victim in victims:
        with contextlib.suppress(OSError):
            victim.mkdir(exist_ok=True)
            (victim / "canary").write_text("alive")
            canaries.append(victim / "canary")
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])

    def count(*_: object) -> None:
        found.signals += 1

    handler = signal.signal(signal.SIGURG, count)
    before = traces(), condition(os.getpid()), condition(bystander.pid)
    try:
        with Grader(LEVEL, 2, 0.5, LIMITS) as grader:
            references = dict(grader.references([INPUTS]))[INPUTS.id]
            jobs = [(("script", name), TASK, source, None) for name, source in PROGRAMS.items()]
            jobs += [(("harmful", name), TASK, source, None) for name, source in HARMFUL_BUT_RIGHT.items()]
            jobs += [(("script", "right"), TASK, RIGHT, None)]
            for (part, name), verdict in grader.grade(jobs):
                getattr(found, part)[name] = verdict
            more = [(name, INPUTS, PROGRAMS[name], references) for name in FOR_INPUTS]
            found.inputs |= dict(grader.grade([*more, ("right", INPUTS, RIGHT, references)]))
        time.sleep(0.2)
        new = traces() - before[0]
        if new:
            found.changed.append(f"new: {sorted(new)}")
        for pid, was in ((os.getpid(), before[1]), (bystander.pid, before[2])):
            is_now = condition(pid)
            found.changed += [f"{pid}: {a!r:.80} was {b!r:.80}" for a, b in zip(is_now, was, strict=True) if a != b]
        if bystander.poll() is not None:
            found.changed.append(f"the bystander ended: {bystander.returncode}")
        found.changed += [f"{c} is gone" for c in canaries if not c.is_file() or c.read_text() != "alive"]
        for listener in listeners:
            with contextlib.suppress(BlockingIOError):
                datagrams = listener.type == socket.SOCK_DGRAM
                found.arrived.append(str(listener.recv(64) if datagrams else listener.accept()))
        yield found
    finally:
        signal.signal(signal.SIGURG, handler)
        bystander.kill()
        bystander.wait()
        for listener in listeners:
            listener.close()
        for canary in canaries:
            canary.unlink(missing_ok=True)
            canary.parent.rmdir()


def test_no_hostile_program_passes_its_script(world: World):
    assert len(world.script) == len(PROGRAMS) + 1 > 150
    assert world.script.pop("right").passed
    assert not {name: v for name, v in world.script.items() if v.status in ("pass", "fault")}


def test_no_hostile_program_gives_the_results_of_inputs(world: World):
    assert len(world.inputs) == len(FOR_INPUTS) + 1
    assert world.inputs.pop("right").passed
    assert not {name: v for name, v in world.inputs.items() if v.status in ("pass", "fault")}


def test_harm_is_no_fault_of_ours(world: World):
    assert not {name: v for name, v in world.harmful.items() if v.status == "fault"}
    passed = sum(v.passed for v in world.harmful.values())
    assert passed > len(world.harmful) // 2  # the walls do not fail right programs


def test_nothing_is_left_outside(world: World):
    assert world.changed == []
    assert processes() == []


def test_nothing_gets_out(world: World):
    assert world.arrived == []
    assert world.signals == 0


def test_what_is_said_of_hostile_programs_is_one_short_line(world: World):
    for verdict in [*world.script.values(), *world.inputs.values(), *world.harmful.values()]:
        assert verdict.detail.isprintable()
        assert len(verdict.detail) < 400
