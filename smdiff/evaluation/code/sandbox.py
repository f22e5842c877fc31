"""The walls around model-written programs, and the side of the conversation that is inside them.

This file is a program of its own: a grader starts it with a bare interpreter, and it imports nothing but the standard
library. It sees programs and arguments, never tests or expected values. For each program it makes a child in fresh
namespaces; the child answers calls over a socket until it is killed. Nothing it says is believed beyond the values.

    nursery CONTROL_FD LEVEL JSON   one child for each request; LEVEL is "namespaces" or "limits"
    child SOCKET_FD JSON            one program, where bubblewrap has made the walls already
"""

from __future__ import annotations

import array
import base64
import builtins
import collections
import contextlib
import ctypes
import datetime
import decimal
import fractions
import gc
import io
import json
import marshal
import os
import random
import resource
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

# Loaded once here, so that a program's imports of them cost nothing.
import bisect, cmath, copy, functools, hashlib, heapq, itertools, math, operator, re, statistics, string, typing  # noqa: E401, F401  # isort: skip

_HEADER = struct.Struct(">Q")
_LARGEST = 64 << 20  # bytes of one reply
_DEEPEST = 200  # nested containers in a value
_MANY = 2_000_000  # items; what holds more travels as its hash

# --- values -----------------------------------------------------------------------------------------------------------
# JSON with a tagged object for everything that JSON does not have; `runner.decode` reads it.

_PLAIN = frozenset({int, float, str, bool, type(None)})
_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})
_STREAMS = {float: 0, int: 1} | dict.fromkeys(_PLAIN - {float, int}, 2)
_SMALL = 1 << 62
_LONG = 1000  # items; from here on numbers travel as bytes, which takes a fraction of the time that digits take
_LONG_REPLY = 1 << 16  # bytes; the digest of a result of more goes before it, and may do


class _Objects:
    """Values that do not travel (functions, classes, instances of the program's own classes), by number."""

    def __init__(self) -> None:
        self.by_number: list[Any] = []

    def refer(self, value: Any) -> dict[str, Any]:
        self.by_number.append(value)
        return {"o": [len(self.by_number) - 1, type(value).__name__]}


def _count(value: Any) -> int:
    """Items of a container and of the containers in it."""
    if _CONTAINERS.isdisjoint(map(type, value)):
        return len(value)
    return len(value) + sum(len(x) for x in value if type(x) in _CONTAINERS)


def _fingerprint(value: Any) -> int:
    """A hash that equal values share in any process, of lists and dicts too: Python's own, whose seed is fixed here."""
    kind = type(value)
    if kind is list:
        return hash(("list", *map(_fingerprint, value)))
    if kind is tuple:
        try:
            return hash(value)
        except TypeError:
            return hash(("tuple", *map(_fingerprint, value)))
    if kind in (set, frozenset):
        return hash(frozenset(value))
    if kind is dict:
        return hash(frozenset((k, _fingerprint(v)) for k, v in value.items()))
    return hash(value)


def _travels(items: list[Any], kinds: set[type]) -> bool:
    """Whether JSON has all of them as they are."""
    if not kinds <= _PLAIN:
        return False
    integers = items if kinds == {int} else [x for x in items if type(x) is int]
    return not integers or (min(integers) > -_SMALL and max(integers) < _SMALL)


def _pack(items: list[Any], kinds: set[type]) -> dict[str, Any]:
    """A long list with numbers: its floats and its integers as bytes, what else is in it, and which comes when.

    Raises:
        OverflowError: an integer does not fit.
    """
    streams: list[Any] = [[], [], []]
    if len(kinds) == 1:
        order = b""
        streams[_STREAMS[next(iter(kinds))]] = items
    else:
        order = bytes(map(_STREAMS.__getitem__, map(type, items)))
        for number in set(order):
            streams[number] = itertools.compress(items, order.translate(bytes(i == number for i in range(256))))
    numbers = (order, array.array("d", streams[0]), array.array("q", streams[1]))
    return {"a": [*(base64.b64encode(x).decode() for x in numbers), list(streams[2])]}


