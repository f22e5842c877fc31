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
        super().__init__(what + (f": {why}" if why else "") + (f". {fix}" if fix else ""))


class RunFailed(UserError):
    """Work that started and could not be finished, through no fault of the input. Exit code 1."""

    exit_code = 1


class Interrupted(UserError):
    """Stopped by Ctrl-C or SIGTERM with the work saved. Exit code 130."""

    exit_code = 130
