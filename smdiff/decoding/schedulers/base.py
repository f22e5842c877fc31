"""What the denoising loop and a scheduler tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from smdiff.decoding.sampling import Noise


@dataclass(frozen=True)
class State:
    """Where decoding stands before a step.

    Attributes:
        ids: (B, L) tokens, the mask token where undecided.
        masked: (B, L) bool, the positions still to fill.
        t, s: this step goes from time t down to s.
        noise: the step's source of randomness.
    """

    ids: Tensor
    masked: Tensor
    t: float
    s: float
    noise: Noise


class Scheduler(Protocol):
    """One way to go from all masks to a text."""

    def timesteps(self, steps: int) -> list[tuple[float, float]]:
        """The (t, s) of each of `steps` steps, from t = 1 downwards."""
        ...

    def step(self, state: State, logits: Tensor) -> Tensor:
        """The ids (B, L) after the step, from logits (N, V) at the N masked positions, row-major.

        The mask token's logit is -inf, so that it can never be chosen.
        """
        ...
