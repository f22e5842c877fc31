"""Training runs that are killed, or whose disk is full, at any moment: each must go on to the same weights.

    python tests/torture/kill_training.py --rounds 100        SIGKILL, at random moments and at random file operations
    python tests/torture/kill_training.py --failures every    the n-th write fails, for every n

The runs are forked from this process, which has imported all they need and has one thread.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before torch, numpy and pyarrow start threads of their own: a fork of several threads is not sound.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ |= {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import datasets
import torch
import transformers
from safetensors.torch import load_file

import smdiff.training.finetune
import smdiff.training.pretrain
import smdiff.training.run
from smdiff.cli import main as smdiff_main
from smdiff.files import write_whole
from smdiff.training.checkpoints import flaw
from tests.torture.faults import Faults, install

TINY = {
    "length": 16, "hidden_size": 16, "layers": 1, "heads": 2, "cond_dim": 8, "tokenizer": "bytes", "dropout": 0.1,
    "batch_size": 4, "steps": 20, "warmup": 2, "eval_every": 4, "eval_sequences": 8, "save_every": 2, "log_every": 1,
}  # fmt: skip
_OF_PRETRAIN = ("length", "hidden_size", "layers", "heads", "cond_dim", "tokenizer", "dropout")
KEEP = 2


def start(command: list[str], folder: Path, faults: Faults | None = None, log: Path | None = None) -> int:
    """Fork a run of smdiff; returns its process id."""
    until = time.monotonic() + 5  # one that was joined takes its time to leave the kernel
    while len(os.listdir("/proc/self/task")) > 1:
        assert time.monotonic() < until, "the parent has several threads"
        time.sleep(0.001)
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        Faults.active = faults
        code = smdiff_main([*command, "--out", str(folder), "--quiet"])
        if faults is not None and not faults.at:
            Faults.active = None
            folder.with_suffix(".operations").write_text("\n".join(faults.seen))
        sys.stderr.flush()
    finally:
        os._exit(code)


def finish(child: int) -> int:
    """The exit code of a forked run; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fingerprints(checkpoint: Path) -> dict[str, str]:
    """Hashes of all that decides how a run goes on from a checkpoint."""
    states = {name: json.loads((checkpoint / name).read_text()) for name in ("soft_mask.json", "counters.json")}
    # Equal states may differ as files: in the order of a header's keys, and in how a pickle refers to equal strings.
    states |= {name: torch.load(checkpoint / name, weights_only=True) for name in ("optimizer.pt", "scheduler.pt")}
    states |= {name: load_file(checkpoint / name) for name in ("model.safetensors", "ema.safetensors")}
    found = {}
    for name, state in states.items():
        digest = hashlib.sha256()
        _feed(state, digest)
        found[name] = digest.hexdigest()
    return found


def _feed(value: Any, digest: Any) -> None:
    """Hash a state of nested containers, tensors and numbers."""
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _feed(value[key], digest)
    elif isinstance(value, list | tuple):
        for part in value:
            _feed(part, digest)
    else:
        digest.update(repr(value).encode())


