"""Trouble at the n-th thing that a process does to the files of a folder: an error, or its death."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

_OPEN = builtins.open


class Faults:
    """Counts what changes files below `folder`: writes, flushes, moves, new folders.

    Args:
        at: number of the one that goes wrong, from 1; 0 for none.
        kill: die of SIGKILL there, after half of a write, instead of an error about a full disk.
        skip: names of files that do not count.
    """

    def __init__(self, folder: Path, at: int = 0, kill: bool = False, skip: tuple[str, ...] = ()) -> None:
        self.count, self._folder, self._at, self._kill, self._skip = 0, folder.resolve(), at, kill, skip

    def counts(self, path: Path) -> bool:
        path = Path(os.path.abspath(path))
        return path.is_relative_to(self._folder) and path.name not in self._skip

    def step(self, path: Path) -> bool:
        """Whether the thing that is about to be done to `path` goes wrong."""
        if not self.counts(path):
            return False
        self.count += 1
        return self.count == self._at

    def fail(self, path: Path) -> None:
        if self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def check(self, path: Path) -> None:
        if self.step(path):
            self.fail(path)


def _path_of(descriptor: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


def _opener(faults: Faults) -> Any:
    class Faulty(io.FileIO):
        def write(self, data: Any) -> int:
            path = _path_of(self.fileno())
            if faults.step(path):
                super().write(bytes(data)[: len(data) // 2])
                faults.fail(path)
            return super().write(data)

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
        if not set(mode) & set("wax+") or not faults.counts(_path_of(file) if isinstance(file, int) else Path(file)):
            return _OPEN(file, mode, buffering, *rest, **more)
        raw = Faulty(file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **more)

    return opened


@contextmanager
def injected(faults: Faults) -> Iterator[Faults]:
    """Let `faults` happen while the block runs."""

    def before(name: str, target: Any) -> Any:
        real = getattr(os, name)

        def patched(*arguments: Any, **more: Any) -> Any:
            path = target(*arguments)
            # A folder's own flush is a courtesy, which not every file system knows.
            if path is not None and not (name == "fsync" and path.is_dir()):
                faults.check(path)
            return real(*arguments, **more)

        return mock.patch.object(os, name, patched)

    opened = _opener(faults)
    with (
        mock.patch.object(builtins, "open", opened),
        mock.patch.object(io, "open", opened),
        before("replace", lambda source, to: Path(to)),
        before("mkdir", lambda path, *mode: None if os.path.exists(path) else Path(path)),
        before("fsync", _path_of),
        before("pwrite", lambda descriptor, *rest: _path_of(descriptor)),
    ):
        yield faults
