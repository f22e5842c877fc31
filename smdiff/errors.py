"""The only way to tell a user no: one line saying what is wrong, why, and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Bad input, found before or while working. The command line prints it as one line and exits with 2.

    Args:
        what: what is wrong, naming the file, option or value.
        why: the reason, where it is not plain from `what`.
        fix: what the user can do next.
    """

    exit_code = 2

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        said = what + (f": {why}" if why else "")
        super().__init__(said + (f"{'' if said.endswith('.') else '.'} {fix}" if fix else ""))


class RunFailed(UserError):
    """Work that started and could not be finished, through no fault of the input. Exit code 1."""

    exit_code = 1


class Interrupted(UserError):
    """Stopped by Ctrl-C or SIGTERM with the work saved. Exit code 130."""

    exit_code = 130


_SHOWN = 4


def some(items: list[str]) -> str:
    """The first few of many things that are wrong, and how many more there are."""
    return "; ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")


def first_line(error: BaseException) -> str:
    """What a library's error says in its first line, or its kind if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def said(error: Exception) -> str:
    """Why a file cannot be read or written, without its name and the number of the error."""
    return getattr(error, "strerror", None) or first_line(error)
