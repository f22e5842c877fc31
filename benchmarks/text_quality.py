"""What soft-masking is worth: binary against soft-masked, continued and from scratch, at equal steps and equal passes.

    python benchmarks/text_quality.py --peps FILE

At most 90 minutes on two CPU cores. The data are Python's standard library and its enhancement proposals (a text file
of all of them, joined; by default the one in the data folder beside a developer's checkout), as bytes. For each seed:

1. A binary model of two layers trains for 1,200 steps of 4,096 bytes and goes on for 600: binary, soft-masked
   (iso-update), or soft-masked for as many forward passes as 600 binary steps make (iso-compute).
2. The same three ways from scratch, for 1,800 steps.
3. An autoregressive model of the same shape trains for 1,800 steps (first seed). It is the reference line, and the
   judge of the texts that all others write, at four numbers of forward passes.

Every stage is a run of `smdiff pretrain` in --folder, the scores are those of `smdiff eval-text`; a stopped benchmark
goes on where it was.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path
from typing import Any

from smdiff.cli.render import setup
from smdiff.config import PretrainConfig, resolve
from smdiff.data.corpora import load_documents, texts
from smdiff.files import write_whole
from smdiff.training.pretrain import pretrain
from smdiff.ui.console import note

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BASE, MORE = 1200, 600
COMMON = {
    "tokenizer": "bytes", "layers": 2, "hidden_size": 128, "heads": 4, "length": 128, "batch_size": 32, "lr": 3e-3,
    "ema": 0.99, "eval_every": 300, "save_every": 600,
}  # fmt: skip
SOFT = {"soft_mask": True, "k": 3, "p_sm": 0.8, "w_s": 0.3, "soft_mask_lr": 0.05}
WAYS: dict[str, dict[str, Any]] = {
    "binary": {}, "soft-masked": SOFT, "iso-compute": {**SOFT, "budget": "iso-compute"},
}  # fmt: skip


def corpus(peps: Path, path: Path) -> Path:
    """Documents as JSON lines: a module, or a proposal, each."""
    if not path.exists():
        raw = gzip.decompress(peps.read_bytes()) if peps.suffix == ".gz" else peps.read_bytes()
        proposals = re.split(r"(?m)^(?=PEP: \d+$)", raw.decode())
        documents = [*texts(load_documents("python-stdlib")[0]), *(p for p in proposals if p.strip())]
        lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda p: p.write_text(lines))
    return path


def train(folder: Path, data: Path, seed: int, steps: int, **options: Any) -> dict[str, Any]:
    note(f"{folder}: {steps} steps")
    flags = {**COMMON, "data": str(data), "seed": seed, "steps": steps, "out": str(folder), **options}
    return pretrain(resolve(PretrainConfig, flags))


def stages(folder: Path, data: Path, seed: int, first: bool) -> dict[str, dict[str, Any]]:
    """The runs of one seed."""
    base = folder / "base"
    runs = {"base": train(base, data, seed, BASE)}
    for name, way in WAYS.items():
        again = {"init": str(base), "schedule": "linear", "warmup": 0.0, **way}
        runs[name] = train(folder / name, data, seed, MORE, **again)
    for name, way in WAYS.items():
        runs[f"scratch-{name}"] = train(folder / f"scratch-{name}", data, seed, BASE + MORE, schedule="linear", **way)
    if first:
        runs["ar"] = train(folder / "ar", data, seed, BASE + MORE, schedule="linear", objective="ar")
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peps", type=Path, default=SHARED / "text" / "peps.rst.gz", help="text file, maybe .gz")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated")
    parser.add_argument("--folder", type=Path, default=Path("runs/text_quality"), help="of the runs")
    arguments = parser.parse_args()
    if not arguments.peps.exists():
        parser.error(f"{arguments.peps}: not here; give --peps")
    setup(quiet=False)
    data = corpus(arguments.peps, arguments.folder / "data.jsonl")
    seeds = [int(s) for s in arguments.seeds.split(",")]
    for seed in seeds:
        stages(arguments.folder / f"seed-{seed}", data, seed, first=seed == seeds[0])


if __name__ == "__main__":
    main()
