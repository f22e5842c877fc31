import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from smdiff.config import PretrainConfig, resolve
from smdiff.errors import Interrupted, RunFailed, UserError
from smdiff.models.load import load
from smdiff.training.ema import Ema
from smdiff.training.pretrain import prepare, pretrain
from smdiff.training.run import plan, stream_seed
from smdiff.training.trainer import SoftMaskTrainer

TINY = {
    "data": "DATA", "tokenizer": "bytes", "length": 16, "hidden_size": 16, "layers": 1, "heads": 2, "cond_dim": 8,
    "batch_size": 8, "steps": 8, "warmup": 2, "eval_every": 4, "eval_sequences": 16, "save_every": 4, "log_every": 1,
    "dropout": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("".join(f"def f{i}(x):\n    return x * {i}\n\n" for i in range(200)))
    return str(path)


@pytest.fixture
def train(text, tmp_path):
    def run(out: str = "run", **options):
        flags = {**TINY, "data": text, "out": str(tmp_path / out), **options}
        return pretrain(resolve(PretrainConfig, flags))

    return run


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


class Killed(BaseException):
    """Ends training between two steps, as a kill would."""


def kill_at(monkeypatch, step: int) -> None:
    original = SoftMaskTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SoftMaskTrainer, "compute_loss", compute_loss)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(train, tmp_path, monkeypatch, accumulation):
    options = {"soft_mask": True, "accumulation": accumulation}
    whole = train("whole", **options)
    with monkeypatch.context() as patch:
        kill_at(patch, 6)
        with pytest.raises(Killed):
            train("cut", **options)
    torch.manual_seed(123)  # nothing may depend on where the generator happens to stand
    resumed = train("cut", **options)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert whole["soft_mask"] == resumed["soft_mask"]
    assert whole["valid"] == resumed["valid"]
    assert whole["train"]["forward_passes"] == resumed["train"]["forward_passes"]
    lines = [[json.loads(line) for line in (tmp_path / d / "metrics.jsonl").open()] for d in ("whole", "cut")]
    drop = {"seconds", "tokens_per_second", "mfu", "peak_memory"}
    for a, b in zip(*lines, strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}


def test_accumulation_does_not_change_the_result(train, tmp_path):
    logs = []
    for n in (1, 4):
        train(f"acc{n}", accumulation=n, dropout=0.0, soft_mask=True)
        records = [json.loads(line) for line in (tmp_path / f"acc{n}" / "metrics.jsonl").open()]
        logs.append([(r["loss"], r["grad_norm"]) for r in records if "loss" in r])
    torch.testing.assert_close(torch.tensor(logs[0]), torch.tensor(logs[1]), atol=1e-4, rtol=1e-4)
    a, b = weights(tmp_path / "acc1"), weights(tmp_path / "acc4")
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)


def test_a_run_leaves_its_files_and_says_what_it_did(train, tmp_path):
    result = train(soft_mask=True, steps=12)
    folder = tmp_path / "run"
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))
    assert {"w_s", "w_a", "w_b", "soft_mask_lr", "learning_rate", "grad_norm"} <= records[0].keys()
    assert [r["step"] for r in records if "valid_nll" in r] == [4, 8, 12]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["checkpoint-12", "checkpoint-8"]
    assert result["train"]["tokens"] == 12 * 8 * 16
    assert 12 < result["train"]["forward_passes"] <= 24
    assert result["train"]["steps"] == 12
    assert records[0].keys().isdisjoint({"mfu", "tokens_per_second"})  # the first step warms up
    for figures in (records[-2], result["train"]):
        assert figures["mfu"] > 0
        assert figures["tokens_per_second"] > 0
        assert 1e7 < figures["peak_memory"] < 1e11
    assert "measured" in result["train"]["peak_flops_source"]
    denoiser, tokenizer, note = load(str(folder))
    assert note == ""
    assert denoiser.mask_id == tokenizer.mask_token_id == 257
    assert denoiser.soft_mask.values() == {k: result["soft_mask"][k] for k in ("w_s", "w_a", "w_b")}
    again = train(soft_mask=True, steps=12)
    assert again["train"] == json.loads(json.dumps(result["train"]))


def test_training_learns_and_moves_the_scalars(train):
    result = train(steps=60, lr=1e-2, soft_mask=True, eval_every=0, save_every=1000, dropout=0.0)
    assert result["valid"]["nll"] < 3.2  # log 257 = 5.55 at the start
    assert abs(result["soft_mask"]["w_s"] - 0.3) > 0.02


