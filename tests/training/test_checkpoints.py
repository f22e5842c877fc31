"""Checkpoints that are whole or not there, damaged ones that are passed over, hostile files."""

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint

from smdiff import lock
from smdiff.cli import main
from smdiff.config import PretrainConfig, resolve
from smdiff.errors import Interrupted, RunFailed, UserError
from smdiff.models.load import load
from smdiff.training import checkpoints as module
from smdiff.training.checkpoints import MANIFEST, PARTIAL, Best, Checkpoints, deliver, flaw, seal
from smdiff.training.pretrain import pretrain
from smdiff.training.trainer import SoftMaskTrainer
from tests.training.test_training import TINY, Killed, kill_at, same, weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """What an undisturbed run ends with."""
    out = tmp_path_factory.mktemp("whole") / "run"
    flags = {**TINY, "data": text, "out": str(out), "save_every": 2, "keep": 3}
    result = pretrain(resolve(PretrainConfig, flags))
    return SimpleNamespace(weights=weights(out), valid=result["valid"])


@pytest.fixture(scope="module")
def killed(text, tmp_path_factory):
    """A run that was killed after six of eight steps, with checkpoints at 2, 4 and 6."""
    out = tmp_path_factory.mktemp("killed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 7)
        with pytest.raises(Killed):
            pretrain(resolve(PretrainConfig, {**TINY, "data": text, "out": str(out), "save_every": 2, "keep": 3}))
    return out


@pytest.fixture
def half(killed, tmp_path):
    """The checkpoints of a copy of it."""
    shutil.copytree(killed, tmp_path / "run")
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "sealed"
    (folder / "optimizer_0").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a" * 1000)
    (folder / "optimizer_0" / "b.distcp").write_bytes(b"b" * 1000)
    seal(folder)
    return folder


# The manifest


def test_a_seal_names_every_file_below(sealed):
    assert flaw(sealed) == ""
    files = json.loads((sealed / MANIFEST).read_text())["files"]
    assert sorted(files) == ["a.bin", "optimizer_0/b.distcp"]
    assert files["a.bin"]["size"] == 1000


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: os.truncate(f / "optimizer_0" / "b.distcp", 10), "optimizer_0/b.distcp has 10 of 1,000 bytes"),
        (lambda f: (f / "a.bin").write_bytes(b"a" * 999 + b"b"), "a.bin has another hash"),
        (lambda f: (f / "a.bin").unlink(), "a.bin is missing"),
        (lambda f: (f / "c.bin").write_text(""), f"c.bin is not in its {MANIFEST}"),
        (lambda f: (f / MANIFEST).unlink(), f"no {MANIFEST}"),
        (lambda f: os.truncate(f / MANIFEST, 40), f"its {MANIFEST} is none"),
        (lambda f: (f / MANIFEST).write_text('{"files": {"a.bin": {"size": 1e999, "sha256": 1}}}'), "is none"),
        (lambda f: (f / MANIFEST).write_text("[" * 100_000), "is none"),
        (lambda f: (f / MANIFEST).write_text('{"files": {"../a": {"size": 1, "sha256": "0"}}}'), "../a is missing"),
        (lambda f: os.truncate(f / MANIFEST, 65_000_000), "too large"),
        (lambda f: shutil.rmtree(f), f"no {MANIFEST}"),
    ],
)
def test_every_damage_is_seen_and_named(sealed, damage, said):
    damage(sealed)
    assert said in flaw(sealed)


def test_a_disk_that_gives_back_other_bytes_is_seen(sealed, monkeypatch):
    original = module.flush

    def flush(path, forget=False):
        original(path, forget)
        if path.name == "a.bin":
            path.write_bytes(b"x" * 1000)

    monkeypatch.setattr(module, "flush", flush)
    with pytest.raises(OSError, match=r"does not give back what was written: a\.bin has another hash"):
        seal(sealed)


# Which checkpoint a run goes on from


def test_a_run_goes_on_from_the_newest_that_verifies(half, train, whole, capsys):
    os.truncate(half / "checkpoint-6" / "optimizer.pt", 100)
    file = half / "checkpoint-4" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    capsys.readouterr()
    assert train()["valid"] == whole.valid
    said = capsys.readouterr().err
    assert "checkpoint-6: optimizer.pt has 100 of" in said
    assert "checkpoint-4: model.safetensors has another hash" in said
    assert f"continuing from {half / 'checkpoint-2'}" in said
    assert same(whole.weights, weights(half.parent))
    # Those in the way have made way for whole ones.
    assert [(p.name, flaw(p)) for p in Checkpoints(half, 3).all()] == [(f"checkpoint-{n}", "") for n in (8, 6, 4)]
    assert [p.name for p in half.iterdir() if p.name.startswith(".")] == []


