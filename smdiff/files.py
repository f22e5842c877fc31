"""JSON that is always valid, and files that are never half written."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from smdiff.errors import UserError, said

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


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to. If all goes well it becomes `path`, which is so there whole or not at all,
    and lasts. A link stays one, and what it leads to is replaced."""
    path = Path(os.path.realpath(path))
    beside = path.with_name(f".{path.name}.partial")
    try:
        yield beside
        flush(beside)
        os.replace(beside, path)
        flush(path.parent)
    finally:
        with contextlib.suppress(OSError):  # of a folder that has vanished, say: what went wrong is told already
            beside.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file, which is there whole or not at all."""
    with whole(path) as beside:
        write(beside)


def check_writable(option: str, path: Path) -> None:
    """Refuse the name of a file that cannot be written whole.

    Raises:
        UserError: there is no folder to write it in, or something else than a file has the name.
    """
    folder = Path(os.path.realpath(path)).parent
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {option} {path}", "it is there, and is no file", "Choose another name.")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        why = f"there is no folder {folder} to write in"
        raise UserError(f"cannot write {option} {path}", why, "Make it, or choose another one.")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole."""
    write_whole(path, lambda p: p.write_text(dumps(value) + "\n"))


def cache_folder() -> Path:
    """Where what is dear to make, and can be made again, is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smdiff"


def run_of(folder: Path) -> Path | None:
    """The run that a folder is, or belongs to (OUT/merged, OUT/checkpoints/checkpoint-N); None for other folders."""
    return next((f for f in (folder, folder.parent, folder.parent.parent) if (f / "run.json").exists()), None)


# Bytes of a file that is read whole and is no data: configurations, tables of names.
_WHOLE = 64 << 20
# How much larger a packed file may be than it looks; text is at most some ten times as large.
_UNPACKED, _RATIO = 64 << 20, 200


def read_whole(path: Path, limit: int = _WHOLE) -> str:
    """The text of a file of some megabytes at most.

    Raises:
        OSError: it cannot be read. ValueError: it is larger than `limit` bytes, or no UTF-8.
    """
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise ValueError(f"it has more than {limit >> 20} MiB")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError("it is no UTF-8 text") from None


def gunzip(raw: bytes) -> bytes:
    """The content of a gzip file.

    Raises:
        OSError: it is cut or broken, or unpacks to far more than text does.
    """
    limit = max(_UNPACKED, _RATIO * len(raw))
    try:
        found = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(limit + 1)
    except (EOFError, zlib.error) as error:
        raise OSError(str(error)) from None
    if len(found) > limit:
        raise OSError(f"it unpacks to more than {limit >> 20} MiB, {_RATIO} times its size")
    return found


def loads(text: str | bytes) -> Any:
    """A JSON value.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if there is no such file.

    Raises:
        UserError: the file is there and holds none; to take it for missing would lose what it guards.
    """
    try:
        value = loads(read_whole(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}", said(error), "Restore it, or choose another folder.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object", fix="Restore it, or choose another folder.")
    return value
