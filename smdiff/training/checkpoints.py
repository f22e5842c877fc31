"""Checkpoints that are there whole or not at all, and the one to go on from.

A checkpoint is written aside, flushed, and sealed with a manifest: the size and sha256 of each of its files. What the
disk gives back must agree with it before the checkpoint is moved in place, and again before it is resumed from. Older
ones go only then.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import pickle
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PosixPath
from typing import Any

import torch
from safetensors import SafetensorError

from smdiff.errors import RunFailed, UserError, first_line, some
from smdiff.files import STAGING, flush, read_json, write_json
from smdiff.lock import check_held
from smdiff.ranks import is_first
from smdiff.ui.console import note

MANIFEST = "manifest.json"
PARTIAL = ".partial"
_LARGEST_MANIFEST = 64_000_000


def _files(folder: Path) -> list[str]:
    """Relative paths of all files below a folder, its manifest left out."""
    found = (Path(at, name).relative_to(folder).as_posix() for at, _, names in os.walk(folder) for name in names)
    return sorted(name for name in found if name != MANIFEST)


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def _digests(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashing holds no lock of Python's
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


class _Metadata(pickle.Unpickler):
    """Reads the description of a sharded checkpoint (`torch.distributed.checkpoint`), which torch opens as a pickle."""

    def find_class(self, module: str, name: str) -> Any:
        found = None
        if module.startswith("torch.distributed.checkpoint."):
            found = getattr(importlib.import_module(module), name, None)
            found = found if isinstance(found, type) and found.__module__ == module else None
        elif module in ("torch", "pathlib", "collections"):
            found = getattr(importlib.import_module(module), name, None)
            found = found if isinstance(found, torch.dtype) or found in (torch.Size, PosixPath, OrderedDict) else None
        elif (module, name) == ("torch.serialization", "_get_layout"):
            found = getattr(importlib.import_module(module), name)
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return found


def _foreign(folder: Path) -> str:
    """Which description of a sharded checkpoint would run code when it is opened; "" for none."""
    for path in folder.rglob("*.metadata"):
        try:
            with path.open("rb") as file:
                _Metadata(file).load()
        except Exception as error:  # a pickle of a stranger makes it raise anything
            return f"{path.relative_to(folder)} describes no sharded checkpoint: {first_line(error)}"
    return ""


def seal(folder: Path) -> None:
    """Flush all files of a folder and write its manifest, last; then see that the disk gives the same bytes back.

    Raises:
        OSError: it cannot be written, or it comes back as something else.
    """
    written = _digests(folder, _files(folder))
    for name in written:
        flush(folder / name, forget=True)
    for at, _, _ in os.walk(folder, topdown=False):
        flush(Path(at))
    write_json(folder / MANIFEST, {"files": written})
    if wrong := flaw(folder):
        raise OSError(errno.EIO, f"the disk does not give back what was written: {wrong}")


def flaw(folder: Path, hashes: bool = True) -> str:
    """What keeps a sealed folder from being whole, in a few words; "" if nothing does.

    Args:
        hashes: read all bytes; else only the sizes are looked at.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            return f"its {MANIFEST} is too large"
        stored = json.loads(path.read_bytes())["files"]
        wanted = {str(name): (int(of["size"]), str(of["sha256"])) for name, of in stored.items()}
    except (FileNotFoundError, NotADirectoryError):
        return f"no {MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return f"its {MANIFEST} is none"
    except OSError as error:
        return f"cannot read {MANIFEST}: {error.strerror}"
    try:
        there = _files(folder)
        if wrong := [f"{n} is missing" for n in wanted if n not in there]:
            return some(wrong)
        if wrong := [f"{n} is not in its {MANIFEST}" for n in there if n not in wanted]:
            return some(wrong)
        for name, (size, _) in wanted.items():
            if (found := (folder / name).stat().st_size) != size:
                return f"{name} has {found:,} of {size:,} bytes"
        if hashes:
            found_all = _digests(folder, there)
            wrong = [f"{n} has another hash" for n in there if found_all[n]["sha256"] != wanted[n][1]]
            return some(wrong) or _foreign(folder)
    except OSError as error:
        return f"cannot read {error.filename}: {error.strerror}"
    return ""