def test_a_folder_whose_checkpoints_are_all_broken_is_not_started_anew(half, train):
    for path in half.iterdir():
        os.truncate(path / "optimizer.pt", 100)
    with pytest.raises(UserError, match=r"no checkpoint .* is whole: checkpoint-6: optimizer\.pt .*; checkpoint-4"):
        train()


def test_checkpoints_of_an_earlier_version_count_where_no_others_are(half, train, capsys):
    for path in half.iterdir():
        (path / MANIFEST).unlink()
    assert Checkpoints(half, 3).newest() == half / "checkpoint-6"
    assert "checkpoint-6 has no manifest.json, as an earlier version left none" in capsys.readouterr().err
    seal(half / "checkpoint-2")
    assert Checkpoints(half, 3).newest() == half / "checkpoint-2"
    (half / "checkpoint-2" / MANIFEST).unlink()
    train()
    # Two unsealed ones may go only when three whole ones are there; the run made but one.
    assert [p.name for p in Checkpoints(half, 3).all()] == [f"checkpoint-{n}" for n in (8, 6, 4, 2)]


def fill(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "a").write_text("a")
        seal(folder / f"checkpoint-{step}")


def test_only_whole_checkpoints_count_as_kept(tmp_path):
    fill(tmp_path, 1, 2, 3, 10)
    (tmp_path / "checkpoint-3" / "a").write_text("b")
    (tmp_path / "checkpoint-notes").mkdir()
    Checkpoints(tmp_path, 3).rotate()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"checkpoint-{n}" for n in (1, 10, 2, "notes")]
    (tmp_path / "checkpoint-2" / "a").write_text("b")
    Checkpoints(tmp_path, 3).rotate()
    assert len(list(tmp_path.iterdir())) == 4


def test_what_a_killed_rotation_left_goes_when_the_run_goes_on(tmp_path):
    fill(tmp_path, 1, 2, 3)
    (tmp_path / PARTIAL).mkdir()
    (tmp_path / "checkpoint-1").rename(tmp_path / PARTIAL / "old-checkpoint-1")
    assert Checkpoints(tmp_path, 2).resume() == tmp_path / "checkpoint-3"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]


def test_no_checkpoint_goes_before_the_next_one_verifies(half, train, monkeypatch):
    def refuse(folder):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(module, "seal", refuse)
        with pytest.raises(RunFailed, match=r"cannot save .*checkpoint-8: Input/output error"):
            train(keep=1)
    assert [(p.name, flaw(p)) for p in Checkpoints(half, 1).all()] == [("checkpoint-6", "")]
    assert train(keep=1)["train"]["steps"] == 8
    assert [p.name for p in half.iterdir()] == ["checkpoint-8"]


OPERATIONS = [(os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (io, "open")]


def break_at(patch, number: int, how: str) -> list[str]:
    """Make the n-th file operation of this process, and for "full" all later ones, fail; or stop there as if killed."""
    calls: list[str] = []

    def breaks(name, original):
        def operation(*arguments, **options):
            writes = name != "open" or "w" in str(arguments[1:2])
            calls.extend([name] * writes)
            if writes and how == "kill" and len(calls) >= number:
                raise Killed
            if writes and (len(calls) == number or (how == "full" and len(calls) > number)):
                raise OSError(28, "No space left on device")
            return original(*arguments, **options)

        return operation

    for place, name in OPERATIONS:
        patch.setattr(place, name, breaks(name, getattr(place, name)))
    return calls


def next_checkpoint(folder: Path, step: int) -> None:
    """As the Trainer writes one."""
    checkpoints = Checkpoints(folder, 2)
    checkpoints.begin()
    beside = folder / ".partial" / f"checkpoint-{step}" / "shards"
    beside.mkdir(parents=True)
    (beside / "a").write_text(str(step))
    (beside.parent / "b").write_text("b")
    checkpoints.place(f"checkpoint-{step}")
    checkpoints.rotate()
    checkpoints.clear()


@pytest.mark.parametrize("how", ["once", "full", "kill"])
def test_every_operation_of_a_save_may_fail(tmp_path, monkeypatch, how):
    number, calls = 0, [""]
    for step in (1, 2):
        next_checkpoint(tmp_path / "start", step)
    while len(calls) > number - 1:
        number += 1
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "start", folder)
        with monkeypatch.context() as patch:
            calls = break_at(patch, number, how)
            with contextlib.suppress(OSError, Killed):
                next_checkpoint(folder, 3)
        whole = {p.name: (p / "shards" / "a").read_text() for p in Checkpoints(folder, 2).all() if not flaw(p)}
        assert len(whole) >= 2
        assert all(name == f"checkpoint-{step}" for name, step in whole.items())
        assert Checkpoints(folder, 2).resume() in (folder / "checkpoint-3", folder / "checkpoint-2")
        next_checkpoint(folder, 4)
        assert Checkpoints(folder, 2).newest() == folder / "checkpoint-4"
        left = sorted(p.name for p in folder.iterdir())
        assert left in (["checkpoint-2", "checkpoint-4"], ["checkpoint-3", "checkpoint-4"])
    assert number > 15  # the last round had nothing that failed


