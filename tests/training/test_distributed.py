"""Two processes over loopback do what one does: training, resuming, shards, evaluations, and the death of one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import smdiff
from smdiff.cli import main

TRAIN = [
    "pretrain", "--data", "markov", "--layers", "2", "--hidden-size", "32", "--heads", "2", "--length", "16",
    "--batch-size", "8", "--steps", "20", "--soft-mask", "--p-sm", "0.5", "--save-every", "10", "--eval-every", "10",
    "--eval-sequences", "6", "--log-every", "1", "--quiet",
]  # fmt: skip
ROOT = str(Path(__file__).parents[2])
FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}  # fmt: skip
# Several commands in one process: importing takes longer than they do.
DRIVER = """
import json, sys
from pathlib import Path
from smdiff.cli import main
from smdiff.ranks import gather, is_first
from tests.training.test_distributed import half_done
for command in json.loads(sys.argv[1]):
    if command[0] == "half_done":
        if is_first():
            half_done(*map(Path, command[1:]))
        gather(None)
    elif code := main(command):
        sys.exit(code)
"""


def launch(folder: Path, *commands: list[str], **environment: str) -> subprocess.Popen[str]:
    """The commands, one after the other, in two processes."""
    (folder / "driver.py").write_text(DRIVER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*torchrun, str(folder / "driver.py"), json.dumps(commands)], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=ROOT, env=os.environ | environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT},
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed."""
    said, complaints = process.communicate(timeout=600)
    assert process.returncode == 0, complaints[-3000:]
    return said


def half_done(run: Path, to: Path) -> Path:
    """A copy of a run as it was after ten of twenty steps."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "checkpoints" / "checkpoint-20")
    (to / "result.json").unlink()
    (to / "model.safetensors").unlink()
    return to


def losses(run: Path) -> list[float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


def same_run(run: Path, other: Path, within: float = 1e-5) -> None:
    assert len(losses(run)) == 20
    assert losses(run) == pytest.approx(losses(other), abs=within)
    weights, others = load_file(run / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], atol=within, rtol=0, msg=name)
    scalars, theirs = (json.loads((r / "soft_mask.json").read_text()) for r in (run, other))
    assert scalars["raw"] == pytest.approx(theirs["raw"], abs=within)


def evaluations(run: Path, to: Path) -> list[list[str]]:
    model = [str(run), "--quiet"]
    return [
        ["eval-text", *model, "--data", "markov", "--limit", "20", "--draws", "2", "--batch-size", "8", "--generate",
         "10", "--steps", "4", "--soft-mask", "both", "--judge", str(run.parent / "ar"), "--mauve-seeds", "1",
         "--out", str(to / "text")],
        ["eval-code", *model, "--benchmark", "humaneval", "--limit", "5", "--length", "16", "--steps", "2",
         "--batch-size", "2", "--soft-mask", "both", "--allow-code-execution", "--out", str(to / "code")],
        ["sample", *model, "--num", "5", "--batch-size", "2", "--length", "8", "--steps", "4", "--json"],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs of one process: `one`, and what the evaluations need (an autoregressive judge, a model of code)."""
    folder = tmp_path_factory.mktemp("runs")
    small = ["--layers", "1", "--hidden-size", "16", "--heads", "2", "--steps", "2", "--eval-sequences", "2", "--quiet"]
    assert main([*TRAIN, "--out", str(folder / "one")]) == 0
    assert main(["pretrain", "--data", "markov", "--objective", "ar", *small, "--out", str(folder / "ar")]) == 0
    code = ["pretrain", "--tokenizer", "bytes", "--length", "1600", "--batch-size", "1", "--soft-mask", *small]
    assert main([*code, "--out", str(folder / "code")]) == 0
    return folder


@pytest.fixture(scope="module")
def launched(runs, tmp_path_factory) -> tuple[Path, str]:
    """The same in two processes, and what was printed."""
    folder = tmp_path_factory.mktemp("launched")
    resumed = half_done(runs / "one", folder / "resumed")
    text, code, sample = evaluations(runs / "code", folder)
    text[1] = sample[1] = str(runs / "one")
    return folder, finish(
        launch(
            folder, [*TRAIN, "--out", str(folder / "two")], [*TRAIN, "--out", str(resumed)], text, code,
            [*sample, "--quiet"],
        )
    )  # fmt: skip


def test_two_processes_train_what_one_does(runs, launched):
    folder, _ = launched
    same_run(runs / "one", folder / "two")
    result = json.loads((folder / "two" / "result.json").read_text())
    alone = json.loads((runs / "one" / "result.json").read_text())
    assert result["valid"]["nll"] == pytest.approx(alone["valid"]["nll"], abs=1e-5)
    assert result["train"]["tokens"] == alone["train"]["tokens"] == 20 * 8 * 16
    assert result["train"]["forward_passes"] == alone["train"]["forward_passes"] > 20  # some steps made two