def _items(items: Any, objects: _Objects, depth: int) -> Any:
    """The items of a container, as `encode` has them."""
    items = list(items)
    kinds = set(map(type, items))
    if len(items) >= _LONG and kinds <= _PLAIN and kinds & {float, int}:
        with contextlib.suppress(OverflowError):
            return _pack(items, kinds)
    elif _travels(items, kinds):
        return items
    if kinds in ({list}, {tuple}) and max(map(len, items)) < _LONG:  # rows of a table, without a call for each
        flat = list(itertools.chain.from_iterable(items))
        if _travels(flat, set(map(type, flat))):
            return items if kinds == {list} else [{"t": list(x)} for x in items]
    return [encode(x, objects, depth + 1) for x in items]


def encode(value: Any, objects: _Objects, depth: int = 0) -> Any:
    """A value as JSON can hold it. What cannot be shown as data becomes a reference to an object of this process."""
    kind = type(value)
    if depth == 0 and kind in _CONTAINERS and _count(value) > _MANY:
        return {"h": [kind.__name__, len(value), _fingerprint(value)]}
    if kind is int:
        return value if -_SMALL < value < _SMALL else {"i": hex(value)}
    if kind in _PLAIN:
        return value
    if depth > _DEEPEST:
        raise ValueError("the value is nested too deeply")

    if isinstance(value, list):
        return _items(list.__iter__(value), objects, depth)
    if isinstance(value, tuple):
        return {"t": _items(tuple.__iter__(value), objects, depth)}
    if isinstance(value, dict):
        pairs = [[encode(k, objects, depth + 1), encode(v, objects, depth + 1)] for k, v in dict.items(value)]
        name = next((n for n in ("Counter", "OrderedDict", "defaultdict") if kind is getattr(collections, n)), "dict")
        return {"d": [name, pairs]}
    if isinstance(value, set | frozenset):
        return {"s": ["set" if isinstance(value, set) else "frozenset", _items(value, objects, depth)]}
    if isinstance(value, str | int | float):  # of a subclass: as what it holds
        if isinstance(value, str):
            return str.__str__(value)
        return encode(int.__int__(value) if isinstance(value, int) else float.__float__(value), objects, depth)
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"b": ["bytes" if isinstance(value, bytes) else "bytearray", bytes(value).hex()]}
    if kind is range:
        return {"r": [value.start, value.stop, value.step]}
    if kind is collections.deque:
        return {"q": _items(value, objects, depth)}
    if kind is type({}.keys()):
        return {"k": _items(value, objects, depth)}
    if kind is fractions.Fraction:
        return {"f": [hex(value.numerator), hex(value.denominator)]}
    if kind is decimal.Decimal:
        return {"D": str(value)}
    if kind in (datetime.date, datetime.datetime, datetime.time):
        return {"T": [kind.__name__, value.isoformat()]}
    if kind is datetime.timedelta:
        return {"T": ["timedelta", [value.days, value.seconds, value.microseconds]]}
    if kind.__module__ == "numpy" and hasattr(value, "dtype"):
        shape = list(value.shape) if kind.__name__ == "ndarray" else None
        return {"n": [str(value.dtype), shape, encode(value.tolist(), objects, depth + 1)]}
    return objects.refer(value)


# --- the child: one program ------------------------------------------------------------------------------------------


