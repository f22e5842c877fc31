"""Model-written programs, each in a child process behind walls, called from outside as if it were a module.

The program never meets its tests. A trusted process calls its functions and gets values back, so that nothing the
program prints, patches, exits with or writes to the channel can make a test pass: only the right values do.
"""

from __future__ import annotations

import array
import ast
import base64
import builtins
import collections
import contextlib
import datetime
import decimal
import fractions
import hashlib
import json
import marshal
import math
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from smdiff.errors import UserError

LEVELS = {
    "bubblewrap": "bubblewrap: own file system, network and processes, and limits on resources",
    "namespaces": "Linux namespaces: own file system, network and processes, and limits on resources",
    "limits": "limits on resources only: programs can read your files and use the network",
}
_HEADER = struct.Struct(">Q")
_LARGEST = 64 << 20
_DIGITS = 4 << 20  # hexadecimal, of one integer
# What a program may hand to its tests by name; importing others does things.
_MODULES = frozenset(
    {"bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools",
     "math", "operator", "random", "re", "statistics", "string", "sys", "typing"}
)  # fmt: skip
_SCRIPT = Path(__file__).with_name("sandbox.py")
_ENVIRONMENT = {
    "HOME": "/tmp", "TMPDIR": "/tmp", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip
_LOADER = {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}  # some interpreters do not start without
_STARTUP = 20.0  # seconds


@dataclass(frozen=True)
class Limits:
    """What a program may use. Memory in bytes, of one process and of all of them; file in bytes; cpu in seconds."""

    memory: int = 4 << 30
    file: int = 32 << 20
    processes: int = 32
    cpu: int = 60


class RunnerFault(Exception):
    """The runner failed, not the program."""


class TimedOut(BaseException):
    """The program took too long. Not an Exception: tests that catch what a program raises must not catch this."""


class ProgramDied(BaseException):
    """The program's process is gone, or sends what is no reply."""


class ProgramError(Exception):
    """The program raised something that is not one of Python's own exceptions."""


# --- values ----------------------------------------------------------------------------------------------------------


def parse(text: str | bytes) -> Any:
    """JSON, with a nan of its own in each place: Python takes lists that share one for equal."""
    return json.loads(text, parse_constant=float)


def decode(stored: Any, objects: Program | None = None) -> Any:
    """A value from what `sandbox.encode` made of it.

    Raises:
        ValueError: it is nothing that `encode` makes.
    """
    if isinstance(stored, list):
        return [decode(x, objects) if type(x) in (list, dict) else x for x in stored]
    if not isinstance(stored, dict):
        return stored
    if len(stored) != 1:
        raise ValueError("no value")
    (tag, content), = stored.items()  # fmt: skip
    try:
        return _DECODERS[tag](content, objects)
    except Exception as error:  # whatever the content is that `encode` did not make
        raise ValueError(f"no value: {type(error).__name__}") from None


def _packed(content: Any, _: Program | None) -> list[Any]:
    order, floats, integers = (base64.b64decode(x, validate=True) for x in content[:3])
    streams: list[list[Any]] = [array.array("d", floats).tolist(), array.array("q", integers).tolist(), content[3]]
    if not order:
        return [x for stream in streams for x in stream]
    following = list(map(iter, streams))
    return [next(following[number]) for number in order]


def _integer(content: Any, _: Program | None = None) -> int:
    if len(content) > _DIGITS:  # arithmetic with it would not end, and hear no signal
        raise ValueError("the integer is too large")
    return int(content, 16)


def _fraction(content: Any, _: Program | None) -> fractions.Fraction:
    if max(map(len, content)) > 1 << 16:  # its greatest common divisor takes quadratic time, deaf to signals
        raise ValueError("the fraction is too large")
    return fractions.Fraction(_integer(content[0]), _integer(content[1]))


def _decimal(content: Any, _: Program | None) -> decimal.Decimal:
    found = decimal.Decimal(content)
    if found.is_finite() and abs(found.adjusted()) > 100_000:  # as an int it would fill the memory
        raise ValueError("the exponent is too large")
    return found


def _mapping(content: Any, objects: Program | None) -> Any:
    name, pairs = content
    items = {decode(k, objects): decode(v, objects) for k, v in pairs}
    if name == "defaultdict":
        return collections.defaultdict(None, items)
    return {"dict": dict, "Counter": collections.Counter, "OrderedDict": collections.OrderedDict}[name](items)


def _set(content: Any, objects: Program | None) -> Any:
    return {"set": set, "frozenset": frozenset}[content[0]](decode(content[1], objects))


def _bytes(content: Any, _: Program | None) -> Any:
    kind: Any = {"bytes": bytes, "bytearray": bytearray}[content[0]]
    return kind.fromhex(content[1])


def _range(content: Any, _: Program | None) -> range:
    found = range(*content)
    if len(found) > 10_000_000:  # the tests might make a list of it
        raise ValueError("the range is too long")
    return found


def _when(content: Any, _: Program | None) -> Any:
    name, value = content
    if name == "timedelta":
        return datetime.timedelta(*value)
    kind: Any = {"date": datetime.date, "datetime": datetime.datetime, "time": datetime.time}[name]
    return kind.fromisoformat(value)


@dataclass(frozen=True)
class _Large:
    """What a value is known by that has too many items to travel. Values that are equal have the same."""

    kind: str
    length: int
    fingerprint: int


def _large(content: Any, _: Program | None) -> _Large:
    kind, length, fingerprint = content
    return _Large(str(kind), int(length), int(fingerprint))


def _numpy(content: Any, objects: Program | None) -> Any:
    name, shape, items = content
    kind = np.dtype(str(name))
    if kind.kind not in "biufcU" or kind.itemsize * math.prod(max(1, n) for n in shape or ()) > _LARGEST:
        raise ValueError("no such array")
    array = np.array(decode(items, objects), dtype=kind)
    return array[()] if shape is None else array.reshape(shape)


def _object(content: Any, objects: Program | None) -> Any:
    if objects is None:
        raise ValueError("a reference")
    return _Object(objects, int(content[0]), str(content[1]))


_DECODERS: dict[str, Callable[[Any, Program | None], Any]] = {
    "a": _packed,
    "i": _integer,
    "t": lambda content, objects: tuple(decode(content, objects)),
    "d": _mapping,
    "s": _set,
    "c": lambda content, _: complex(*content),
    "b": _bytes,
    "r": _range,
    "q": lambda content, objects: collections.deque(decode(content, objects)),
    "k": lambda content, objects: dict.fromkeys(decode(content, objects)).keys(),
    "f": _fraction,
    "D": _decimal,
    "T": _when,
    "n": _numpy,
    "h": _large,
    "o": _object,
}


class _Object:
    """Something that lives in the program: a function, a class, an instance of one. Equal to nothing but itself, so
    that a program's own __eq__ decides no test."""

    def __init__(self, program: Program, number: int, kind: str) -> None:
        self.__dict__.update(_program=program, _number=number, _kind=kind)

    def _ask(self, what: str, *arguments: Any) -> Any:
        return self._program._ask(what, self._number, *arguments)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._ask("call", _outgoing(arguments), _outgoing(options))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, _outgoing(value))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("iterate"))

    def __len__(self) -> int:
        return int(self._ask("len"))

    def __bool__(self) -> bool:
        return bool(self._ask("bool"))

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", _outgoing(key))

    def __repr__(self) -> str:
        return f"<{self._kind} of the program>"


