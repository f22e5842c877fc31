"""The folder of a run: whose it is, whether it may be used, and what it already holds.

run.json        the configuration and the data it was started with
metrics.jsonl   one line a log step            curves.png    their picture
result.json     the summary of a finished run  checkpoints/  to resume from
config.json, model.safetensors, soft_mask.json, tokenizer files: the model
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from smdiff.errors import RunFailed, UserError, some
from smdiff.files import read_json, write_json


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    return [f"{k} {old.get(k)!r} -> {new.get(k)!r}" for k in keys]


class RunFolder:
    """Access to a run's folder. Looking at it changes nothing; `claim` takes it.

    Args:
        path: the folder.
        identity: what decides the run's result; another one in the folder is refused.
        resume: "auto" continues what is there, "never" refuses it.

    Raises:
        UserError: the folder is in use by another configuration, or holds something else.
    """

    def __init__(self, path: Path, identity: dict[str, Any], resume: str) -> None:
        self.path = path
        stored = read_json(path / "run.json")
        if stored is not None:
            if resume == "never":
                raise UserError(f"--out {path} holds a run already", fix="Choose another folder, or --resume auto.")
            if changed := _differences(stored.get("identity", {}), identity):
                raise UserError(
                    f"--out {path} holds a run with another configuration", some(changed),
                    "Choose another folder, or the old options to go on.",
                )  # fmt: skip
        elif any((path / name).exists() for name in ("config.json", "model.safetensors", "checkpoints")):
            raise UserError(f"--out {path} holds a model that is no run of smdiff", fix="Choose another folder.")
        self._facts = stored or {"identity": identity}

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The log, one JSON object a line."""
        return self.path / "metrics.jsonl"

    def fact(self, name: str) -> Any:
        """What run.json says, from an earlier start; None if it says nothing."""
        return self._facts.get(name)

    def result(self) -> dict[str, Any] | None:
        """The summary of a finished run."""
        return read_json(self.path / "result.json")

    def claim(self, facts: dict[str, Any], size: int) -> None:
        """Make the folder this run's, with `facts` (the data's hash, say) that must stay what they were at its start.

        Args:
            size: bytes that the run is going to write.

        Raises:
            UserError: the folder cannot be written, is too full, or the run was started with other facts.
        """
        known = {k: v for k, v in facts.items() if k in self._facts}
        if changed := _differences({k: self._facts[k] for k in known}, known):
            raise UserError(
                f"--out {self.path} was started on other data", "; ".join(changed), "Choose another folder."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path).free
            if free < size:
                raise UserError(
                    f"--out {self.path} has {free / 1e6:,.0f} MB free",
                    f"the run's checkpoints need about {size / 1e6:,.0f} MB",
                    "Make room, choose another folder, or lower --keep.",
                )
            write_json(self.path / "run.json", self._facts | facts)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"cannot write to --out {self.path}", reason, "Make room, or choose another folder."
            ) from None

    def finish(self, result: dict[str, Any]) -> None:
        """Store the summary: the run is over."""
        try:
            write_json(self.path / "result.json", result)
        except OSError as error:
            raise RunFailed(
                f"cannot write {self.path / 'result.json'}", error.strerror or str(error),
                "Make room and run the same command again: only this is left to do.",
            ) from None  # fmt: skip
