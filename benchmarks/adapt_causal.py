"""A pretrained causal model becomes a masked diffusion model; then soft-masked against binary continuation.

    python benchmarks/adapt_causal.py --model MODEL --data TEXT

About half an hour a seed on two CPU cores with a Llama of 260,000 parameters (karpathy's stories260k) and stories
sampled from it; both default to the data folder beside a developer's checkout. Every stage is a run of `smdiff
finetune` in --folder; a stopped benchmark goes on where it was.

1. The network trains for 500 steps from the causal weights, and for 500 from random ones.
2. The adapted one goes on to 1,500 binary steps, then for 1,500 more, binary or soft-masked (iso-update). On the
   first seed also soft-masked for as many forward passes as 1,500 binary steps make (iso-compute).
3. Each writes texts at five numbers of forward passes. The original causal model says how likely they are.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import smdiff
from smdiff.cli.render import setup
from smdiff.config import EvalTextConfig, FinetuneConfig, SampleConfig, resolve
from smdiff.evaluation.evaluate_text import evaluate
from smdiff.files import write_json
from smdiff.training.callbacks import read_metrics
from smdiff.training.finetune import finetune
from smdiff.ui.console import note

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
LENGTH, START, STEPS = 128, 500, 1500
BASE = {
    "format": "text", "max_length": LENGTH, "batch_size": 32, "adapter": "none", "lr": 2e-3, "soft_mask": False,
    "eval_every": START, "save_every": 500, "best": False, "warmup": 50,
}  # fmt: skip
SOFT = {"soft_mask": True, "k": 3, "p_sm": 0.8, "w_s": 0.3, "soft_mask_lr": 0.05}
ARMS = ("binary", "soft-masked", "iso-compute")
NFES = (8, 16, 32, 64, 128)
TEXTS = 128
# What is asked: perplexity at 500 steps and of soft-masking, generative perplexity at NFE 1/1, entropies.
START_GAIN, GAIN, GENERATIVE, ENTROPY = 0.20, 0.05, 2.0, 0.1


def random_weights(model: Path, folder: Path, seed: int) -> Path:
    """The same network as it is before any training."""
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def train(folder: Path, data: Path, model: Path, seed: int, **options: Any) -> dict[str, Any]:
    flags = {**BASE, "model": str(model), "data": str(data), "seed": seed, "out": str(folder), **options}
    return finetune(resolve(FinetuneConfig, flags))


def stages(folder: Path, model: Path, data: Path, seed: int, iso: bool) -> dict[str, dict[str, Any]]:
    """The runs of one seed."""
    again = {"steps": STEPS, "schedule": "linear", "warmup": 0}
    start = folder / "start"
    runs = {
        "random": train(folder / "random", data, random_weights(model, folder / "init", seed), seed, steps=START,
                        schedule="constant"),
        "start": train(start, data, model, seed, steps=STEPS, schedule="constant"),
        "binary": train(folder / "binary", data, start, seed, **again),
        "soft-masked": train(folder / "soft-masked", data, start, seed, **again, **SOFT),
    }  # fmt: skip
    if iso:
        runs["iso-compute"] = train(folder / "iso-compute", data, start, seed, **again, **SOFT, budget="iso-compute")
    at = {r["step"]: r for r in read_metrics(start / "metrics.jsonl") if "valid_nll" in r}
    runs["adapted"] = {"valid": {"perplexity": at[START]["valid_perplexity"]}}
    return runs


@torch.no_grad()
def generative(causal: PreTrainedModel, start_id: int, ids: torch.Tensor) -> float:
    """Perplexity of texts (N, L) under a causal model that begins with its begin-of-text token."""
    x = torch.cat([torch.full((len(ids), 1), start_id), ids], 1)
    nll = [
        torch.nn.functional.cross_entropy(causal(part[:, :-1]).logits.flatten(0, 1), part[:, 1:].flatten())
        for part in x.split(32)
    ]
    return float(torch.stack(nll).mean().exp())


def unigram_entropy(ids: torch.Tensor) -> float:
    """Nats: the entropy of each text's own token counts, averaged over texts."""
    entropies = []
    for row in ids:
        p = row.unique(return_counts=True)[1].double() / len(row)
        entropies.append(float(-(p * p.log()).sum()))
    return sum(entropies) / len(entropies)


