"""Steps whose loss is not finite: left out without a trace in the weights, counted, told, and ended when too many."""

import hashlib
import json

import pytest
import torch
from accelerate import Accelerator

from smdiff.errors import RunFailed
from smdiff.training.bad_batches import BadBatches
from smdiff.training.trainer import SoftMaskTrainer
from tests.training.test_training import same, weights


def spoil(monkeypatch, steps):
    """Make the loss of these steps' first micro-batch a NaN."""
    original = SoftMaskTrainer.compute_loss

    def compute_loss(self, model, inputs, *arguments, **options):
        loss = original(self, model, inputs, *arguments, **options)
        first = self._micro_batch == (self.state.global_step, 0)
        return loss * torch.nan if first and self.state.global_step + 1 in steps else loss

    monkeypatch.setattr(SoftMaskTrainer, "compute_loss", compute_loss)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_that_is_left_out_changes_nothing_but_the_schedule(train, tmp_path, monkeypatch, accumulation):
    seen, original = {}, SoftMaskTrainer.log

    def log(self, logs, start_time=None):
        if "loss" in logs:
            moments = [x.clone() for s in self.optimizer.state.values() for x in s.values()]
            parameters = [p.detach().clone() for p in self.model.parameters()]
            averages = [x.clone() for x in self.ema.average.values()]
            seen[self.state.global_step] = parameters, moments, averages, self.ema.updates, logs["learning_rate"]
        original(self, logs, start_time)

    monkeypatch.setattr(SoftMaskTrainer, "log", log)
    spoil(monkeypatch, {4})
    options = {"skip_bad_batches": 1, "accumulation": accumulation, "soft_mask": True, "schedule": "linear"}
    result = train(**options, weight_decay=0.1)
    for before, after in zip(seen[3][:3], seen[4][:3], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert seen[4][3] == seen[3][3] == 3
    assert seen[4][4] < seen[3][4]
    assert not torch.equal(seen[5][0][0], seen[4][0][0])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    (skipped,) = [line for line in lines if "skipped" in line]
    assert {k: skipped[k] for k in ("step", "skipped", "value")} == {"step": 4, "skipped": "loss", "value": "nan"}
    assert len(skipped["batch"]) == 16
    assert [line["loss"] is None for line in lines if "loss" in line] == [n == 4 for n in range(1, 9)]
    assert result["train"]["skipped"] == [{k: skipped[k] for k in ("step", "skipped", "value", "batch")}]
    assert "1 steps were left out" in result["notes"][0]


def test_steps_left_out_are_counted_over_a_resume_and_end_a_run_that_has_too_many(train, tmp_path, monkeypatch):
    spoil(monkeypatch, {2, 5, 7})
    whole = train("whole", skip_bad_batches=3)
    with pytest.raises(RunFailed, match=r"loss is nan at step 7, batch [0-9a-f]{16}, 2 steps left out.*checkpoint-6"):
        train(skip_bad_batches=2)
    result = train(skip_bad_batches=3)
    assert result["train"]["skipped"] == whole["train"]["skipped"]
    assert [s["step"] for s in result["train"]["skipped"]] == [2, 5, 7]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_the_fingerprint_is_that_of_the_ids(train, monkeypatch):
    ids, original = [], SoftMaskTrainer.compute_loss

    def compute_loss(self, model, inputs, *arguments, **options):
        if self.state.global_step == 2:
            ids.append(inputs["input_ids"].numpy().tobytes())
        return original(self, model, inputs, *arguments, **options)

    monkeypatch.setattr(SoftMaskTrainer, "compute_loss", compute_loss)
    spoil(monkeypatch, {3})
    result = train(skip_bad_batches=1, accumulation=2)
    assert result["train"]["skipped"][0]["batch"] == hashlib.sha256(b"".join(ids)).hexdigest()[:16]


def test_the_logged_loss_is_the_mean_of_the_steps_that_count(monkeypatch):
    monkeypatch.setattr("smdiff.training.bad_batches.note", lambda text: None)
    bad_batches, accelerator, logged = BadBatches(5), Accelerator(cpu=True), 0.0
    for step, losses in enumerate([(1.0, 2.0), (4.0, torch.nan), (5.0, 6.0)], 1):
        for loss in losses:
            logged += float(bad_batches.see(torch.zeros(1, 2), torch.tensor(loss)))
        bad = bad_batches.judge(torch.tensor(1.0), step, accelerator)
        assert (bad is not None) == (step == 2)
        if bad:
            bad_batches.skip(bad, "")
    assert bad_batches.mean(logged / 3, 3) == pytest.approx((3 + 11) / 2)
    bad_batches.see(torch.zeros(1, 2), torch.tensor(3.0))
    assert bad_batches.judge(torch.tensor(1.0), 4, accelerator) is None
    assert bad_batches.mean(3.0, 4) == 3.0