def _outgoing(value: Any) -> Any:
    """An argument as `marshal` can take it."""
    if isinstance(value, _Object):
        return ("smdiff.object", value._number)
    if isinstance(value, type) and value in vars(builtins).values():
        return ("smdiff.object", value.__name__)
    if isinstance(value, dict):
        return {_outgoing(k): _outgoing(v) for k, v in value.items()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(map(_outgoing, value))
    return value


# --- programs --------------------------------------------------------------------------------------------------------


class Program:
    """One program behind the walls. Every method raises TimedOut at the deadline, and ProgramDied.

    Attributes:
        deadline: on the monotonic clock.
        ended: why there is nothing more to be had from it; tests that catch everything cannot hide it.
    """

    def __init__(self, sock: socket.socket, watch: _Watch) -> None:
        self._sock, self._watch, self.deadline = sock, watch, time.monotonic() + _STARTUP
        self._arrived = bytearray()
        self.ended: BaseException | None = None

    def run(self, source: str, wanted: list[str]) -> dict[str, Any]:
        """Execute the source. Returns those of the wanted names that it defines, as values or references.

        Raises:
            whatever it raises: as the builtin exception of that name, or ProgramError. SyntaxError: not Python.
        """
        reply = self._exchange(("exec", source, wanted))
        names = [name for name in wanted if name in (reply.get("names") or ())]
        return {name: self._name(name) for name in names}

    def _name(self, name: str) -> Any:
        reply = self._exchange(("name", name))
        module = reply.get("module")
        if module is not None:
            # A test may use a module that the program imports. It gets the real one.
            if module not in _MODULES:
                raise ProgramError("the test cannot use this module of the program")
            return __import__(module)
        return self.value(reply)

    def each(
        self, name: str, inputs: list[Any], limits: list[float], expected: Sequence[str | None] = ()
    ) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Call a function on each list of arguments, so many seconds each.

        Args:
            expected: digests of replies whose content is not asked for.

        Returns:
            of each call the reply's digest, and the reply, for `value`, or None where the digest is the expected one.
        """
        self._send(("each", name, inputs))
        last = self.deadline
        for limit, wanted in zip(limits, expected or [None] * len(limits), strict=True):
            self.deadline = min(last, time.monotonic() + limit)
            yield self._result(wanted)

    def _result(self, wanted: str | None) -> tuple[str, dict[str, Any] | None]:
        """A reply, or the digest of a long one, which binds the program to it: whether its digest is the expected one
        must not tell it what to say next."""
        data = self._frame()
        digest = hashlib.sha256(data).hexdigest()
        if digest == wanted:
            return digest, None
        reply = self._parse(data)
        if not isinstance(claimed := reply.get("digest"), str):
            return digest, reply
        self._send(claimed != wanted)
        if claimed == wanted:
            return claimed, None
        data = self._frame()
        if hashlib.sha256(data).hexdigest() != claimed:
            raise self._over(ProgramDied("what it sent is not what it said"))
        return claimed, self._parse(data)

    def _ask(self, what: str, *arguments: Any) -> Any:
        return self.value(self._exchange((what, *arguments)))

    def _exchange(self, request: tuple[Any, ...]) -> dict[str, Any]:
        self._send(request)
        return self._receive()

    def _send(self, request: Any) -> None:
        try:
            data = marshal.dumps(request)
        except ValueError:
            raise ProgramError("an argument cannot be sent to the program") from None
        self._sock.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            self._sock.sendall(_HEADER.pack(len(data)) + data)
        except TimeoutError:
            raise self._over(TimedOut()) from None
        except OSError:
            raise self._over(ProgramDied("it ended before its tests did")) from None

    def _read(self, size: int) -> bytes:
        while len(self._arrived) < size:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise self._over(TimedOut())
            self._sock.settimeout(min(left, self._watch.pause))
            if self._watch.too_large():
                raise self._over(ProgramDied("its processes hold too much memory"))
            try:
                part = self._sock.recv(1 << 20 if size > 1 << 16 else 1 << 16)
            except TimeoutError:
                continue
            except OSError:
                part = b""
            if not part:
                raise self._over(ProgramDied("it ended before its tests did"))
            self._arrived += part
        data = bytes(self._arrived[:size])
        del self._arrived[:size]
        return data

    def _frame(self) -> bytes:
        size = _HEADER.unpack(self._read(8))[0]
        if size > _LARGEST:
            raise self._over(ProgramDied("what it sent is no reply"))
        return self._read(size)

    def _receive(self) -> dict[str, Any]:
        return self._parse(self._frame())

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            reply = parse(data)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise self._over(ProgramDied("what it sent is no reply"))
        if "error" in reply:
            try:
                error = _exception(*reply["error"])
            except (TypeError, ValueError):
                raise self._over(ProgramDied("what it sent is no reply")) from None
            raise error
        return reply

    def value(self, reply: dict[str, Any]) -> Any:
        """What a reply holds."""
        try:
            return decode(reply["value"], self)
        except (KeyError, ValueError, RecursionError) as error:
            raise self._over(ProgramDied(f"what it sent is no value: {error}")) from None

    def _over(self, end: BaseException) -> BaseException:
        self.ended = self.ended or end
        return end


def _exception(name: str, message: str) -> Exception:
    name, message = str(name)[:100], str(message)[:300]
    if name == "compile":
        return SyntaxError(message)
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, SyntaxError):
        with contextlib.suppress(TypeError):  # UnicodeError's and groups need more than a message
            return kind(message)
    return ProgramError(f"{name}: {message}")


class _Watch:
    """The memory of a program that takes its time: all its processes together, which no limit of the kernel bounds."""

    pause = 0.1

    def __init__(self, pid: int, most: int) -> None:
        self._pid, self._most, self._next = pid, most, time.monotonic() + self.pause

    def too_large(self) -> bool:
        """Whether it is, asked as often as one likes and looked at once in a while."""
        if time.monotonic() < self._next:
            return False
        large = sum(map(_resident, _processes(self._pid))) > self._most
        self._next = time.monotonic() + self.pause
        return large


def _processes(pid: int) -> Iterator[int]:
    """A process and all below it; nothing more where the system does not tell."""
    yield pid
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # each has children of its own
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                yield from _processes(int(child))


def _resident(pid: int) -> int:
    """Bytes of a process in memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # its own and of children that ended
    except (OSError, ValueError):
        return 0.0


# --- the sandbox -----------------------------------------------------------------------------------------------------


def _exposed() -> tuple[list[list[str]], list[str], list[str]]:
    """What programs see of the file system (source, target), what of it is hidden, and where packages are in it.

    The standard library and numpy. No other package: the benchmarks' own hold the solutions, and a score should not
    depend on what else is installed.
    """
    base = Path(sys.base_prefix)
    libraries = [Path(p) for p in ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo")]
    expose = [[str(p), str(p)] for p in libraries if p.exists()]
    inside = [p for p in libraries if (base / "lib").is_relative_to(p)]
    if not inside:
        expose.append([str(base / "lib"), str(base / "lib")])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    parts = ("site-packages", "dist-packages")
    hide = [str(base / "lib" / version / p) for p in parts] + ["/usr/lib/python3/dist-packages"]
    if (spec := find_spec("numpy")) is not None and spec.origin is not None:
        home = Path(spec.origin).parent
        expose += [[str(p), f"/packages/{p.name}"] for p in (home, home.with_name("numpy.libs")) if p.exists()]
    return expose, hide, ["/packages"]


class Sandbox:
    """Starts programs behind walls, one at a time.

    Args:
        level: "bubblewrap", "namespaces" or "limits".

    Raises:
        RunnerFault: these walls cannot be made here.
    """

    def __init__(self, level: str, limits: Limits | None = None) -> None:
        self.level, self._limits = level, limits or Limits()
        self._nursery: subprocess.Popen[bytes] | None = None
        self._expose, self._hide, packages = _exposed()
        if level != "limits" and Path(sys.base_prefix).is_relative_to("/tmp"):
            raise RunnerFault("the interpreter is under /tmp, which programs have for themselves")
        if level == "limits":
            packages = [str(Path(s).parent) for s, t in self._expose if t.startswith("/packages/")][:1]
        self._settings = json.dumps(
            {"limits": asdict(self._limits), "expose": self._expose, "hide": self._hide, "packages": packages}
        )
        if level != "bubblewrap":
            self._start_nursery()

    def _python(self, *arguments: str, pass_fds: tuple[int, ...] = (), prefix: tuple[str, ...] = ()) -> Any:
        bare = [sys.executable if not prefix else _interpreter(), "-s", "-P", "-S", "-B"]
        return subprocess.Popen(
            [*prefix, *bare, "/sandbox.py" if prefix else str(_SCRIPT), *arguments],
            env=_ENVIRONMENT | _LOADER, cwd="/", pass_fds=pass_fds, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def _start_nursery(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_STARTUP)
        fd = theirs.fileno()
        self._nursery = self._python("nursery", str(fd), self.level, self._settings, pass_fds=(fd,))
        theirs.close()
        try:
            ready = self._control.recv(16) == b"ready"
        except OSError:
            ready = False
        if not ready:
            self._nursery.kill()
            said = self._nursery.communicate()[1].decode(errors="replace").strip().splitlines()
            raise RunnerFault(said[-1] if said else "it does not start")

    def run(self) -> Running:
        """A fresh child, waiting for its program.

        Raises:
            RunnerFault: it does not come.
        """
        running = self._start()
        try:
            running.program._receive()  # from before the program is there: what fails is ours
        except (ProgramDied, ProgramError, TimedOut):
            running.__exit__()
            raise RunnerFault(f"no child: {running.said or 'it does not start'}") from None
        return running

    def _start(self) -> Running:
        ours, theirs = socket.socketpair()
        if self.level == "bubblewrap":
            fd = theirs.fileno()
            process = self._python(
                "child", str(fd), self._settings, pass_fds=(fd,),
                prefix=_bubblewrap(self._expose, self._hide, self._limits.file),
            )  # fmt: skip
            theirs.close()
            return Running(Program(ours, _Watch(process.pid, self._limits.memory)), ours, process)
        try:
            socket.send_fds(self._control, [b"start"], [theirs.fileno()])
            theirs.close()
            self._control.recv(16)
        except OSError as error:
            raise RunnerFault(f"the nursery is gone: {error}") from None
        assert self._nursery is not None
        return Running(Program(ours, _Watch(self._nursery.pid, self._limits.memory)), ours, self._control)

    def close(self) -> None:
        if self._nursery is not None:
            self._control.close()
            self._nursery.kill()
            self._nursery.communicate()


class Running:
    """A child that runs; leaving the block kills it with all it has started.

    Attributes:
        seconds: CPU time of its first process, or of all that live, after the block.
        said: what its walls said when they could not be made, after the block.
    """

    def __init__(self, program: Program, sock: socket.socket, keeper: Any) -> None:
        self.program, self._sock, self._keeper, self.seconds, self.said = program, sock, keeper, 0.0, ""

    def __enter__(self) -> Program:
        return self.program

    def __exit__(self, *error: object) -> None:
        self._sock.close()
        if isinstance(self._keeper, subprocess.Popen):
            self.seconds = sum(map(_cpu_seconds, _processes(self._keeper.pid)))
            self._keeper.send_signal(signal.SIGKILL)  # with it, by --die-with-parent, what is inside
            self.said = self._keeper.communicate()[1].decode(errors="replace").strip()[-300:]
            return
        try:
            self._keeper.send(b"stop")
            _, self.seconds, _ = json.loads(self._keeper.recv(256))
        except (OSError, ValueError) as problem:
            raise RunnerFault(f"the nursery is gone: {problem}") from None


def _interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def _bubblewrap(expose: list[list[str]], hide: list[str], size: int) -> tuple[str, ...]:
    python = _interpreter()
    binds = [part for source, target in expose for part in ("--ro-bind", source, target)]
    binds += [part for path in hide if Path(path).is_dir() for part in ("--tmpfs", path)]
    binds += ["--ro-bind", python, python, "--ro-bind", str(_SCRIPT), "/sandbox.py"]
    for device in ("null", "zero", "random", "urandom"):  # --dev would add shared memory and terminals
        binds += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    return (
        shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent",
        "--new-session", "--cap-drop", "ALL", *binds, "--size", str(size), "--tmpfs", "/tmp",
        "--remount-ro", "/", "--chdir", "/tmp", "--",
    )  # fmt: skip


def choose(wanted: str = "auto") -> str:
    """The level of isolation: the one wanted, or the strongest that works here. Tries it.

    Raises:
        UserError: it does not work here, or, for "auto", nothing does that keeps files and network apart.
    """
    tried = {}
    for level in ("bubblewrap", "namespaces") if wanted == "auto" else (wanted,):
        if level == "bubblewrap" and shutil.which("bwrap") is None:
            tried[level] = "bwrap is not installed"
            continue
        # Root's own processes have no limit on their number, which namespaces can give them and bubblewrap cannot.
        if level == "bubblewrap" and wanted == "auto" and os.getuid() == 0:
            tried[level] = "it does not limit the number of root's processes"
            continue
        try:
            _try(level)
            return level
        except RunnerFault as error:
            tried[level] = str(error)
    why = "; ".join(f"{level}: {problem}" for level, problem in tried.items())
    fix = "Install bubblewrap, or accept weaker walls with --isolation limits in a machine you can lose."
    raise UserError(f"--isolation {wanted} does not work here", why, fix)


def _try(level: str) -> None:
    sandbox = Sandbox(level)
    try:
        with sandbox.run() as program:
            if program.run("x = [1, (2, 3)]", ["x"]) != {"x": [1, (2, 3)]}:
                raise RunnerFault("a trial program gave another value")
    except (ProgramDied, TimedOut, ProgramError, OSError) as error:
        raise RunnerFault(f"a trial program failed: {error}") from None
    finally:
        sandbox.close()


def free_names(source: str, canonical: str) -> list[str]:
    """Names that a test takes from the program: used in it, and not bound by it.

    Of Python's own names only those that the canonical solution defines: a program that redefines `set` or `len` must
    not have its tests use them.
    """
    tree = ast.parse(source)
    defined = {node.name for node in ast.parse(canonical).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    used: set[str] = set()
    bound = set(dir(builtins)) - defined
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
    return sorted(used - bound)
