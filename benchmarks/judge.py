"""Do judge and features see what they should? Real text against other real text, and against its own words shuffled.

    python benchmarks/judge.py --judge MODEL --data wikitext-2=FILE

`make judge` does it with SmolLM2-135M, which travels in a package: about ten minutes on two cores. MODEL is any
causal model; its last hidden states are the features of MAUVE, and 2 x 200 real texts are halved at random ten times.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from rich.console import Console
from rich.table import Table

from smdiff.cli.render import setup
from smdiff.ui.console import track

LENGTH = 400  # characters
SAME, APART = 0.95, 0.3
HALVINGS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", required=True, help="a causal model: folder, GGUF file or hub name")
    parser.add_argument("--data", required=True, help="as in smdiff eval-text; passages of some hundred characters")
    parser.add_argument("--num", type=int, default=200, help="texts of each kind")
    a = parser.parse_args()
    setup(quiet=False)  # silences what the following import
    from smdiff.data.corpora import load_documents, texts
    from smdiff.evaluation.judge import Judge
    from smdiff.evaluation.measures import mauve

    judge = Judge(a.judge)
    passages = [t.strip()[:LENGTH] for t in texts(load_documents(a.data)[0]) if len(t.strip()) >= LENGTH]
    generator = random.Random(0)
    chosen = generator.sample(passages, 2 * a.num)
    real, other = chosen[: a.num], chosen[a.num :]
    shuffled = [" ".join(generator.sample(words, len(words))) for words in map(str.split, real)]
    table = Table("texts", "gen. PPL", "MAUVE", "spread", title=f"{a.num} of each under {Path(a.judge).name}")
    with track("texts", 5 * a.num) as tracker:
        likely = [judge.nll(some, tracker.advance) for some in (real, shuffled)]
        states = [judge.features(some, tracker.advance) for some in (real, other, shuffled)]
    # One halving of the real texts is a draw with an error of its own: the mean over several, and their spread.
    everything, halves, found = np.concatenate(states[:2]), np.random.default_rng(0), []
    for name, (total, count) in zip(("real", "shuffled words"), likely, strict=True):
        scores = []
        for _ in range(HALVINGS):
            first, second = np.split(halves.permutation(everything), 2)
            scores.append(mauve(first if name == "real" else states[2], second, seeds=5).mean)
        found.append(fmean(scores))
        perplexity = float((total.sum() / count.sum()).exp())
        table.add_row(name, f"{perplexity:.1f}", f"{found[-1]:.3f}", f"{stdev(scores):.3f}")
    Console(width=110).print(table)
    if found[0] <= SAME or found[1] >= APART:
        sys.exit(f"FAILED: MAUVE of real text is to be above {SAME}, of shuffled words below {APART}")


if __name__ == "__main__":
    main()
