"""One process at a time in an output folder.

The lock is flock's on `lock.json`, which the kernel gives back when its process ends, however it ends. The file's
content says who holds it, for the message, and decides where the kernel cannot: on a file system without locks, or
when another machine wrote it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from smdiff.errors import RunFailed, UserError
from smdiff.files import dumps
from smdiff.ranks import is_first

NAME = "lock.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_held: dict[Path, int] = {}


def _forget() -> None:
    """A forked worker may outlive its parent: the lock stays the parent's."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def _me() -> dict[str, Any]:
    """Who holds a lock. The boot tells containers of one machine from other machines."""
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "boot": boot, "since": since}


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _owner(descriptor: int) -> dict[str, Any]:
    """What the file says; {} if nothing, as while its owner is about to write it."""
    try:
        stored = json.loads(os.pread(descriptor, 4096, 0))
        owner = {name: str(stored.get(name, "")) for name in ("host", "boot", "since")}
        return owner | {"pid": int(stored["pid"])}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return {}


def _refused(folder: Path, owner: dict[str, Any]) -> UserError:
    who = f"process {owner['pid']} on {owner['host']} works" if owner else "another process works"
    since = f", since {owner['since']}" if owner else ""
    return UserError(f"{folder} is in use", f"{who} there{since}", "Wait for it, stop it, or choose another folder.")


def _try(folder: Path) -> int | None:
    """A descriptor that holds the lock; None if its file was removed in the same moment."""
    path = folder / NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        kernel = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refused(folder, _owner(descriptor)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            kernel = False
        try:
            if not os.path.samestat(os.fstat(descriptor), path.stat()):
                raise FileNotFoundError
        except FileNotFoundError:
            os.close(descriptor)
            return None
        owner, me = _owner(descriptor), _me()
        if owner and owner["host"] != me["host"] and owner["boot"] != me["boot"]:
            raise UserError(
                f"{folder} is in use by process {owner['pid']} on {owner['host']}",
                "from this machine it cannot be seen whether that process still runs",
                f"If it does not, remove {path}.",
            )
        if owner and not kernel and owner["pid"] != me["pid"] and _runs(owner["pid"]):
            raise _refused(folder, owner)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (dumps(me) + "\n").encode(), 0)
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`, which is made if need be, while the block runs. Of several ranks only the first takes it.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    if not is_first():
        yield
        return
    folder = folder.absolute()
    fresh = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while (descriptor := _try(folder)) is None:
            pass
    except FileExistsError:
        raise UserError(f"{folder} is a file", fix="Choose a folder.") from None
    except OSError as error:
        reason = error.strerror or str(error)
        fix = "Make room, or choose another folder."
        raise UserError(f"cannot write to {folder}", reason, fix) from None
    _held[folder] = descriptor
    try:
        yield
    finally:
        lost = _is_lost(folder)
        if _held.get(folder) == descriptor:  # not in a forked worker
            del _held[folder]
            # Removed before it is let go: who opens it in between finds that it is not the folder's any more.
            with suppress(OSError):
                if not lost:
                    (folder / NAME).unlink()
            os.close(descriptor)
            if fresh and not lost:
                with suppress(OSError):
                    folder.rmdir()


def _is_lost(folder: Path) -> bool:
    try:
        return not os.path.samestat(os.fstat(_held[folder]), (folder / NAME).stat())
    except (OSError, KeyError):
        return True


def check_held(folder: Path) -> None:
    """See that `folder`, if this process holds it, is still the one that it took.

    A mount that went away leaves an empty folder behind, and what is written there is lost when it comes back.

    Raises:
        RunFailed: it was removed or replaced, or another process was let in.
    """
    folder = folder.absolute()
    if folder in _held and _is_lost(folder):
        raise RunFailed(
            f"{folder} is no longer the folder that this process took", f"its {NAME} is gone or another's",
            "Mount or restore the folder, and run the same command to go on.",
        )  # fmt: skip