class _Child:
    """Runs one program and answers what is asked about it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._objects, self._names = sock, _Objects(), {}  # type: ignore[var-annotated]
        # The program may replace any of these in their modules.
        self._dumps, self._loads, self._encode, self._header = json.dumps, marshal.loads, encode, _HEADER
        self._sha256 = hashlib.sha256

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._sock.recv(min(size, 1 << 20))
            if not part:
                os._exit(0)
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _text(self, reply: Callable[[], Any]) -> bytes:
        """What `reply` gives; what it raises, by name."""
        try:
            text = self._dumps(reply()).encode()
            if len(text) > _LARGEST:
                raise ValueError("the value is too large")
        except BaseException as error:  # SystemExit and KeyboardInterrupt among them
            syntax = isinstance(error, SyntaxError) and not self._names
            try:
                message = str(error)[:300]
            except BaseException:
                message = ""
            text = self._dumps({"error": ["compile" if syntax else type(error).__name__, message]}).encode()
        return text

    def _send(self, text: bytes) -> None:
        self._sock.sendall(self._header.pack(len(text)) + text)

    def _request(self) -> Any:
        return self._loads(self._read(self._header.unpack(self._read(8))[0]))

    def _decode(self, value: Any) -> Any:
        """An argument: the tester's references are put back in place."""
        if isinstance(value, tuple) and len(value) == 2 and value[0] == "smdiff.object":
            return self._objects.by_number[value[1]] if isinstance(value[1], int) else getattr(builtins, value[1])
        if isinstance(value, list | tuple | set):
            return type(value)(map(self._decode, value))
        if isinstance(value, dict):
            return {self._decode(k): self._decode(v) for k, v in value.items()}
        return value

    def _value(self, value: Any) -> dict[str, Any]:
        return {"value": self._encode(value, self._objects)}

    def serve(self) -> None:
        """Answer until the tester hangs up, which is when it kills this process."""
        self._send(b'{"ready": true}')  # what fails before this is our fault, what fails after it the program's
        while True:
            name, *arguments = self._request()
            if name == "each":
                self._each(*arguments)
            else:
                self._send(self._text(partial(getattr(self, f"do_{name}"), *arguments)))

    def _each(self, name: str, inputs: list[Any]) -> None:
        for given in inputs:
            text = self._text(partial(self._result, name, given))
            if len(text) > _LONG_REPLY:
                self._send(self._dumps({"digest": self._sha256(text).hexdigest()}).encode())
                if not self._request():  # it is the expected one
                    continue
            self._send(text)

    def _result(self, name: str, given: Any) -> dict[str, Any]:
        return self._value(self._names[name](*given))

    def do_exec(self, source: str, wanted: list[str]) -> dict[str, Any]:
        """Run the program; say which of the wanted names it defines."""
        names: dict[str, Any] = {}
        exec(compile(source, "<program>", "exec"), names)
        self._names = names
        return {"names": [name for name in wanted if name in names]}

    def do_name(self, name: str) -> dict[str, Any]:
        value = self._names[name]
        if isinstance(value, type(sys)):
            return {"module": value.__name__}
        return self._value(value)

    def do_call(self, number: int, arguments: Any, options: Any) -> dict[str, Any]:
        return self._value(self._objects.by_number[number](*self._decode(arguments), **self._decode(options)))

    def do_getattr(self, number: int, name: str) -> dict[str, Any]:
        return self._value(getattr(self._objects.by_number[number], name))

    def do_setattr(self, number: int, name: str, value: Any) -> dict[str, Any]:
        setattr(self._objects.by_number[number], name, self._decode(value))
        return {"value": None}

    def do_iterate(self, number: int) -> dict[str, Any]:
        return self._value(list(itertools.islice(self._objects.by_number[number], 1_000_000)))

    def do_len(self, number: int) -> dict[str, Any]:
        return self._value(len(self._objects.by_number[number]))

    def do_bool(self, number: int) -> dict[str, Any]:
        return {"value": bool(self._objects.by_number[number])}

    def do_getitem(self, number: int, key: Any) -> dict[str, Any]:
        return self._value(self._objects.by_number[number][self._decode(key)])


def _limit(limits: dict[str, int]) -> None:
    """Resource limits, hard ones."""
    values = {
        "AS": limits["memory"], "CPU": limits["cpu"], "FSIZE": limits["file"], "NPROC": limits["processes"],
        "NOFILE": 64, "CORE": 0,
    }  # fmt: skip
    for name, value in values.items():
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def _refuse_calls() -> None:
    """A filter on system calls: no memory that belongs to no process (no limit and no watch counts it), no keyring
    (samples share it, and may share it with the user), no sockets but AF_UNIX's (a network namespace does not hold
    AF_VSOCK, which reaches a virtual machine's host) and nothing of the kernel's that other guards do not cover.
    """
    # shmget semget msgget add_key request_key keyctl perf_event_open memfd_create bpf userfaultfd io_uring_setup
    # memfd_secret; then socket
    architecture, numbers, making = {
        "x86_64": (0xC000003E, (29, 64, 68, 248, 249, 250, 298, 319, 321, 323, 425, 447), 41),
        "aarch64": (0xC00000B7, (194, 190, 186, 217, 218, 219, 241, 279, 280, 282, 425, 447), 198),
    }[os.uname().machine]
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    steps: list[tuple[int, str, str, int]] = [  # operation, where to go if true, if false ("": on), operand
        (load, "", "", 4), (equal, "", "deny", architecture), (load, "", "", 0), (at_least, "deny", "", 0x40000000),
        *((equal, "deny", "", number) for number in numbers),
        (equal, "", "allow", making), (load, "", "", 16),
        (equal, "allow", "", socket.AF_UNIX), (end, "", "", 0x00050001), (end, "", "", 0x7FFF0000),
    ]  # fmt: skip
    place = {"deny": len(steps) - 2, "allow": len(steps) - 1}
    code = b""
    for at, (operation, true, false, operand) in enumerate(steps):
        jumps = [place.get(label, at + 1) - at - 1 for label in (true, false)]
        code += struct.pack("=HBBI", operation, *jumps, operand)
    kept = ctypes.create_string_buffer(code)
    _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _SECCOMP, 2, struct.pack("@HP", len(steps), ctypes.addressof(kept)), 0, 0)


