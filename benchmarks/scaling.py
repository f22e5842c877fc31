"""Training over one and two processes of one thread each: tokens a second, and what of twice the speed is reached.

    python benchmarks/scaling.py        # about four minutes on two cores

Each row is a run of `smdiff pretrain` under torchrun over loopback, with whole weights in each process (DDP) or shards
of them (FSDP2). The batch is the same for all, so two processes have half of it each: strong scaling, the harder kind.
A 169M model on GPUs computes a thousand times as much for a byte on the wire; benchmarks/README.md does that sum.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
WAYS: dict[str, dict[str, str]] = {"DDP": {}, "FSDP2": FSDP}


def speed(processes: int, steps: int, environment: dict[str, str]) -> float:
    """Tokens a second of a two-pass training run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
            "-m", "--", "smdiff", "pretrain", "--data", "python-docs", "--tokenizer", "bytes", "--hidden-size", "256",
            "--steps", str(steps), "--soft-mask", "--p-sm", "1", "--eval-every", "0", "--eval-sequences", "2",
            "--save-every", "100000", "--log-every", str(steps), "--out", str(Path(folder) / "run"),
            "--json", "--quiet",
        ]  # fmt: skip
        done = subprocess.run(
            command, env=os.environ | environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"FAILED: {done.stderr[-2000:]}")
        records = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
        last = next(record for record in records if "loss" in record)
        return float(last["tokens"] / last["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="of each run")
    steps = parser.parse_args().steps
    table = Table(
        "", "1 process, tokens/s", "2 processes, tokens/s", "efficiency", title="4 blocks of width 256, L 128"
    )
    for name, environment in WAYS.items():
        one, two = (speed(processes, steps, environment) for processes in (1, 2))
        table.add_row(name, f"{one:,.0f}", f"{two:,.0f}", f"{two / (2 * one):.0%}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
