"""Reveal what the model is surest of: Dream's and LLaDA's orders, a confidence threshold, an entropy bound.

Dream's generation code (maskgit_plus, topk_margin, entropy, with alg_temp), LLaDA's (low_confidence), Fast-dLLM
(arXiv 2505.22618, threshold), and "Accelerated sampling from masked diffusion models via entropy bounded unmasking"
(arXiv 2505.24857, entropy_bound). Counts are per row: a text does not depend on the others in its batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from smdiff.decoding.sampling import Filtered
from smdiff.decoding.schedulers.ancestral import dream_clock
from smdiff.decoding.schedulers.base import Move, Scheduler, State
from smdiff.diffusion.prediction import Prediction


def on_grid(where: Tensor, values: Tensor, fill: float) -> Tensor:
    """(B, L) with `values` (N,) at the true entries of `where` and `fill` elsewhere."""
    grid = torch.full(where.shape, fill, dtype=values.dtype, device=values.device)
    return grid.masked_scatter(where, values)


def largest(scores: Tensor, counts: Tensor) -> Tensor:
    """(B, L, bool) true at the `counts` (B,) largest of each row of `scores` (B, L)."""
    most = int(counts.max())
    if most == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    order = scores.topk(most, dim=-1).indices
    taken = torch.arange(most, device=scores.device) < counts[:, None]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, taken)


@dataclass(frozen=True)
class Ranked(Scheduler):
    """Give every masked position a score, reveal the best ones.

    Where the score does not depend on the drawn token, tokens are drawn at the revealed positions only.
    """

    temperature: float = 0.1
    top_p: float = 0.9

    def scores(self, filtered: Filtered) -> Tensor:
        """(N,) how sure the model is of each masked position; larger is revealed first."""
        raise NotImplementedError

    def choose(self, state: State, scores: Tensor) -> Tensor:
        """(B, L, bool) the positions to reveal, from scores (B, L), -inf where not masked."""
        raise NotImplementedError

    def step(self, state: State, where: Tensor, prediction: Prediction) -> Move:
        filtered = self.filtered(prediction)
        revealed = self.choose(state, on_grid(where, self.scores(filtered), -torch.inf))
        u, chosen = state.uniform(where), revealed[where]
        tokens, _ = filtered[chosen].draw(u[chosen])
        return Move(revealed, tokens)


@dataclass(frozen=True)
class Counted(Ranked):
    """Dream's count: of n masks, int(n (1 - s / t)) are revealed, all at the last step.

    Args:
        alg_temp: 0 takes the best; above, positions are drawn without replacement from softmax(score / alg_temp).
        eps: last time of the clock.
    """

    alg_temp: float = 0.0
    eps: float = 1e-3

    def timesteps(self, steps: int) -> Iterable[tuple[float, float]]:
        return itertools.pairwise(dream_clock(steps, self.eps))

    def counts(self, state: State) -> Tensor:
        """(B,) tokens to reveal in each row. float32, as the reference rounds."""
        share = 1 - torch.tensor(state.s, dtype=torch.float32) / torch.tensor(state.t, dtype=torch.float32)
        return (state.masked.sum(1) * share.to(state.masked.device)).int()

    def plan(self, state: State) -> Tensor:
        return state.masked & (self.counts(state) > 0)[:, None]

    def choose(self, state: State, scores: Tensor) -> Tensor:
        if self.alg_temp > 0:
            # The largest of score / T plus Gumbel noise are a draw without replacement (float64: see sampling.py).
            u = on_grid(state.masked, state.uniform(state.masked), 0.5)
            scores = scores.double() / self.alg_temp - (-u.clamp(min=1e-300).log()).log()
        return largest(scores, self.counts(state))


@dataclass(frozen=True)
class Entropy(Counted):
    """Lowest entropy first."""

    def scores(self, filtered: Filtered) -> Tensor:
        return filtered.neg_entropy()


@dataclass(frozen=True)
class TopkMargin(Counted):
    """Largest margin between the two most likely tokens first."""

    def scores(self, filtered: Filtered) -> Tensor:
        return filtered.margin()


@dataclass(frozen=True)
class MaskgitPlus(Counted):
    """Draw a token everywhere, then reveal the most probable ones (MaskGIT, arXiv 2202.04200)."""

    def step(self, state: State, where: Tensor, prediction: Prediction) -> Move:
        tokens, confidence = self.filtered(prediction).draw(state.uniform(where))
        revealed = self.choose(state, on_grid(where, confidence, -torch.inf))
        return Move(revealed, tokens[revealed[where]])


@dataclass(frozen=True)
class LowConfidence(MaskgitPlus):
    """LLaDA's (arXiv 2502.09992): as maskgit_plus, but the masks are spread evenly over the steps of a block.

    The remainder of an uneven division goes to the first steps.
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def counts(self, state: State) -> Tensor:
        left = state.steps - state.index
        return (state.masked.sum(1) + left - 1) // left


@dataclass(frozen=True)
class Adaptive(Ranked):
    """As many steps as it takes: the model's own probabilities decide, whatever the temperature of the draw."""

    temperature: float = 0.0

    adaptive: ClassVar[bool] = True

    def timesteps(self, steps: int) -> Iterable[tuple[float, float]]:
        return itertools.repeat((1.0, 0.0))


@dataclass(frozen=True)
class Threshold(Adaptive):
    """Fast-dLLM's: reveal every position at least this confident, and in each row always the best one.

    Args:
        threshold: on the model's probability of its most likely token.
    """

    threshold: float = 0.9

    def scores(self, filtered: Filtered) -> Tensor:
        return Filtered(filtered.prediction).greedy()[1]

    def choose(self, state: State, scores: Tensor) -> Tensor:
        return (scores >= self.threshold) | largest(scores, state.masked.any(1).int())


@dataclass(frozen=True)
class EntropyBound(Adaptive):
    """Reveal the lowest entropies while their sum, less the largest among them, stays within a bound.

    That sum bounds the error of drawing the tokens independently, so one position always goes (arXiv 2505.24857,
    section 4).

    Args:
        entropy_bound: in nats, on the model's entropies.
    """

    entropy_bound: float = 0.1

    def scores(self, filtered: Filtered) -> Tensor:
        return filtered.prediction.statistics()[1]

    def choose(self, state: State, scores: Tensor) -> Tensor:
        entropy, order = (-scores).clamp(min=0).sort(-1)
        within = (entropy.cumsum(-1) - entropy <= self.entropy_bound) & entropy.isfinite()
        return torch.zeros_like(within).scatter(1, order, within)
