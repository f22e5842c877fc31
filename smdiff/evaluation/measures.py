"""What is measured on texts: entropy and repetition of their tokens, and MAUVE against real ones."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import fmean, stdev

import numpy as np

from smdiff.errors import UserError


def unigram_entropy(ids: Sequence[int]) -> float:
    """Entropy of a text's own token counts, in nats: low where it repeats itself, however likely a judge finds it."""
    counts = np.array(list(Counter(ids).values()), dtype=np.float64)
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


def distinct(ids: Sequence[int], n: int) -> float:
    """Different n-grams of a text over all of them (Li et al., arXiv 1510.03055); nan if it is shorter than n."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


# Texts; with fewer the histograms of MAUVE are little more than noise.
_FEW = 500


@dataclass(frozen=True)
class Mauve:
    """MAUVE over several runs of k-means.

    Attributes:
        mean: over the runs, in [0, 1]; 1 where the texts cannot be told from the real ones.
        spread: standard deviation over the runs.
        clusters: of k-means.
        note: what had to be done otherwise than asked; "" if nothing.
    """

    mean: float
    spread: float
    clusters: int
    note: str = ""


def need_mauve() -> None:
    """Refuse where mauve-text is not installed."""
    if find_spec("mauve") is None:
        fix = "pip install 'smdiff[mauve]', or leave it out with --mauve-seeds 0."
        raise UserError("MAUVE needs the mauve-text package", fix=fix)


def mauve(texts: np.ndarray, real: np.ndarray, seeds: int, clusters: int | None = None) -> Mauve:
    """MAUVE (Pillutla et al., arXiv 2102.01454) of features (N, D) against those of real texts (M, D).

    Computed by mauve-text with its own defaults.

    Args:
        seeds: runs of k-means, with seeds 0, 1, ...
        clusters: None takes a tenth of the texts, as mauve-text does.

    Raises:
        UserError: mauve-text is not installed, or there are fewer than two texts on a side.
    """
    need_mauve()
    from mauve import compute_mauve

    fewest = min(len(texts), len(real))
    if fewest < 2:
        fix = "Give --generate 2 or more and data for as many, or --mauve-seeds 0."
        raise UserError("MAUVE compares two sets of texts", f"one has {fewest}", fix)
    remark = ""
    if clusters is not None and clusters > fewest:
        remark = f"MAUVE takes {max(2, round(fewest / 10))} clusters: {clusters} are more than the {fewest} texts"
        clusters = None
    elif fewest < _FEW:
        remark = f"MAUVE from {fewest} texts is rough: it is made for thousands"
    found = []
    for seed in range(seeds):
        with _no_chatter():  # faiss asks for more points a cluster than MAUVE's authors give it
            out = compute_mauve(p_features=real, q_features=texts, num_buckets=clusters or "auto", seed=seed)
        found.append(out)
    scores = [float(out.mauve) for out in found]
    return Mauve(fmean(scores), stdev(scores) if seeds > 1 else float("nan"), int(found[0].num_buckets), remark)


@contextlib.contextmanager
def _no_chatter() -> Iterator[None]:
    """Nothing on stdout and stderr, where libraries write past Python."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(fd) for fd in (1, 2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for fd in (1, 2):
            os.dup2(null, fd)
        yield
    finally:
        for fd, old in zip((1, 2), kept, strict=True):
            os.dup2(old, fd)
            os.close(old)
        os.close(null)
