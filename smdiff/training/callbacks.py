"""What happens around the steps: averaging, the log file, the progress line, stopping on a signal."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from smdiff.files import dumps, write_whole
from smdiff.lock import check_held
from smdiff.training.ema import Ema
from smdiff.ui.console import Tracker


class Average(TrainerCallback):
    """Updates the averaged weights after every optimiser step."""

    def __init__(self) -> None:
        self.ema: Ema | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.ema is not None:
            self.ema.update()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a line cut by a kill is left out."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


class Metrics(TrainerCallback):
    """Appends every log entry to metrics.jsonl, with the seconds trained; a resumed run drops what it repeats."""

    def __init__(self, path: Path) -> None:
        self.path, self.seconds, self._start = path, 0.0, time.monotonic()
        self._before = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        # A resumed state brings the intervals it was saved with; the ones asked for now count.
        state.compute_steps(args, state.max_steps)
        if not state.is_world_process_zero:
            return
        kept = [r for r in read_metrics(self.path) if r["step"] <= state.global_step]
        write_whole(self.path, lambda p: p.write_text("".join(dumps(r, None) + "\n" for r in kept)))
        self._before = max((r.get("seconds", 0.0) for r in kept), default=0.0)
        self._start = time.monotonic()

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self.seconds = self._before + time.monotonic() - self._start
        if not state.is_world_process_zero or not logs or "train_loss" in logs:
            return
        record = {"step": state.global_step, **logs, "seconds": round(self.seconds, 3)}
        record.pop("epoch", None)
        check_held(self.path.parent)
        with self.path.open("a") as file:
            file.write(dumps(record, None) + "\n")


class ProgressLine(TrainerCallback):
    """Loss, held-out bound and tokens per second, as they come."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.trainer: Any = None
        self._loss = self._valid = ""
        self._start: tuple[float, int] = (0.0, 0)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._start = (time.monotonic(), self.trainer.tokens_seen)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._loss = f"loss {logs['loss']:.3f}"
        if "valid_nll" in logs:
            self._valid = f"held out {logs['valid_nll']:.3f}"

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        began, first = self._start
        speed = (self.trainer.tokens_seen - first) / max(1e-9, time.monotonic() - began)
        status = "  ".join(s for s in (self._loss, self._valid, f"{speed:,.0f} tokens/s") if s)
        self.tracker.update(state.global_step, status)


class StopOnSignal(TrainerCallback):
    """Ctrl-C or SIGTERM: finish the step, save, stop. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.stopped = False
        self._previous: dict[int, Any] = {}

    def _stop(self, number: int, frame: Any) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.stopped and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
