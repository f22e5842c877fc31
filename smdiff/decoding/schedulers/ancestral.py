"""MDLM's ancestral sampler (arXiv 2406.07524, equation 7): each mask is revealed at its own random step."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from smdiff.decoding.sampling import categorical, nucleus
from smdiff.decoding.schedulers.base import State


class Ancestral:
    """From t to s a masked position is revealed with probability (t - s) / t, then drawn from the prediction.

    The two draws have the law of the reference's single draw over the vocabulary and the mask, and need the
    softmax, the nucleus and the noise only where a token is revealed.

    Args:
        top_p: nucleus; 1 keeps all tokens.
        eps: the last time; what is masked then is filled by the loop's last step.
    """

    def __init__(self, top_p: float = 1.0, eps: float = 1e-5) -> None:
        self.top_p, self.eps = top_p, eps

    def timesteps(self, steps: int) -> list[tuple[float, float]]:
        times = torch.linspace(1, self.eps, steps + 1, dtype=torch.float64).tolist()
        return list(itertools.pairwise(times))

    def step(self, state: State, logits: Tensor) -> Tensor:
        revealed = state.noise.uniform(state.masked) < (state.t - state.s) / state.t
        token_noise = state.noise.uniform(state.masked)[revealed]
        probs = nucleus(logits[revealed].softmax(-1), self.top_p)
        where = state.masked.clone()
        where[state.masked] = revealed
        ids = state.ids.clone()
        ids[where] = categorical(probs, token_noise)
        return ids