def _run_child(sock_fd: int, limits: dict[str, int]) -> None:
    """Be the child: nothing open but the socket, standard streams to nowhere, then serve."""
    os.dup2(sock_fd, 3)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.closerange(4, 1024)
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    random.seed(0)
    _limit(limits)
    try:
        _refuse_calls()
        _Child(socket.socket(fileno=3)).serve()
    finally:
        os._exit(1)


# --- the walls --------------------------------------------------------------------------------------------------------

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET, _NEWUTS = (
    0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x04000000,
)  # fmt: skip
_BIND, _REC, _PRIVATE, _DETACH = 4096, 16384, 1 << 18, 2
_SYS_CLONE, _SYS_PIVOT_ROOT, _SYS_MOUNT_SETATTR, _SYS_CAPSET = {
    "x86_64": (56, 155, 442, 126), "aarch64": (220, 41, 442, 91),
}.get(os.uname().machine, (0, 0, 0, 0))  # fmt: skip
_PDEATHSIG, _SECCOMP, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 22, 24, 38
_SAMPLE_ID = 1  # user and group of programs, inside

_libc = ctypes.PyDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> int:
    """A C function; what it refuses is an OSError."""
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name} {arguments}: {os.strerror(code)}")
    return result


def _mount(source: str, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    encoded = [None if x is None else x.encode() for x in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), None if data is None else data.encode())


def _read_only(target: str) -> None:
    """A mount and those below it read-only, without devices or set-user-id programs."""
    attributes = struct.pack("=4Q", 1 | 2 | 4, 0, 0, 0)
    _call("syscall", _SYS_MOUNT_SETATTR, -100, target.encode(), 0x8000, attributes, len(attributes))


def _enter_user_namespace() -> None:
    """New namespaces in which this process may do as it likes, and programs run as a user who may not.

    A child that stays outside writes the maps: only it may map another user than its own, which root needs, as the
    limit on processes does not bind root.
    """
    uid, gid = os.getuid(), os.getgid()
    maps = ("0 0 1\n1 65534 1", "0 0 1\n1 65534 1") if uid == 0 else (f"{_SAMPLE_ID} {uid} 1", f"{_SAMPLE_ID} {gid} 1")
    ready, go = os.pipe()
    parent, writer = os.getpid(), os.fork()
    if writer == 0:
        try:
            os.close(go)
            os.read(ready, 1)
            if uid:
                _write(f"/proc/{parent}/setgroups", "deny")
            _write(f"/proc/{parent}/uid_map", maps[0])
            _write(f"/proc/{parent}/gid_map", maps[1])
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.close(ready)
    _call("unshare", _NEWUSER | _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS)
    os.close(go)
    if os.waitpid(writer, 0)[1]:
        raise OSError("the user map cannot be written")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _new_root(expose: list[list[str]], hide: list[str]) -> None:
    """A root with nothing in it but libraries and the standard library, all read-only, and a few devices."""
    _write("/proc/sys/user/max_user_namespaces", "0")  # of this namespace: programs make none below it
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("none", "/tmp", "tmpfs")
    os.makedirs("/tmp/old")
    os.makedirs("/tmp/new/tmp")
    _call("syscall", _SYS_PIVOT_ROOT, b"/tmp", b"/tmp/old")
    os.chdir("/")
    _mount("none", "/new", "tmpfs", 0, "size=1m")
    for target in ("/tmp", "/old"):
        os.makedirs("/new" + target)
    os.rmdir("/new/old")
    for device in ("null", "zero", "urandom", "random"):
        expose = [*expose, [f"/dev/{device}", f"/dev/{device}"]]
    for source, target in expose:
        real, there = os.path.realpath("/old" + source), "/new" + target
        if not real.startswith("/old/"):  # an absolute link: of the old root
            real = "/old" + real
        if os.path.isdir(real):
            os.makedirs(there, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(there), exist_ok=True)
            open(there, "w").close()
        _mount(real, there, None, _BIND | _REC)
        if not source.startswith("/dev/"):
            _read_only(there)
    for path in hide:
        if os.path.isdir("/new" + path):
            _mount("none", "/new" + path, "tmpfs", 0, "size=1m")
            _read_only("/new" + path)
    os.chdir("/new")
    _call("syscall", _SYS_PIVOT_ROOT, b".", b".")
    _call("umount2", b".", _DETACH)
    os.chdir("/")
    _read_only_top()