def texts_of(folder: Path, nfe: int, seed: int) -> torch.Tensor:
    """(TEXTS, LENGTH) tokens from nothing: ancestral, top-p 0.9."""
    config = SampleConfig(
        scheduler="ancestral", steps=nfe, length=LENGTH, num=TEXTS, top_p=0.9, seed=seed, batch_size=TEXTS, stop=False
    )
    return torch.tensor([text.ids for text in smdiff.generate(smdiff.load(str(folder)), config=config)])


def measure(folder: Path, model: Path, data: Path, seed: int, iso: bool) -> dict[str, Any]:
    """Everything of one seed; kept in its folder, so that it is not done twice."""
    done = folder / "measured.json"
    if done.exists():
        return json.loads(done.read_text())
    runs = stages(folder, model, data, seed, iso)
    arms = {name: folder / name for name in ARMS if name in runs}
    config = EvalTextConfig(data=str(data), length=LENGTH, limit=1024, draws=8)
    scores = evaluate([str(f) for f in arms.values()], config, folder / "scores")
    scored = {(r["model"], r["passes"]): r for r in scores["results"]}
    causal = AutoModelForCausalLM.from_pretrained(model).eval()
    start_id = causal.config.bos_token_id
    tokenizer = AutoTokenizer.from_pretrained(model)
    real = tokenizer(data.read_text()[:400_000], add_special_tokens=False)["input_ids"]
    real_ids = torch.tensor(real[: TEXTS * LENGTH]).view(TEXTS, LENGTH)
    found: dict[str, Any] = {
        "seed": seed,
        "start": {k: runs[k]["valid"]["perplexity"] for k in ("random", "adapted", "start")},
        "real": {"perplexity": generative(causal, start_id, real_ids), "entropy": unigram_entropy(real_ids)},
    }
    for name, path in arms.items():
        note(f"seed {seed}: texts of {name}")
        score = scored[str(path), 1 if name == "binary" else 2]
        texts = {nfe: texts_of(path, nfe, seed) for nfe in NFES}
        found[name] = {
            "train": runs[name]["train"], "scalars": runs[name]["soft_mask"], "perplexity": score["perplexity"],
            "difference": score.get("difference"),
            "generative": {str(n): generative(causal, start_id, ids) for n, ids in texts.items()},
            "entropy": {str(n): unigram_entropy(ids) for n, ids in texts.items()},
        }  # fmt: skip
    write_json(done, found)
    return found


def show(seeds: list[dict[str, Any]]) -> None:
    console = Console(width=120, highlight=False)
    table = Table(
        "seed", "from random weights", "from the causal model", "lower by", title="held-out PPL <=, 500 steps"
    )
    for s in seeds:
        random, adapted = s["start"]["random"], s["start"]["adapted"]
        table.add_row(str(s["seed"]), f"{random:.2f}", f"{adapted:.2f}", f"{1 - adapted / random:.1%}")
    console.print(table)
    title = "after 1,500 binary steps; at each NFE generative PPL and unigram entropy (nats)"
    table = Table("seed", "run", "steps", "passes", "PPL <=", "change", "s/step", "w_s", *map(str, NFES), title=title)
    for s in seeds:
        for name in [name for name in ARMS if name in s]:
            row, w_s = s[name], (s[name]["scalars"] or {}).get("w_s")
            change = row["perplexity"] / s["binary"]["perplexity"] - 1
            pairs = [f"{row['generative'][str(n)]:.1f}\n{row['entropy'][str(n)]:.2f}" for n in NFES]
            table.add_row(
                str(s["seed"]), name, f"{row['train']['steps']:,}", f"{row['train']['forward_passes']:,}",
                f"{row['perplexity']:.2f}", "-" if name == "binary" else f"{change:+.1%}",
                f"{row['train']['seconds'] / row['train']['steps']:.2f}", "-" if w_s is None else f"{w_s:.2f}", *pairs,
                end_section=name == [arm for arm in ARMS if arm in s][-1],
            )  # fmt: skip
    console.print(table)
    for s in seeds:
        console.print(f"seed {s['seed']}: real text {s['real']['perplexity']:.1f}, entropy {s['real']['entropy']:.2f}")


