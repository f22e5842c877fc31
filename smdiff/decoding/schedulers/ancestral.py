"""Reveal at random: MDLM's ancestral sampler and Dream's `origin`.

MDLM: arXiv 2406.07524, equation 7. Each mask is revealed at its own random step, drawn beforehand for the whole step,
so that the network is asked only for the positions that are revealed now, and not at all where none is.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from smdiff.decoding.schedulers.base import Move, Scheduler, State
from smdiff.diffusion.prediction import Prediction


@dataclass(frozen=True)
class Ancestral(Scheduler):
    """From t to s a masked position is revealed with probability (t - s) / t, then drawn from the prediction.

    The two draws have the law of the reference's single draw over the vocabulary and the mask.

    Args:
        eps: the last time; what is masked then is filled by the loop's last step.
    """

    temperature: float = 1.0
    top_p: float = 0.9
    eps: float = 1e-5

    def timesteps(self, steps: int) -> list[tuple[float, float]]:
        times = torch.linspace(1, self.eps, steps + 1, dtype=torch.float64).tolist()
        return list(itertools.pairwise(times))

    def reveal_rate(self, state: State) -> Tensor | float:
        """The probability that a masked position is revealed now, one or (B, L)."""
        return (state.t - state.s) / state.t

    def plan(self, state: State) -> Tensor:
        return state.masked & (state.coin < self.reveal_rate(state))

    def step(self, state: State, where: Tensor, prediction: Prediction) -> Move:
        tokens, _ = self.filtered(prediction).draw(state.uniform(where))
        return Move(where, tokens)


@dataclass(frozen=True)
class Origin(Ancestral):
    """Dream's `origin`: the same law on Dream's clock, from 1 to `eps`; the last step reveals all that is left."""

    eps: float = 1e-3

    def timesteps(self, steps: int) -> list[tuple[float, float]]:
        times = dream_clock(steps, self.eps)
        return list(itertools.pairwise(times))


def dream_clock(steps: int, eps: float) -> list[float]:
    """`steps` + 1 times from 1 towards `eps` in float32, as Dream computes them, with 0 for the last."""
    return [*torch.linspace(1, eps, steps + 1).tolist()[:-1], 0.0]
