"""Remasking: a revealed token may become a mask again (ReMDM, arXiv 2503.00307).

From t to s, with alpha(u) = 1 - u, a visible token becomes a mask with probability sigma, and a mask is revealed with
probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). Each rule is another sigma; sigma = 0 is the ancestral
sampler, draw for draw.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from smdiff.decoding.schedulers.ancestral import Ancestral
from smdiff.decoding.schedulers.base import Move, State
from smdiff.diffusion.prediction import Prediction


def sigma_max(state: State) -> float:
    """The largest remasking probability that keeps the marginals: min(1, (1 - alpha_s) / alpha_t)."""
    return min(1.0, state.s / (1 - state.t)) if state.t < 1 else 1.0


@dataclass(frozen=True)
class Remask(Ancestral):
    """The update that all rules share."""

    remasks: ClassVar[bool] = True

    def sigma(self, state: State) -> Tensor | float:
        """Probability that a visible token becomes a mask, one or (B, L)."""
        raise NotImplementedError

    def reveal_rate(self, state: State) -> Tensor | float:
        # The formula above, arranged so that sigma = 0 rounds as the ancestral sampler's rate does.
        return (state.t - state.s + self.sigma(state) * (1 - state.t)) / state.t

    def step(self, state: State, where: Tensor, prediction: Prediction) -> Move:
        # A position is either masked or visible, so one coin serves both decisions.
        remasked = state.writable & ~state.masked & (state.coin < self.sigma(state))
        return dataclasses.replace(super().step(state, where, prediction), remasked=remasked)


@dataclass(frozen=True)
class Cap(Remask):
    """remdm-cap: sigma = min(eta, sigma_max).

    Args:
        eta: the cap; None takes the paper's, 0.04 below 1,024 steps and 0.02 from there.
    """

    eta: float | None = None

    def sigma(self, state: State) -> float:
        eta = (0.04 if state.steps < 1024 else 0.02) if self.eta is None else self.eta
        return min(eta, sigma_max(state))


@dataclass(frozen=True)
class Rescale(Remask):
    """remdm-rescale: sigma = eta sigma_max.

    Args:
        eta: share of the largest sigma.
    """

    eta: float = 0.015

    def sigma(self, state: State) -> float:
        return self.eta * sigma_max(state)


@dataclass(frozen=True)
class Conf(Remask):
    """remdm-conf: sigma_max is shared out by softmax(-psi), psi a token's probability when it was revealed.

    psi is the model's own, as in the paper; the released code takes it within the nucleus.
    """

    def sigma(self, state: State) -> Tensor:
        visible = state.writable & ~state.masked
        share = (-state.confidence.double()).masked_fill(~visible, -torch.inf).softmax(-1)
        return share.nan_to_num(0.0) * sigma_max(state)  # a row without a visible token has no share


@dataclass(frozen=True)
class Loop(Remask):
    """remdm-loop: reveal up to alpha_on, then remask and reveal at that level, then reveal the rest.

    Args:
        eta: sigma within the loop, which lasts from t_on down to t_off.
        alpha_on: share of tokens that are visible in the loop.
        overshoot: the step that crosses t_on goes on beyond alpha_on, as in the released code, where few steps reveal
            everything before the loop begins; only comparisons with it use that.
    """

    eta: float = 0.02
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9
    overshoot: bool = False

    def __post_init__(self) -> None:
        if self.t_off >= self.t_on:
            raise ValueError(f"the loop ends (t_off {self.t_off:g}) before it begins (t_on {self.t_on:g})")
        bound = (1 - self.alpha_on) / self.alpha_on
        if self.eta > bound:
            raise ValueError(f"eta {self.eta:g} is above its bound (1 - alpha_on) / alpha_on = {bound:.3g}")

    def _looping(self, t: float) -> bool:
        return self.t_off < t <= self.t_on

    def sigma(self, state: State) -> float:
        return self.eta if self._looping(state.t) else 0.0

    def reveal_rate(self, state: State) -> float:
        if self._looping(state.t):
            return self.eta * self.alpha_on / (1 - self.alpha_on)
        t, s = (self._clock(state.t, u) for u in (state.t, state.s))
        return (t - s) / t

    def _clock(self, t: float, u: float) -> float:
        """Time u on the clock of the phase that t is in: 1 to 1 - alpha_on before the loop, from there to 0 after."""
        if t > self.t_on:
            u = u if self.overshoot else max(u, self.t_on)
            return 1 - (1 - u) * self.alpha_on / (1 - self.t_on)
        return u * (1 - self.alpha_on) / self.t_off