def test_soft_mask_that_stays_off_is_told(train):
    assert "stayed off" in train("off", soft_mask=True, w_s=0.0)["notes"][0]
    assert train("on", soft_mask=True)["notes"] == []


def test_iso_compute_takes_fewer_steps():
    def steps(**flags) -> int:
        return resolve(PretrainConfig, {"steps": 1000, **flags}).config.total_steps

    assert steps() == steps(budget="iso-compute") == steps(soft_mask=True) == 1000
    assert steps(soft_mask=True, budget="iso-compute", p_sm=1.0) == 500
    assert steps(soft_mask=True, budget="iso-compute", p_sm=0.8) == 556


def test_continuing_keeps_weights_tokenizer_and_scalars(train, tmp_path):
    train("base", soft_mask=True, w_s=0.6)
    flags = {**TINY, "init": str(tmp_path / "base"), "soft_mask": True, "out": str(tmp_path / "next")}
    flags["data"] = "python-docs"
    del flags["hidden_size"]
    prepared = prepare(resolve(PretrainConfig, flags))
    base, _, _ = load(str(tmp_path / "base"))
    assert same(prepared.denoiser.backbone.state_dict(), base.backbone.state_dict())
    assert prepared.denoiser.soft_mask.values() == base.soft_mask.values()
    flags |= {"w_s": 0.2, "out": str(tmp_path / "third")}
    prepared = prepare(resolve(PretrainConfig, flags))
    assert prepared.denoiser.soft_mask.values()["w_s"] == pytest.approx(0.2)
    assert plan(resolve(PretrainConfig, flags).config, prepared)["vocabulary"] == 258


def test_a_continued_run_sees_other_rows_and_other_noise(train, tmp_path, text):
    train("base")
    more = {"init": str(tmp_path / "base")}
    orders = []
    for options in ({}, more, {**more, "soft_mask": True}):
        flags = {**TINY, "data": text, "out": str(tmp_path / "x"), **options}
        prepared = prepare(resolve(PretrainConfig, flags))
        orders.append((prepared.facts["generation"], [prepared.train[i].tolist() for i in range(8)]))
    assert [g for g, _ in orders] == [0, 1, 1]
    assert orders[0][1] != orders[1][1] == orders[2][1]
    assert stream_seed(3, 0) == 3 != stream_seed(3, 1) != stream_seed(3, 2)


def test_init_of_another_shape_names_the_tensors(train, tmp_path):
    train("base")
    for options, tensor in (
        ({"hidden_size": 32}, r"vocab_embed\.embedding is \(258, 16\), expected \(258, 32\)"),
        ({"layers": 2}, r"blocks\.1\..* is missing"),
        ({"tokenizer": "bpe:300"}, r"vocab_embed\.embedding is \(258, 16\)"),
        ({"heads": 4}, "2 attention heads"),
    ):
        with pytest.raises(UserError, match=tensor):
            train("next", init=str(tmp_path / "base"), **options)


def test_another_configuration_or_other_data_in_the_folder_is_refused(train, tmp_path, text):
    train()
    before = weights(tmp_path / "run")
    with pytest.raises(UserError, match="lr 0.002 -> 0.01"):
        train(lr=0.01)
    with pytest.raises(UserError, match="holds a run already"):
        train(resume="never")
    (tmp_path / "run" / "result.json").unlink()
    with open(text, "a") as file:
        file.write("more")
    with pytest.raises(UserError, match="other data"):
        train()
    assert same(before, weights(tmp_path / "run"))


def test_a_broken_run_json_is_refused_and_not_taken_for_a_new_folder(train, tmp_path):
    train()
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*run\.json"):
        train(lr=0.01)
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(UserError, match="no run of smdiff"):
        train(lr=0.01)


def test_trackers_and_k_are_checked(train):
    with pytest.raises(UserError, match="--report-to nosuch"):
        train(report_to="nosuch")
    with pytest.raises(UserError, match="--report-to wandb.*installed"):
        train(report_to="wandb")
    with pytest.raises(UserError, match="258 tokens"):
        train(soft_mask=True, k=258)


