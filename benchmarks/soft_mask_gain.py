"""Does soft-masking lower the bound where the best possible value is known? About ten minutes on two cores.

    python benchmarks/soft_mask_gain.py

Data: a sparse Markov chain, drawn anew for each seed. A one-layer model trains 1,000 binary steps, then goes on binary
or soft-masked: 2,500 steps each (iso-update), and soft-masked for as many forward passes as 2,500 binary steps
make (iso-compute). All three are scored on the same held-out sequences and masks.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smdiff.cli.render import setup
from smdiff.config import EvalTextConfig, PretrainConfig, resolve
from smdiff.data.corpora import MarkovChain
from smdiff.evaluation.evaluate_text import evaluate
from smdiff.training.pretrain import pretrain

MODEL = {
    "layers": 1,
    "hidden_size": 64,
    "length": 64,
    "batch_size": 32,
    "lr": 3e-3,
    "eval_every": 0,
    "save_every": 10**6,
}
SOFT = {"soft_mask": True, "k": 3, "p_sm": 0.8, "w_s": 0.3, "soft_mask_lr": 0.05}
BINARY_STEPS, STEPS = 1000, 2500
GAIN, OPEN = 0.015, 0.2
BAR_UNIT = 0.002


def train(folder: Path, name: str, seed: int, **options: Any) -> dict[str, Any]:
    flags = {**MODEL, "data": f"markov:{seed}", "seed": seed, "out": str(folder / name), **options}
    return pretrain(resolve(PretrainConfig, flags))


def measure(seed: int, folder: Path) -> list[dict[str, Any]]:
    """The rows of one seed: binary, soft-masked at equal steps, soft-masked at equal forward passes."""
    train(folder, "start", seed, steps=BINARY_STEPS)
    more = {"init": str(folder / "start"), "steps": STEPS}
    runs = {
        "binary": train(folder, "binary", seed, **more),
        "iso-update": train(folder, "iso-update", seed, **more, **SOFT),
        "iso-compute": train(folder, "iso-compute", seed, **more, **SOFT, budget="iso-compute"),
    }
    config = EvalTextConfig(data=f"markov:{seed}", limit=1024, draws=8)
    found = evaluate([r["model"] for r in runs.values()], config, folder / "scores")
    scores = {(Path(r["model"]).name, r["passes"]): r for r in found["results"]}
    rows = []
    for name, run in runs.items():
        score = scores[name, 1 if name == "binary" else 2]
        rows.append(
            {"seed": seed, "run": name, **score, "train": run["train"], "w_s": (run["soft_mask"] or {}).get("w_s")}
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    console = Console(width=110, highlight=False)
    table = Table("seed", "run", "steps", "passes", "nats/token", "gain over binary [95 %]", "w_s", "optimum")
    for row in rows:
        gain = "-"
        if row["run"] != "binary":
            low, high = row["difference"]["interval"]
            gain = f"{-row['difference']['nats']:+.4f} [{-high:+.4f}, {-low:+.4f}]"
        table.add_row(
            str(row["seed"]), row["run"], str(row["train"]["steps"]), str(row["train"]["forward_passes"]),
            f"{row['nats']:.4f}", gain, "-" if row["w_s"] is None else f"{row['w_s']:.3f}",
            f"{MarkovChain.drawn(row['seed']).entropy(MODEL['length']):.4f}",
            end_section=row["run"] == "iso-compute",
        )  # fmt: skip
    console.print(table)
    for row in rows:
        if row["run"] != "binary":
            gain = -row["difference"]["nats"]
            console.print(f"seed {row['seed']} {row['run']:12}{'#' * round(max(0.0, gain) / BAR_UNIT)} {gain:.4f}")
    console.print(f"(one # is {BAR_UNIT} nats a token; {GAIN} is asked of iso-update)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated")
    arguments = parser.parse_args()
    setup(quiet=False)
    rows: list[dict[str, Any]] = []
    for seed in (int(s) for s in arguments.seeds.split(",")):
        folder = Path(tempfile.mkdtemp(prefix="soft-mask-gain-"))
        try:
            rows += measure(seed, folder)
        finally:
            shutil.rmtree(folder)
        show(rows)
    missed = [
        f"seed {r['seed']}: gain {-r['difference']['nats']:.4f}, w_s {r['w_s']:.3f}"
        for r in rows
        if r["run"] == "iso-update" and (-r["difference"]["nats"] < GAIN or r["w_s"] <= OPEN)
    ]
    if missed:
        raise SystemExit(f"FAILED: asked are a gain of {GAIN} and w_s above {OPEN}; " + "; ".join(missed))


if __name__ == "__main__":
    main()