def test_a_run_goes_on_with_more_or_fewer_processes(runs, launched, tmp_path):
    folder, _ = launched
    same_run(runs / "one", folder / "resumed")
    fewer = half_done(folder / "two", tmp_path / "fewer")
    assert main([*TRAIN, "--out", str(fewer)]) == 0
    same_run(runs / "one", fewer)


def without_times(path: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": None} for line in path.read_text().splitlines()]


def test_evaluations_over_two_processes_are_those_of_one(runs, launched, tmp_path, capsys):
    folder, printed = launched
    text, code, sample = evaluations(runs / "code", tmp_path)
    text[1] = sample[1] = str(runs / "one")
    capsys.readouterr()
    for command in (text, code, [*sample, "--quiet"]):
        assert main(command) == 0
    files = [p.relative_to(tmp_path) for p in tmp_path.rglob("*.jsonl")]
    assert len(files) == 1 + 2 * 3 + 2 * 2  # scores; texts and judgements of two arms and real text; answers, verdicts
    for file in files:
        mine, theirs = without_times(tmp_path / file), without_times(folder / file)
        if file.name == "graded.jsonl":
            mine, theirs = (sorted((r["task_id"], r["status"]) for r in records) for records in (mine, theirs))
        assert mine == theirs, file
    results = [json.loads((root / "text" / "result.json").read_text()) for root in (tmp_path, folder)]
    assert results[0]["results"] == results[1]["results"]
    assert [r.get("mauve") for r in results[0]["generated"]] == [r.get("mauve") for r in results[1]["generated"]]
    # The first process alone speaks: each table and text is there once.
    tables, texts = ([x for x in out.splitlines() if x.startswith("{") is json_line] for out, json_line in (
        (printed, False), (printed, True)))  # fmt: skip
    assert [json.loads(x)["ids"] for x in texts] == [
        json.loads(x)["ids"] for x in capsys.readouterr().out.splitlines() if x.startswith("{")
    ]
    assert len(texts) == 5
    assert sum("PPL <= is an upper bound" in x for x in tables) == 1


def test_shards_train_what_whole_weights_do_and_are_saved_whole(runs, tmp_path):
    whole, resumed = tmp_path / "fsdp", tmp_path / "resumed"
    finish(
        launch(
            tmp_path, [*TRAIN, "--out", str(whole)], ["half_done", str(whole), str(resumed)],
            [*TRAIN, "--out", str(resumed)], **FSDP,
        )
    )  # fmt: skip
    same_run(runs / "one", tmp_path / "fsdp")
    model = smdiff.load(str(tmp_path / "fsdp" / "checkpoints" / "checkpoint-20"))
    alone = smdiff.load(str(runs / "one" / "checkpoints" / "checkpoint-20"))
    for (name, p), q in zip(model.denoiser.named_parameters(), alone.denoiser.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=0, msg=name)
    assert (tmp_path / "fsdp" / "checkpoints" / "checkpoint-20" / "optimizer_0" / "__1_0.distcp").exists()
    same_run(runs / "one", resumed)  # shards go on as shards


def test_shards_are_refused_without_a_launcher_that_shards(runs, launched, tmp_path, capsys):
    run = half_done(runs / "one", tmp_path / "run")
    (run / "checkpoints" / "checkpoint-10" / "optimizer_0").mkdir()
    assert main([*TRAIN, "--out", str(run)]) == 2
    assert "was saved with FSDP" in capsys.readouterr().err


def test_a_killed_process_ends_the_job_and_the_last_checkpoint_is_good(runs, tmp_path):
    run = tmp_path / "killed"
    long = [*TRAIN, "--steps", "100000", "--save-every", "5", "--eval-every", "0", "--out", str(run)]
    process = launch(tmp_path, long)
    deadline = time.monotonic() + 300
    while not list((run / "checkpoints").glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    (second,) = [pid for pid in children(process.pid) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(second, signal.SIGKILL)
    _, complaints = process.communicate(timeout=300)
    assert process.returncode == 1
    (line,) = [x for x in complaints.splitlines() if x.startswith("smdiff")]
    assert "another process of this job has ended" in line
    assert f"from the last checkpoint in {run / 'checkpoints'}" in line
    saved = max(int(p.name.split("-")[1]) for p in (run / "checkpoints").glob("checkpoint-*"))
    assert main([*long[:-2], "--out", str(run), "--steps", "100000", "--dry-run"]) == 0
    shorter = tmp_path / "again"
    assert main([*TRAIN, "--steps", "1", "--init", str(run / "checkpoints" / f"checkpoint-{saved}"), "--out",
                 str(shorter)]) == 0  # fmt: skip


def children(pid: int) -> list[int]:
    """The processes that it has started."""
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
