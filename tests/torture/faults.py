"""Ends the process, or makes it fail, at its n-th file operation below a folder.

Python's own operations are seen by an audit hook (opening for writing, mkdir, rename, remove, rmdir); fsync and what
torch and safetensors write from C++ and Rust by wrappers around their calls.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

_AUDITED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
_MAKES_ROOM = {"os.remove", "os.rmdir"}


class Faults:
    """Counts the operations of this process.

    Args:
        folder: where operations count.
        at: the operation, from 1, that does not happen; 0 for none.
        how: "kill" ends the process there; "cut" does so after half of a file that torch or safetensors write;
            "once" makes that operation fail, "full" that one and all later ones, as on a full disk.
        error: with which errno operations fail.
    """

    active: Faults | None = None

    def __init__(self, folder: Path, at: int = 0, how: str = "kill", error: int = errno.ENOSPC) -> None:
        self.folder, self.at, self.how, self.error = str(folder.absolute()), at, how, error
        self.seen: list[str] = []

    def _below(self, path: Any, descriptor: int) -> bool:
        try:
            path = os.fsdecode(path)
        except TypeError:
            return False
        return descriptor not in (-1, None) or os.path.abspath(path).startswith(self.folder)

    def audit(self, event: str, arguments: tuple) -> None:
        if event not in _AUDITED:
            return
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or not self._below(path, -1):
                return
        else:
            descriptor = -1 if event == "os.rename" else arguments[-1]
            path = arguments[1] if event == "os.rename" else arguments[0]
            if not self._below(path, descriptor):
                return
        self.happen(event, path)

    def happen(self, event: str, path: Any, write: Callable[[], None] | None = None) -> None:
        self.seen.append(f"{event} {os.fsdecode(path) if isinstance(path, str | bytes | Path) else path}")
        if not self.at or len(self.seen) < self.at:
            return
        if self.how in ("kill", "cut"):
            if self.how == "cut" and write is not None:
                write()
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        room = event in _MAKES_ROOM and self.error == errno.ENOSPC
        if not room and (len(self.seen) == self.at or self.how == "full"):
            raise OSError(self.error, os.strerror(self.error), str(path))


def _audit(event: str, arguments: tuple) -> None:
    if Faults.active is not None:
        Faults.active.audit(event, arguments)


def _wrap(module: Any, name: str, path_at: int) -> None:
    original = getattr(module, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        path = arguments[path_at]
        if Faults.active is not None and (isinstance(path, int) or Faults.active._below(path, -1)):
            Faults.active.happen(name, path, lambda: original(*arguments, **options))
        return original(*arguments, **options)

    setattr(module, name, wrapped)


def install() -> None:
    """Watch this process, for as long as it lives; `Faults.active` says for what."""
    sys.addaudithook(_audit)
    _wrap(os, "fsync", 0)
    _wrap(torch, "save", 1)
    _wrap(safetensors.torch, "serialize_file", 1)