class Checkpoints:
    """A run's checkpoints.

    Args:
        folder: where they are.
        keep: how many whole ones are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._whole: set[str] = set()  # known to be, by this process

    @property
    def _aside(self) -> Path:
        return self.folder / PARTIAL

    def all(self) -> list[Path]:
        """All of them, whole or not, the newest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        numbers = {p: int(p.name.split("-")[1]) for p in found if re.fullmatch(r"checkpoint-\d+", p.name)}
        return sorted(numbers, key=numbers.__getitem__, reverse=True)

    def newest(self) -> Path | None:
        """The newest that is whole, None if there are none at all; tells which it passes over.

        Earlier versions left no manifest. Their checkpoints count only where no other does.

        Raises:
            UserError: there are some, and none is whole.
        """
        flaws, found = {}, None
        for path in self.all():
            if not (wrong := flaw(path)):
                self._whole.add(path.name)
                found = path
                break
            flaws[path] = wrong
        if found is None and (bare := [p for p in flaws if not (p / MANIFEST).exists() and not _foreign(p)]):
            found = bare[0]
            del flaws[found]
            note(f"{found.name} has no {MANIFEST}, as an earlier version left none: it is taken as it is")
        said = some([f"{path.name}: {wrong}" for path, wrong in flaws.items()])
        if found is None and flaws:
            raise UserError(
                f"no checkpoint in {self.folder} is whole", said,
                "Restore one from a copy, or remove that folder to train from the start.",
            )  # fmt: skip
        if flaws:
            note(f"passed over, as they are not whole: {said}")
        return found

    def resume(self) -> Path | None:
        """The newest that is whole, as `newest` says; a run that stopped between placing and rotating is caught up."""
        found = self.newest()
        if len(self.all()) > self.keep:
            self.rotate()
        self.clear()
        return found

    def begin(self) -> None:
        """Make ready for writing one aside: the run's folder is the same as ever, nothing of an earlier try is left."""
        check_held(self.folder.parent)
        self.clear()
        with suppress(FileNotFoundError):
            flush(self.folder.parent / "metrics.jsonl")  # what it says of the steps before lasts as long as they do

    def clear(self) -> None:
        """Remove what lies aside."""
        shutil.rmtree(self._aside, ignore_errors=True)

    def place(self, name: str) -> None:
        """Seal the checkpoint that was written aside and move it in place; one there that is not whole makes way.

        Raises:
            OSError: it is not whole; nothing has been replaced.
        """
        seal(self._aside / name)
        check_held(self.folder.parent)
        target = self.folder / name
        if target.exists():
            if not flaw(target):
                return
            self._remove(target)
        os.replace(self._aside / name, target)
        flush(self.folder)
        self._whole.add(name)

    def rotate(self) -> None:
        """Once `keep` of them are whole, remove all others."""
        kept: list[Path] = []
        for path in self.all():
            if len(kept) < self.keep and not flaw(path, hashes=path.name not in self._whole):
                self._whole.add(path.name)
                kept.append(path)
        if len(kept) < self.keep:
            return
        for path in self.all():
            if path not in kept:
                try:
                    self._remove(path)
                except OSError as error:
                    note(f"cannot remove {path}: {error.strerror}")
        self.clear()

    def _remove(self, path: Path) -> None:
        """At once, as seen from outside: half of a checkpoint must not bear its name."""
        self._aside.mkdir(exist_ok=True)
        old = self._aside / f"old-{path.name}"
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        shutil.rmtree(old, ignore_errors=True)


class Best:
    """The weights with the lowest held-out loss so far, in a sealed folder of their own beside the checkpoints.

    Attributes:
        step: when they were found; None before the first.

    Raises:
        UserError: what is in the folder is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if is_first():
            self._recover()
        stored = read_json(folder / "best.json") or {}
        self.step: int | None = stored.get("step")
        self.nll = float(stored.get("nll", "inf"))

    @property
    def _beside(self) -> Path:
        return self.folder.with_name(PARTIAL + "-best")

    @property
    def _old(self) -> Path:
        return self.folder.with_name(".old-best")

    def _recover(self) -> None:
        """Undo a stop between the two moves of `offer`, and see that what is there is whole."""
        for left in (self._beside, self._old):
            if not self.folder.exists() and (left / "best.json").exists() and not flaw(left):
                os.replace(left, self.folder)
        wrong = flaw(self.folder)
        if wrong and self.folder.exists() and (self.folder / MANIFEST).exists():
            raise UserError(
                f"the best weights so far, {self.folder}, are not whole", wrong,
                "Restore them from a copy, or remove that folder: the best from here on are delivered then.",
            )  # fmt: skip
        for left in (self._beside, self._old):
            shutil.rmtree(left, ignore_errors=True)

    def offer(self, step: int, nll: float, write: Callable[[Path], None]) -> None:
        """Keep the weights that `write` writes if their loss is the lowest; the first process writes."""
        if not nll < self.nll:
            return
        if not is_first():
            self.step, self.nll = step, nll
            return
        beside = self._beside
        try:
            check_held(self.folder.parent.parent)
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            write(beside)
            write_json(beside / "best.json", {"step": step, "nll": nll})
            seal(beside)
            shutil.rmtree(self._old, ignore_errors=True)
            if self.folder.exists():
                os.replace(self.folder, self._old)
            os.replace(beside, self.folder)
            flush(self.folder.parent)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise RunFailed(
                f"cannot save {self.folder}", reason, "Make room and run the same command to go on."
            ) from None
        shutil.rmtree(self._old, ignore_errors=True)
        self.step, self.nll = step, nll


def deliver(folder: Path, write: Callable[[Path], object], last: str = "") -> None:
    """Put the files that `write` writes into a folder that holds others; while `STAGING` is there they do not count.

    Args:
        last: the file that is moved in after all others, which says that they are there.
    """
    check_held(folder)
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    write(staging)
    files = sorted(staging.iterdir(), key=lambda file: (file.name == last, file.name))
    for file in files:
        flush(file)
    flush(folder)
    for file in files:
        os.replace(file, folder / file.name)
    flush(folder)
    staging.rmdir()
    flush(folder)
