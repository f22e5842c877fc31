"""Steps whose loss or gradient is not finite: found on all processes alike, left out or the end of the run."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from smdiff.errors import RunFailed
from smdiff.ui.console import note


@dataclass(frozen=True)
class Bad:
    """What was not finite.

    Attributes:
        step: counted from 1.
        skipped: "loss" or "gradient norm".
        value: "nan", "inf" or "-inf".
        batch: fingerprint of the step's token ids, all micro-batches of all processes.
    """

    step: int
    skipped: str
    value: str
    batch: str

    def record(self) -> dict[str, Any]:
        """The line of metrics.jsonl and of the result."""
        return asdict(self)


class BadBatches:
    """Watches each step's losses and its gradient norm.

    Args:
        limit: steps that may be left out before one ends the run.

    Attributes:
        skipped: records of the steps left out since the run began.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.skipped: list[dict[str, Any]] = []
        self._ids: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._logged: int | None = None  # the step of the last log
        self._left_out = 0.0  # loss that the log's sum holds of steps left out since then

    def see(self, ids: Tensor, loss: Tensor) -> Tensor:
        """Note a micro-batch's ids (B, L) and loss; returns the loss, or 0 for one that is not finite."""
        self._ids.append(ids)
        self._losses.append(loss)
        return torch.where(torch.isfinite(loss), loss, torch.zeros_like(loss))

    def judge(self, norm: Any, step: int, accelerator: Accelerator) -> Bad | None:
        """What is not finite in the step that ends now, the same on every process; None if nothing."""
        ids, losses = self._ids, torch.stack(self._losses)
        self._ids, self._losses = [], []
        if self._logged is None:
            self._logged = step - 1
        mine = torch.stack([losses.sum(), torch.as_tensor(norm).to(losses)])
        found = mine[None] if accelerator.num_processes == 1 else accelerator.gather(mine[None])
        if torch.isfinite(found).all():
            return None
        finite = losses[torch.isfinite(losses)].sum()
        self._left_out += float(accelerator.gather(finite[None]).mean())  # as the Trainer averages what it logs
        is_loss = not torch.isfinite(found[:, 0]).all()
        what, column = ("loss", found[:, 0]) if is_loss else ("gradient norm", found[:, 1])
        value = next(float(x) for x in column if not math.isfinite(x))
        digest = hashlib.sha256()
        for micro_batch in ids:
            digest.update(micro_batch.cpu().numpy().tobytes())
        of_all = gather_object([digest.hexdigest()])
        batch = of_all[0] if len(of_all) == 1 else hashlib.sha256("".join(of_all).encode()).hexdigest()
        return Bad(step, what, str(value), batch[:16])

    def skip(self, bad: Bad, last_good: str) -> None:
        """Leave the step out.

        Raises:
            RunFailed: as many as may be have been left out.
        """
        what = f"the {bad.skipped} is {bad.value} at step {bad.step}, batch {bad.batch}"
        if len(self.skipped) >= self.limit:
            before = f", {len(self.skipped)} steps left out before" if self.skipped else ""
            raise RunFailed(
                what + before, last_good,
                "Lower --lr or --clip, or use --precision fp32, in a new --out with --init; or leave out such steps: "
                f"--skip-bad-batches {max(2 * self.limit, 10)}.",
            )  # fmt: skip
        self.skipped.append(bad.record())
        note(f"{what}: left out, {len(self.skipped)} of at most {self.limit}")

    def mean(self, loss: float, step: int) -> float:
        """The mean loss of the steps since the last log as it is without those left out; NaN if none is left."""
        first = step if self._logged is None else self._logged
        out = sum(first < r["step"] <= step for r in self.skipped)
        kept = (step - first) - out
        if out:
            loss = (loss * (step - first) - self._left_out) / kept if kept else math.nan
        self._logged, self._left_out = step, 0.0
        return loss