def draw(seeds: list[dict[str, Any]], folder: Path, picture: Path) -> None:
    """Held-out perplexity over the steps, and generative perplexity over the forward passes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for index, s in enumerate(seeds):
        for name, colour in (("binary", "tab:gray"), ("soft-masked", "tab:blue")):
            style = {"color": colour, "label": name if index == 0 else None, "alpha": 0.9, "marker": "o", "ms": 3}
            begin = folder / f"seed-{s['seed']}" / "start" / "metrics.jsonl"
            log = [r for r in read_metrics(begin.parent.parent / name / "metrics.jsonl") if "valid_nll" in r]
            first = [r for r in read_metrics(begin) if "valid_nll" in r][-1:]
            points = [(0, first[0]["valid_nll"])] + [(r["step"], r["valid_nll"]) for r in log]
            left.plot([x for x, _ in points], [math.exp(y) for _, y in points], **style)
            right.plot(NFES, [s[name]["generative"][str(n)] for n in NFES], **style)
    left.set(xlabel="steps after 1,500 binary ones", ylabel="held-out perplexity, upper bound")
    right.set(xlabel="forward passes for 128 tokens", ylabel="perplexity under the causal model", xscale="log",
              yscale="log", xticks=NFES, xticklabels=[str(n) for n in NFES])  # fmt: skip
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.savefig(picture, dpi=130)


def missed(s: dict[str, Any]) -> list[str]:
    """What one seed does not keep of what is asked."""
    binary, soft, quarter, full = s["binary"], s["soft-masked"], str(LENGTH // 4), str(LENGTH)
    wide = [n for n in binary["entropy"] if abs(binary["entropy"][n] - soft["entropy"][n]) > ENTROPY]
    checks = {
        "500 steps": s["start"]["adapted"] <= (1 - START_GAIN) * s["start"]["random"],
        "perplexity": soft["perplexity"] <= (1 - GAIN) * binary["perplexity"],
        "generative at NFE 1/1": soft["generative"][full] * GENERATIVE <= binary["generative"][full],
        "soft-masked at NFE 1/4 below binary at 1/1": soft["generative"][quarter] < binary["generative"][full],
        f"entropy at NFE {', '.join(wide)}": not wide,
    }
    return [f"seed {s['seed']}: {name}" for name, kept in checks.items() if not kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "stories260k", help="causal model's folder")
    parser.add_argument("--data", type=Path, default=SHARED / "text" / "stories.txt", help="text file")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated")
    parser.add_argument("--folder", type=Path, default=Path("runs/adapt_causal"), help="of the runs")
    parser.add_argument("--picture", type=Path, help="PNG; by default in the folder")
    arguments = parser.parse_args()
    if missing := [str(p) for p in (arguments.model, arguments.data) if not p.exists()]:
        parser.error(f"{', '.join(missing)}: not here; give --model and --data")
    setup(quiet=False)
    seeds = []
    for seed in (int(s) for s in arguments.seeds.split(",")):
        folder = arguments.folder / f"seed-{seed}"
        seeds.append(measure(folder, arguments.model, arguments.data, seed, iso=not seeds))
        show(seeds)
    draw(seeds, arguments.folder, arguments.picture or arguments.folder / "adapt_causal.png")
    if failures := [line for s in seeds for line in missed(s)]:
        raise SystemExit("FAILED: " + "; ".join(failures))


if __name__ == "__main__":
    main()