# The best weights, and those that are delivered


def offered(folder: Path, step: int, nll: float) -> None:
    Best(folder).offer(step, nll, lambda f: (f / "w").write_text(str(step)))


@pytest.mark.parametrize("how", ["once", "full", "kill"])
@pytest.mark.parametrize("number", range(1, 22))
def test_the_best_weights_survive_a_stop_at_any_operation(tmp_path, monkeypatch, number, how):
    folder = tmp_path / "best"
    offered(folder, 1, 2.0)

    with monkeypatch.context() as patch:
        break_at(patch, number, how)
        with contextlib.suppress(RunFailed, Killed):
            offered(folder, 2, 1.0)
    best = Best(folder)
    assert (folder / "w").read_text() == str(best.step)
    assert best.nll == {1: 2.0, 2: 1.0}[best.step]
    offered(folder, 2, 1.0)
    assert (folder / "w").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_damaged_best_weights_are_never_delivered(tmp_path):
    offered(tmp_path / "best", 1, 2.0)
    (tmp_path / "best" / "w").write_text("x")
    with pytest.raises(UserError, match=r"best weights so far, .*best, are not whole: w has another hash.*remove that"):
        Best(tmp_path / "best")


def test_a_model_that_is_half_delivered_is_not_taken_for_one(half, train, tmp_path, monkeypatch):
    original = os.replace

    def replace(source, target):
        if Path(source).name == "model.safetensors" and ".final" in str(source):
            raise Killed
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            train()
    assert (tmp_path / "run" / "config.json").exists()
    assert load(str(tmp_path / "run")).note.endswith("not finished: using checkpoint-8")
    train()
    assert load(str(tmp_path / "run")).note == ""
    assert not (tmp_path / "run" / ".final").exists()


def test_the_file_that_speaks_for_the_others_is_delivered_last(tmp_path, monkeypatch):
    order, original = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), original(a, b)))
    deliver(tmp_path, lambda f: [(f / name).write_text("") for name in "cab"], last="a")
    assert order == ["b", "c", "a"]


# The folder goes away, another process is there