def outcome(folder: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on its kills."""
    result = json.loads((folder / "result.json").read_text())
    timed = ("seconds", "tokens_per_second", "mfu", "peak_memory", "peak_flops", "peak_flops_source")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "soft_mask": (folder / "soft_mask.json").read_text(),
        "valid": result["valid"],
        "train": {k: v for k, v in result["train"].items() if k not in timed},
        "metrics": [{k: v for k, v in line.items() if k not in timed} for line in lines],
        # A picture that cannot be written is told, and costs nothing else.
        "files": sorted(p.name for p in folder.iterdir() if p.name != "curves.png"),
        "checkpoints": sorted(p.name for p in (folder / "checkpoints").iterdir()),
    }


@dataclass
class Target:
    """A command that is tortured, and how it ends undisturbed."""

    name: str
    command: list[str]
    outcome: dict[str, Any] = field(default_factory=dict)
    checkpoints: dict[str, dict[str, str]] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def measure(self, work: Path) -> None:
        """Run it undisturbed, and keep all checkpoints."""
        folder, log, began = work / self.name, work / f"{self.name}.log", time.monotonic()
        code = finish(start([*self.command, "--keep", "1000"], folder, Faults(folder), log))
        assert code == 0, log.read_text()
        self.seconds = time.monotonic() - began
        self.checkpoints = {p.name: fingerprints(p) for p in (folder / "checkpoints").glob("checkpoint-*")}
        older = sorted(self.checkpoints, key=lambda name: int(name.split("-")[1]))[:-KEEP]
        self.outcome = outcome(folder)
        self.outcome["checkpoints"] = [name for name in self.outcome["checkpoints"] if name not in older]
        self.operations = folder.with_suffix(".operations").read_text().splitlines()


def targets(work: Path, names: list[str], steps: int) -> list[Target]:
    """The commands, on data made here."""
    data = work / "text.txt"
    data.write_text("".join(f"def f{i}(x):\n    return x * {i}\n\n" for i in range(60)))

    def command(name: str, options: dict[str, Any]) -> list[str]:
        flags = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
        return [name, "--data", str(data), "--soft-mask", *flags]

    tiny = TINY | {"steps": steps}
    made = [Target("pretrain", command("pretrain", tiny))]
    if "finetune" in names:
        base = work / "base"
        assert finish(start(command("pretrain", tiny | {"steps": 2}), base)) == 0
        options = {k: v for k, v in tiny.items() if k not in _OF_PRETRAIN}
        options |= {"model": base, "adapter": "none", "max_length": 16, "ema": 0.9, "lr": 0.01}
        made.append(Target("finetune", command("finetune", options)))
    made = [target for target in made if target.name in names]
    for target in made:
        target.measure(work)
    return made


def wrong_checkpoints(target: Target, folder: Path) -> list[str]:
    """Checkpoints that verify and are not what the undisturbed run had at that step."""
    wrong = []
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        if not flaw(path):
            found, wanted = fingerprints(path), target.checkpoints[path.name]
            wrong += [f"{path.name}/{n}" for n in wanted if found.get(n) != wanted[n]]
    return wrong


def inside_a_save(folder: Path) -> bool:
    """Whether the kill left something that was being written."""
    found = [folder, folder / "checkpoints"]
    return any(p.name.startswith(".") for f in found if f.is_dir() for p in f.iterdir())


def complete(target: Target, folder: Path, log: Path) -> str:
    """Run it to its end; what is wrong with that, "" if nothing."""
    if (code := finish(start([*target.command, "--keep", str(KEEP)], folder, log=log))) != 0:
        return f"does not resume, exit code {code}: {log.read_text()[-2000:]}"
    found = outcome(folder)
    return ", ".join(f"{k} differ: {found[k]} {target.outcome[k]}" for k in found if found[k] != target.outcome[k])


def kill_round(target: Target, folder: Path, chance: random.Random) -> tuple[int, int, str]:
    """Kill one run once to three times and let it end: kills, those inside a save, what went wrong."""
    kills = saves = 0
    log = folder.with_suffix(".log")
    for _ in range(chance.choice([1, 1, 2, 3])):
        faults = None
        if chance.random() < 0.6:
            faults = Faults(folder, chance.randint(1, len(target.operations)), chance.choice(["kill", "cut"]))
        child = start([*target.command, "--keep", str(KEEP)], folder, faults, log)
        if faults is None:
            time.sleep(chance.uniform(0.0, target.seconds))
            os.kill(child, signal.SIGKILL)
        code = finish(child)
        if code == 0:
            break
        if code != -signal.SIGKILL:
            return kills, saves, f"exit code {code}: {log.read_text()[-2000:]}"
        kills, saves = kills + 1, saves + inside_a_save(folder)
        if wrong := wrong_checkpoints(target, folder):
            return kills, saves, f"verify and are wrong: {wrong}"
    return kills, saves, complete(target, folder, log)


def failure_round(target: Target, folder: Path, at: int, how: str) -> str:
    """Let one run's n-th operation fail, and then let it end: what went wrong."""
    log = folder.with_suffix(".log")
    code = finish(start([*target.command, "--keep", str(KEEP)], folder, Faults(folder, at, how), log))
    said = log.read_text().splitlines()
    if code not in (0, 1, 2) or (code and not (len(said) == 1 and said[0].startswith("smdiff: error:"))):
        return f"exit code {code}: {said[-20:]}"
    if wrong := wrong_checkpoints(target, folder):
        return f"verify and are wrong: {wrong}"
    return complete(target, folder, log)


def _no_picture(records: Any, path: Path, title: str) -> None:
    """A real one costs more than the whole run; where it is written is what counts here."""
    write_whole(path, lambda p: p.write_text(title))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--failures", default="0", help="how many of the operations fail in turn, or every")
    parser.add_argument("--commands", default="pretrain,finetune")
    parser.add_argument("--steps", type=int, default=TINY["steps"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.rounds and options.failures == "0":
        parser.error("nothing to do: give --rounds N or --failures every")
    install()
    smdiff.training.run.training_curves = _no_picture
    transformers.logging.disable_progress_bar()
    work = Path(tempfile.mkdtemp(prefix="smdiff-torture-"))
    datasets.config.HF_DATASETS_CACHE = str(work / "cache")
    gc.collect()
    gc.freeze()  # a child's collections need not look at what it shares with this process
    chance = random.Random(options.seed)
    failed: list[str] = []
    try:
        made = targets(work, options.commands.split(","), options.steps)
        kills = saves = 0
        for number in range(options.rounds):
            target, folder = made[number % len(made)], work / f"round-{number}"
            k, s, wrong = kill_round(target, folder, chance)
            kills, saves = kills + k, saves + s
            print(f"round {number}, {target.name}: {k} kills, {s} inside a save {wrong}", file=sys.stderr, flush=True)
            if wrong:
                failed.append(f"kill, round {number}, {target.name}: {wrong}")
            shutil.rmtree(folder, ignore_errors=True)
        injected = 0
        for target in made:
            count = len(target.operations)
            every = range(1, count + 1)
            numbers = every if options.failures == "every" else chance.sample(every, min(count, int(options.failures)))
            for at in numbers:
                folder = work / f"failure-{target.name}-{at}"
                how = "once" if at % 2 else "full"
                print(f"failure {at} of {count}, {target.name}", file=sys.stderr, flush=True)
                if wrong := failure_round(target, folder, at, how):
                    failed.append(f"{target.name}, {how} {at}, {target.operations[at - 1]}: {wrong}")
                injected += 1
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    found = {"rounds": options.rounds, "kills": kills, "inside_a_save": saves, "failed_writes": injected}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["cpu_seconds_of_the_runs"] = round(used.ru_utime + used.ru_stime, 1)
    print(json.dumps(found | {"failures": len(failed)}))
    for line in failed:
        print(line)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
