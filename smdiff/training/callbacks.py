"""What happens around the steps: averaging, the log file, the progress line, stopping on a signal."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from smdiff.files import dumps, write_whole
from smdiff.lock import check_held
from smdiff.training.speed import peak, peak_memory
from smdiff.ui.console import Tracker


class Average(TrainerCallback):
    """Updates the averaged weights after every optimiser step."""

    def __init__(self) -> None:
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.trainer.start_averages()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.ema is not None:
            self.trainer.ema.update()


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


@dataclass
class _Pace:
    """What some steps took and made."""

    seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0

    def plus(self, other: _Pace) -> _Pace:
        return _Pace(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Meter(TrainerCallback):
    """Tokens a second, and MFU: FLOPs a second over the device's peak, of this process.

    Of steps alone: looks at held-out data and checkpoints are left out, and the first step, which warms up, too.

    Args:
        half: whether the run computes in bf16.

    Attributes:
        peak: FLOP/s.
        source: how the peak is known.
    """

    def __init__(self, half: bool) -> None:
        self.half, self.peak, self.source = half, 0.0, ""
        self.trainer: Any = None
        self._total, self._recent = _Pace(), _Pace()
        self._last: _Pace | None = None
        self._warm = False

    def _now(self) -> _Pace:
        return _Pace(time.monotonic(), self.trainer.tokens_seen, self.trainer.flops)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.peak, self.source = peak(args.device.type, self.half)
        self._last = self._now()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        before, self._last = self._last, self._now()
        if self._warm and before is not None:
            step = _Pace(*(a - b for a, b in zip(astuple(self._last), astuple(before), strict=True)))
            self._total, self._recent = self._total.plus(step), self._recent.plus(step)
        self._warm = True

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._last = self._now()

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._last = self._now()

    def _figures(self, pace: _Pace) -> dict[str, float]:
        if not pace.seconds:
            return {}
        mfu = pace.flops / pace.seconds / self.peak
        return {"tokens_per_second": pace.tokens / pace.seconds, "mfu": mfu}

    def interval(self) -> dict[str, float]:
        """Since the last call; with the peak memory, in bytes."""
        recent, self._recent = self._recent, _Pace()
        return self._figures(recent) | {"peak_memory": peak_memory()}

    def total(self) -> dict[str, float]:
        """Since the run's start, or since it went on."""
        return self._figures(self._total) | {"peak_memory": peak_memory()}


class ProgressLine(TrainerCallback):
    """Loss, held-out bound, tokens per second, MFU and peak memory, as they come."""

    def __init__(self, tracker: Tracker, meter: Meter) -> None:
        self.tracker, self.meter = tracker, meter
        self._loss = self._valid = ""

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._loss = f"loss {logs['loss']:.3f}"
        if "valid_nll" in logs:
            self._valid = f"held out {logs['valid_nll']:.3f}"

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        figures = self.meter.total()
        speed = f"{figures['tokens_per_second']:,.0f} tokens/s  MFU {figures['mfu']:.0%}" if "mfu" in figures else ""
        memory = f"{figures['peak_memory'] / 1e9:.1f} GB"
        self.tracker.update(state.global_step, "  ".join(s for s in (self._loss, self._valid, speed, memory) if s))


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