def test_nan_stops_and_keeps_the_last_good_checkpoint(train, tmp_path, monkeypatch):
    original = SoftMaskTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        return loss * torch.nan if self.state.global_step == 5 else loss

    with monkeypatch.context() as patch:
        patch.setattr(SoftMaskTrainer, "compute_loss", compute_loss)
        with pytest.raises(RunFailed, match=r"loss is nan at step 6.*checkpoint-4"):
            train()
    assert not (tmp_path / "run" / "result.json").exists()
    _, _, note = load(str(tmp_path / "run"))
    assert "checkpoint-4" in note
    assert train()["train"]["steps"] == 8


def test_infinite_gradient_never_reaches_the_weights(train, monkeypatch):
    from transformers import Trainer

    monkeypatch.setattr(Trainer, "_get_grad_norm", lambda self, model, grad_norm=None: torch.tensor(torch.inf))
    for clip in (1.0, 0.0):
        with pytest.raises(RunFailed, match="gradient norm is inf at step 1.*none yet"):
            train(f"clip{clip}", clip=clip)


def test_a_checkpoint_folder_is_a_model_and_a_start(train, tmp_path):
    train("base", soft_mask=True, k=1)
    checkpoint = str(tmp_path / "base" / "checkpoints" / "checkpoint-4")
    denoiser, tokenizer, _ = load(checkpoint)
    assert len(tokenizer) == denoiser.vocab_size == 258
    flags = {**TINY, "data": "python-docs", "init": checkpoint, "soft_mask": True, "out": str(tmp_path / "x")}
    prepared = prepare(resolve(PretrainConfig, flags))
    assert prepared.facts["generation"] == 1
    assert prepared.denoiser.soft_mask.k == 1  # the checkpoint's, as no other was asked for


def test_new_intervals_count_for_a_resumed_run(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            train()
    train(log_every=4, keep=5, save_every=1)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 8]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 5


def test_a_failing_picture_does_not_cost_the_run(train, tmp_path, monkeypatch):
    from smdiff.training import run as module

    def fail(*arguments):
        raise ValueError("no picture today")

    monkeypatch.setattr(module, "training_curves", fail)
    assert train()["train"]["steps"] == 8
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_failed_save_leaves_the_earlier_checkpoint_and_can_go_on(train, tmp_path, monkeypatch):
    original = SoftMaskTrainer._save

    def save(self, output_dir=None, state_dict=None):
        original(self, output_dir, state_dict)
        if self.state.global_step == 8:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SoftMaskTrainer, "_save", save)
        with pytest.raises(RunFailed, match="checkpoint-8.*No space left"):
            train()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-4"]
    assert train()["train"]["steps"] == 8


def test_a_full_disk_is_seen_before_the_start(train, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(UserError, match="MB free"):
        train()


def test_signal_saves_and_the_same_command_goes_on(train, tmp_path, monkeypatch):
    whole = train("whole")
    original = SoftMaskTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SoftMaskTrainer, "training_step", training_step)
        with pytest.raises(Interrupted, match="step 3 of 8"):
            train("cut")
    assert (tmp_path / "cut" / "checkpoints" / "checkpoint-3").is_dir()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train("cut")["valid"] == whole["valid"]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_killed_process_resumes(train, text, tmp_path):
    """A real process, a real SIGKILL between checkpoints, the real command line."""
    more = {"steps": 120, "save_every": 20, "soft_mask": True}
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**TINY, "data": text, **more}.items() if k != "soft_mask"]
    command = [sys.executable, "-m", "smdiff", "pretrain", *flags, "--soft-mask", "--json", "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "cut")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    checkpoints = tmp_path / "cut" / "checkpoints"
    while process.poll() is None and not any(checkpoints.glob("checkpoint-*")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "cut" / "result.json").exists()
    finished = subprocess.run([*command, str(tmp_path / "cut")], capture_output=True, text=True, check=True)
    assert "continuing from" in finished.stderr
    assert json.loads(finished.stdout)["valid"] == train("whole", **more)["valid"]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_average_follows_its_formula():
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    ema = Ema(module, decay=0.5)
    module.weight.data.fill_(1.0)
    ema.update()  # decay is (1 + 1) / (10 + 1) at first
    assert ema.average["weight"].item() == pytest.approx(9 / 11)
    for _ in range(3):
        ema.update()
    expected = 1 - 2 / 11 * (3 / 12) * (4 / 13) * (5 / 14)  # still below the cap of 0.5
    assert ema.average["weight"].item() == pytest.approx(expected)
    with ema.applied():
        assert module.weight.item() != 1
    assert module.weight.item() == 1