def test_a_run_whose_folder_is_in_use_is_refused(half, text, capsys):
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**TINY, "data": text, "save_every": 2}.items()]
    with lock.locked(half.parent):
        assert main(["pretrain", *flags, "--out", str(half.parent), "--quiet"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert f"is in use: process {os.getpid()} on " in said[-1]
    assert not (half.parent / "result.json").exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_whose_folder_goes_away_stops_and_goes_on(train, whole, tmp_path, monkeypatch, replaced):
    out, original = tmp_path / "run", SoftMaskTrainer.compute_loss

    def compute_loss(self, *arguments, **options):
        if self.state.global_step == 4:
            out.rename(tmp_path / "elsewhere")
            if replaced:
                out.mkdir()
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SoftMaskTrainer, "compute_loss", compute_loss)
        with pytest.raises(RunFailed, match=r"no longer the folder that this process took.*run the same command"):
            train()
    if replaced:
        assert list(out.iterdir()) == []
        out.rmdir()
    (tmp_path / "elsewhere").rename(out)
    assert train()["valid"] == whole.valid
    assert same(whole.weights, weights(out))


# Files of a stranger


class Malicious:
    """What a pickle of a stranger does when it is loaded."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize(
    ("name", "bare"),
    [("optimizer.pt", False), ("optimizer.pt", True), ("scheduler.pt", False), ("rng_state.pth", False)],
)
def test_no_pickle_is_executed_when_a_run_goes_on(half, train, tmp_path, name, bare):
    proof = tmp_path / "executed"
    for path in half.iterdir():
        (path / MANIFEST).unlink()
        if bare:
            (path / name).write_bytes(pickle.dumps(Malicious(proof)))
        else:
            torch.save({"state": Malicious(proof)}, path / name)
        seal(path)  # a stranger can write a manifest, too
    with pytest.raises(UserError, match=r"cannot go on from .*checkpoint-6: one of its files holds objects other than"):
        train()
    assert not proof.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(half / "checkpoint-6" / name, weights_only=False)
    assert proof.exists()  # it would have been


def test_a_sharded_checkpoint_of_a_stranger_is_passed_over(tmp_path):
    fill(tmp_path, 1)
    proof, folder = tmp_path / "executed", tmp_path / "checkpoint-2"
    model = torch.nn.Linear(2, 2)
    shards = {"model": model.state_dict(), "half": torch.ones(2, dtype=torch.bfloat16), "step": 3}
    torch.distributed.checkpoint.save(shards, checkpoint_id=str(folder / "optimizer_0"), no_dist=True)
    seal(folder)
    assert Checkpoints(tmp_path, 2).newest() == folder
    for foreign in (pickle.dumps(Malicious(proof)), b"ctorch.distributed.checkpoint.metadata\nos.system\n.", b"x"):
        (folder / "optimizer_0" / ".metadata").write_bytes(foreign)
        (folder / MANIFEST).unlink()
        with pytest.raises(OSError, match="describes no sharded checkpoint"):
            seal(folder)
        assert Checkpoints(tmp_path, 2).newest() == tmp_path / "checkpoint-1"
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state.json", "{}"),
        ("trainer_state.json", '{"global_step": "x"}'),
        ("trainer_state.json", '{"nonsense": 1}'),
        ("counters.json", '{"tokens": []}'),
        ("counters.json", "[]"),
        ("scheduler.pt", ""),
    ],
)
def test_nonsense_in_a_checkpoint_is_one_line(half, train, name, content):
    (half / "checkpoint-6" / name).write_text(content)
    (half / "checkpoint-6" / MANIFEST).unlink()
    seal(half / "checkpoint-6")
    with pytest.raises(UserError, match=r"checkpoint-6") as error:
        train()
    assert "\n" not in str(error.value)


# Signals


@pytest.mark.parametrize(
    ("where", "signals"),
    [("step", [signal.SIGTERM]), ("save", [signal.SIGTERM]), ("save", [signal.SIGINT, signal.SIGINT])],
)
def test_signals_stop_a_run_that_goes_on(train, whole, tmp_path, monkeypatch, signals, where):

    def strike():
        for number in signals:
            os.kill(os.getpid(), number)

    def training_step(self, *arguments, **options):
        if self.state.global_step == 3 and where == "step":
            strike()
        return original(self, *arguments, **options)

    def sealing(folder):
        original_seal(folder)
        if folder.name == "checkpoint-4" and where == "save":
            strike()

    original, original_seal = SoftMaskTrainer.training_step, module.seal
    with monkeypatch.context() as patch:
        patch.setattr(SoftMaskTrainer, "training_step", training_step)
        patch.setattr(module, "seal", sealing)
        with pytest.raises(Interrupted if len(signals) == 1 else KeyboardInterrupt):
            train()
    found = [p.name for p in Checkpoints(tmp_path / "run" / "checkpoints", 3).all() if not flaw(p)]
    stopped_at = {("step", 1): 4, ("save", 1): 5, ("save", 2): 2}[where, len(signals)]
    assert found[0] == f"checkpoint-{stopped_at}"
    assert not (tmp_path / "run" / "checkpoints" / ".partial").exists()
    assert train()["valid"] == whole.valid
    assert same(whole.weights, weights(tmp_path / "run"))


# Memory, disks


def test_out_of_memory_is_told_and_the_run_goes_on(train, whole, tmp_path, monkeypatch):
    original = SoftMaskTrainer.compute_loss

    def compute_loss(self, *arguments, **options):
        if self.state.global_step >= 3:
            raise MemoryError
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SoftMaskTrainer, "compute_loss", compute_loss)
        with pytest.raises(RunFailed, match=r"out of memory at step 4: a micro-batch .* Raise --accumulation"):
            train()
    assert train()["valid"] == whole.valid
    assert same(whole.weights, weights(tmp_path / "run"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few megabytes, without which a test is skipped."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a file system takes rights that this user lacks")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_fills_up_and_has_room_again(small_disk, train, whole, monkeypatch):
    plenty = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=10**12))
    monkeypatch.setattr("smdiff.training.run_folder.shutil", plenty)
    stopped = []
    for room in (10_000, 100_000, 250_000, 400_000):
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"")
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
        try:
            train("disk/run")
        except UserError as error:
            assert re.search(r"No space left|could not be written in full, with 0\.\d MB free", str(error))  # noqa: PT017
            stopped.append(room)
        ballast.unlink()
    assert len(stopped) >= 2
    assert train("disk/run")["valid"] == whole.valid
    assert same(whole.weights, weights(small_disk / "run"))


def test_a_read_only_disk_is_told(small_disk, train):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"cannot write to .*: Read-only file system\. Make room, or choose another"):
        train("disk/run")


# All of it at random


def test_killed_at_random(tmp_path):
    """A few rounds of `kill_training.py`."""
    script = ROOT / "tests" / "torture" / "kill_training.py"
    options = ["--rounds", "2", "--failures", "1", "--commands", "pretrain", "--steps", "6", "--seed", "2"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rounds"] == 2
    assert found["kills"] >= 2
    assert found["failures"] == 0
