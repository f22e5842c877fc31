"""What the denoising loop and a scheduler tell each other."""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from smdiff.decoding.sampling import Filtered, Noise
from smdiff.diffusion.prediction import Prediction


@dataclass(frozen=True)
class State:
    """Where decoding stands before a step. All tensors are (B, L).

    Attributes:
        ids: tokens, the mask token where undecided.
        masked: the positions to fill now; those of later blocks are not among them.
        writable: the positions that generation may change: masked at the start, in this block.
        confidence: the model's probability of each token when it was revealed; 0 where none was.
        index: 0 for the first step of a block.
        steps: steps of this block; without meaning for schedulers that take as many as they need.
        t, s: this step goes from time t down to s.
        noise: the source of randomness, read through `uniform`.
        alive: (B,) the rows that have something to do; the others wait for them.
    """

    ids: Tensor
    masked: Tensor
    writable: Tensor
    confidence: Tensor
    index: int
    steps: int
    t: float
    s: float
    noise: Noise
    alive: Tensor

    def uniform(self, where: Tensor) -> Tensor:
        """(N,) float64 uniform draws for the true entries of `where` (B, L, bool), row-major."""
        return self.noise.uniform(where, self.alive)

    @functools.cached_property
    def coin(self) -> Tensor:
        """(B, L) one float64 uniform for every position, the same whenever it is asked for within the step."""
        return self.uniform(torch.ones_like(self.masked)).view(self.masked.shape)


@dataclass(frozen=True)
class Move:
    """What a step changes.

    Attributes:
        revealed: (B, L) bool with M true entries.
        tokens: (M,) their tokens, row-major.
        remasked: (B, L) bool, visible positions that become masks again; None for none.
    """

    revealed: Tensor
    tokens: Tensor
    remasked: Tensor | None = None


@dataclass(frozen=True)
class Scheduler(ABC):
    """One way to go from all masks to a text. It knows no model.

    Args:
        temperature: of the draw; 0 takes the most likely token.
        top_p: nucleus; 1 keeps all tokens.
        top_k: most tokens kept; 0 keeps all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    remasks: ClassVar[bool] = False
    """Whether a revealed token may become a mask again."""
    adaptive: ClassVar[bool] = False
    """Whether it takes as many steps as it needs, so that a number of steps has no meaning."""

    def timesteps(self, steps: int) -> Iterable[tuple[float, float]]:
        """The (t, s) of each of `steps` steps, from t = 1 downwards."""
        return itertools.pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist())

    def plan(self, state: State) -> Tensor:
        """The positions (B, L, bool) whose prediction the step needs. Nothing else is computed."""
        return state.masked

    @abstractmethod
    def step(self, state: State, where: Tensor, prediction: Prediction) -> Move:
        """Decide, from the prediction at the N true entries of `where`, which `plan` returned, row-major."""

    def filtered(self, prediction: Prediction) -> Filtered:
        """The distribution that tokens are drawn from."""
        return Filtered(prediction, self.temperature, self.top_p, self.top_k)
