"""Do judge and features see what they should? Real text against other real text, and against its own words shuffled.

    python benchmarks/judge.py --judge MODEL --data wikitext-2=FILE

`make judge` does it with SmolLM2-135M, which travels in a package: about ten minutes on two cores. MODEL is any
causal model; its last hidden states are the features of MAUVE.
"""

from __future__ import annotations

import argparse
import random
import sys

from rich.console import Console
from rich.table import Table

from smdiff.cli.render import setup
from smdiff.data.corpora import load_documents, texts
from smdiff.evaluation.judge import Judge
from smdiff.evaluation.measures import mauve
from smdiff.ui.console import track

LENGTH = 400  # characters
SAME, APART = 0.95, 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", required=True, help="a causal model: folder, GGUF file or hub name")
    parser.add_argument("--data", required=True, help="as in smdiff eval-text; passages of some hundred characters")
    parser.add_argument("--num", type=int, default=200, help="texts of each kind")
    a = parser.parse_args()
    setup(quiet=False)
    judge = Judge(a.judge)
    passages = [t.strip()[:LENGTH] for t in texts(load_documents(a.data)[0]) if len(t.strip()) >= LENGTH]
    generator = random.Random(0)
    chosen = generator.sample(passages, 2 * a.num)
    real, other = chosen[: a.num], chosen[a.num :]
    shuffled = [" ".join(generator.sample(words, len(words))) for words in map(str.split, real)]
    table = Table("texts", "gen. PPL", "MAUVE", "spread", title=f"{a.num} of each under {a.judge}")
    found = {}
    with track("texts", 7 * a.num) as tracker:
        theirs = judge.features(other, tracker.advance)
        for name, some in (("real", real), ("shuffled words", shuffled), ("the others themselves", other)):
            total, count = judge.nll(some, tracker.advance)
            found[name] = score = mauve(judge.features(some, tracker.advance), theirs, seeds=5)
            perplexity = float((total.sum() / count.sum()).exp())
            table.add_row(name, f"{perplexity:.1f}", f"{score.mean:.3f}", f"{score.spread:.3f}")
    Console(width=110).print(table)
    if found["real"].mean <= SAME or found["shuffled words"].mean >= APART:
        sys.exit(f"FAILED: MAUVE of real text is to be above {SAME}, of shuffled words below {APART}")


if __name__ == "__main__":
    main()
