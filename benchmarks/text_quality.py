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
import math
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from smdiff.cli.render import setup
from smdiff.config import EvalTextConfig, PretrainConfig, resolve
from smdiff.data.corpora import load_documents, texts
from smdiff.evaluation.evaluate_text import evaluate
from smdiff.files import read_json, write_whole
from smdiff.training.pretrain import pretrain
from smdiff.ui.console import note

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BASE, MORE = 1200, 600
STEPS, NFES, TEXTS = "1/8,1/4,1/2,1/1", ("16", "32", "64", "128"), 64
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


def measure(folder: Path, seed: int, data: Path, judge: Path) -> list[dict[str, Any]]:
    """A row for each run: held-out perplexity against the binary run beside it, and its texts at each NFE."""
    rows = []
    for start in ("", "scratch-"):
        paths = {f"{start}{name}": folder / f"{start}{name}" for name in WAYS}
        config = EvalTextConfig(
            data=str(data), length=COMMON["length"], limit=512, draws=8, batch_size=64, generate=TEXTS, steps=STEPS,
            judge=str(judge), mauve_seeds=0, seeds=str(seed),
        )  # fmt: skip
        found = evaluate([str(path) for path in paths.values()], config, folder / f"{start}scores")
        for name, path in paths.items():
            trained = read_json(path / "result.json") or {}
            soft = trained["soft_mask"]
            (score,) = (r for r in found["results"] if r["model"] == str(path) and r["passes"] == (2 if soft else 1))
            texts = [r for r in found["generated"] if r["model"] == str(path)]
            real = found["generated"][0]
            rows.append({"seed": seed, "run": name, "train": trained["train"], "scalars": soft, "score": score,
                         "texts": texts, "real": real})  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    console = Console(width=120, highlight=False)
    title = f"after {BASE:,} binary steps, or from scratch; at each NFE generative PPL and unigram entropy (nats)"
    table = Table("seed", "run", "steps", "passes", "PPL <=", "change [95 %]", "w_s", *NFES, title=title)
    for row in rows:
        score, train = row["score"], row["train"]
        pairs = [f"{t['generative_perplexity']:.2f}\n{t['entropy']:.2f}" for t in row["texts"]]
        table.add_row(
            str(row["seed"]), row["run"], f"{train['steps']:,}", f"{train['forward_passes']:,}",
            f"{score['perplexity']:.3f}", change(score), f"{row['scalars']['w_s']:.2f}" if row["scalars"] else "-",
            *pairs, end_section=row["run"].endswith("iso-compute"),
        )  # fmt: skip
    console.print(table)
    for seed in dict.fromkeys(row["seed"] for row in rows):
        real = next(row["real"] for row in rows if row["seed"] == seed)
        console.print(f"seed {seed}: real text {real['generative_perplexity']:.2f}, entropy {real['entropy']:.2f}")
    for name in [name for name in dict.fromkeys(row["run"] for row in rows) if "binary" not in name]:
        changes = [row["score"]["difference"]["perplexity_ratio"] - 1 for row in rows if row["run"] == name]
        console.print(f"{name}: perplexity {fmean(changes):+.2%} over {len(changes)} seeds, {spread(changes)}")


def change(score: dict[str, Any]) -> str:
    if "difference" not in score:
        return "-"
    low, high = (math.expm1(end) for end in score["difference"]["interval"])
    noise = " (noise)" if low < 0 < high else ""
    return f"{score['difference']['perplexity_ratio'] - 1:+.2%} [{low:+.2%}, {high:+.2%}]{noise}"


def spread(changes: list[float]) -> str:
    """What the seeds say together: Student's 95 % interval of their mean."""
    if len(changes) < 2:
        return "one seed says nothing of the others"
    half = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(changes), 2.57) * stdev(changes) / len(changes) ** 0.5
    low, high = fmean(changes) - half, fmean(changes) + half
    return f"95 % interval over seeds [{low:+.2%}, {high:+.2%}]{': within noise' if low < 0 < high else ''}"


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
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        folder = arguments.folder / f"seed-{seed}"
        stages(folder, data, seed, first=seed == seeds[0])
        rows += measure(folder, seed, data, arguments.folder / f"seed-{seeds[0]}" / "ar")
        show(rows)
    ar = read_json(arguments.folder / f"seed-{seeds[0]}" / "ar" / "result.json") or {}
    print(f"the autoregressive model's own held-out perplexity: {ar['valid']['perplexity']:.3f}, exact")


if __name__ == "__main__":
    main()