def _read_only_top() -> None:
    attributes = struct.pack("=4Q", 1 | 2, 0, 0, 0)
    _call("syscall", _SYS_MOUNT_SETATTR, -100, b"/", 0, attributes, len(attributes))


def _fork_apart() -> int:
    """fork() into namespaces of its own for processes, mounts and messages. The child is number 1 there: with it, all
    that it has started ends."""
    pythonapi = ctypes.pythonapi
    pythonapi.PyOS_BeforeFork()
    pid = int(_libc.syscall(_SYS_CLONE, _NEWPID | _NEWNS | _NEWIPC | signal.SIGCHLD, 0, 0, 0, 0))
    if pid == 0:
        pythonapi.PyOS_AfterFork_Child()
        return 0
    pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")
    return pid


def _drop_privileges() -> None:
    """No capability, now or after an exec, and no way to one."""
    for capability in range(64):
        if _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(_SAMPLE_ID, _SAMPLE_ID, _SAMPLE_ID)
        os.setresuid(_SAMPLE_ID, _SAMPLE_ID, _SAMPLE_ID)
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _call("syscall", _SYS_CAPSET, header, nothing)


def _child_in_namespaces(limits: dict[str, int]) -> None:
    _mount("none", "/tmp", "tmpfs", 2 | 4, f"size={limits['file']},nr_inodes=4096,mode=1777")
    os.chdir("/tmp")
    _drop_privileges()
    os.setsid()


def _nursery(control: socket.socket, level: str, settings: dict[str, Any]) -> None:
    """Make a child for each socket that arrives; kill it, and report, when told."""
    limits = settings["limits"]
    folder = None
    while True:
        message, fds, _, _ = socket.recv_fds(control, 64, 1)
        if not message:
            return
        if level == "limits":
            folder = tempfile.mkdtemp(prefix="smdiff-")
        pid = _fork_apart() if level == "namespaces" else os.fork()
        if pid == 0:
            try:
                if level == "namespaces":
                    _child_in_namespaces(limits)
                else:
                    _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                    os.setsid()
                    os.chdir(folder)  # type: ignore[arg-type]
            except OSError:
                os._exit(99)
            _run_child(fds[0], limits)
        os.close(fds[0])
        control.send(str(pid).encode())
        control.recv(16)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        if folder is not None:
            _clean_up(pid, folder)
        control.send(json.dumps([status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]).encode())


def _clean_up(group: int, folder: str) -> None:
    """Without namespaces: what a program left, by its process group and by what the kernel handed to this process."""
    import shutil

    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    for _ in range(100):
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not _children():
            break
    shutil.rmtree(folder, ignore_errors=True)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _main(argv: list[str]) -> None:
    settings = json.loads(argv[-1])
    sys.path += settings["packages"]
    gc.disable()
    if argv[0] == "child":
        _run_child(int(argv[1]), settings["limits"])
    control = socket.socket(fileno=int(argv[1]))
    with contextlib.suppress(OSError):
        _write("/proc/self/oom_score_adj", "1000")  # the kernel's first choice when memory runs out
    _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if argv[2] == "namespaces":
        _enter_user_namespace()
        # The first process of the new pid namespace: when it dies, everything in it does.
        first = os.fork()
        if first:
            control.close()
            os.waitpid(first, 0)
            os._exit(0)
        _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _new_root(settings["expose"], settings["hide"])
    else:
        _libc.prctl(36, 1, 0, 0, 0)  # orphans of a program come to this process
    gc.enable()
    gc.freeze()
    control.send(b"ready")
    _nursery(control, argv[2], settings)


if __name__ == "__main__":
    _main(sys.argv[1:])
