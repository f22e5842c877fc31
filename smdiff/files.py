"""JSON that is always valid, and files that are never half written."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smdiff.errors import UserError

# Below a run's folder while its model is being delivered: until it is gone the checkpoints are the model.
STAGING = ".final"


def _finite(value: Any) -> Any:
    """JSON has no NaN: a figure that does not exist becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def dumps(value: Any, indent: int | None = 2) -> str:
    """Valid JSON, whatever the figures."""
    return json.dumps(_finite(value), indent=indent)


def flush(path: Path, forget: bool = False) -> None:
    """Have the disk hold a file's content, or a folder's entries.

    Args:
        forget: drop the file from memory too, so that who reads it next reads the disk.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if forget and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then move it in place: it is there whole or not at all, and lasts."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        write(beside)
        flush(beside)
        os.replace(beside, path)
        flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole."""
    write_whole(path, lambda p: p.write_text(dumps(value) + "\n"))


def cache_folder() -> Path:
    """Where what is dear to make, and can be made again, is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smdiff"


def run_of(folder: Path) -> Path | None:
    """The run that a folder is, or belongs to (OUT/merged, OUT/checkpoints/checkpoint-N); None for other folders."""
    return next((f for f in (folder, folder.parent, folder.parent.parent) if (f / "run.json").exists()), None)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if there is no such file.

    Raises:
        UserError: the file is there and holds none; to take it for missing would lose what it guards.
    """
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}", str(error), "Restore it, or choose another folder.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object", fix="Restore it, or choose another folder.")
    return value
