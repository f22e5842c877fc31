"""Scores in [0, 1] of the tasks of a benchmark: estimates and their 95 % intervals.

Tasks are the independent units, however many samples each has. Every interval is wider than nothing, also where all
tasks pass or two models agree on every one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean
from typing import Any

Z = NormalDist().inv_cdf(0.975)
_NO_VARIANCE = 1e-12  # what is below is rounding


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is correct (Chen et al., arXiv 2107.03374, equation 1).

    Args:
        n: samples of the task.
        c: correct ones.

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def _covariance(a: Sequence[float], b: Sequence[float]) -> float:
    """Over the tasks themselves (divided by n): of 0/1 scores the variance is p(1 - p)."""
    mean_a, mean_b = fmean(a), fmean(b)
    return fmean((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))


def wilson(values: Sequence[float]) -> tuple[float, float]:
    """Wilson's score interval of the mean of one score a task (E. B. Wilson, JASA 22, 1927).

    Scores between 0 and 1, the means of several samples, vary less between tasks than 0/1 scores of the same mean
    would. The interval is that of the number n = p(1 - p) / SE^2 of 0/1 tasks with as large a standard error.

    Raises:
        ValueError: no scores, or scores outside [0, 1].
    """
    if not values or not all(0 <= v <= 1 for v in values):
        raise ValueError("an interval needs scores, all in [0, 1]")
    n, p, variance = float(len(values)), fmean(values), _covariance(values, values)
    if variance > _NO_VARIANCE:
        n = max(n, n * p * (1 - p) / variance)
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + (Z / (2 * n)) ** 2)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def _correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two scores of the same tasks; a positive one is drawn towards 0 as far as half a task can (Newcombe)."""
    variances = _covariance(a, a), _covariance(b, b)
    if min(variances) <= _NO_VARIANCE:
        return 0.0
    covariance = _covariance(a, b)
    if covariance > 0:
        covariance = max(0.0, covariance - 1 / (2 * len(a)))
    return covariance / math.sqrt(variances[0] * variances[1])


def paired(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Mean difference a - b over the same tasks, higher being better.

    The interval squares and adds the two Wilson intervals with the correlation of the scores: of 0/1 scores it is
    method 10 of R. G. Newcombe, Statistics in Medicine 17, 1998, 2635-2650. His correction of the correlation is what
    keeps two models that agree on every task from having a difference of 0 without error.

    Returns:
        value, interval; the tasks on which a is better, worse, equal; a verdict: better, worse, within noise.

    Raises:
        ValueError: no scores, scores outside [0, 1], or not the same number of them.
    """
    if len(a) != len(b):
        raise ValueError(f"paired scores are of the same tasks, not of {len(a)} and {len(b)}")
    (low_a, high_a), (low_b, high_b) = wilson(a), wilson(b)
    mean_a, mean_b, correlation = fmean(a), fmean(b), _correlation(a, b)

    def distance(x: float, y: float) -> float:
        return math.sqrt(x**2 + y**2 - 2 * correlation * x * y)

    value = mean_a - mean_b
    low = value - distance(mean_a - low_a, high_b - mean_b)
    high = value + distance(high_a - mean_a, mean_b - low_b)
    better, worse = (sum(x > y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (b, a)))
    return {
        "value": value,
        "interval": [low, high],
        "better": better,
        "worse": worse,
        "equal": len(a) - better - worse,
        "verdict": "better" if low > 0 else "worse" if high < 0 else "within noise",
    }
