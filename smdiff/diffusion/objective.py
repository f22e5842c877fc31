"""The training objectives of masked diffusion, in one pass or in the two passes of soft-masking.

`elbo` is the negative ELBO in continuous time; `code` is the reference's for finetuning, a mean cross-entropy over t;
`ar` is that of the autoregressive model which masked diffusion is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from smdiff.diffusion.noise import SCHEDULES, NoiseDraw, NoiseSchedule, corrupt
from smdiff.diffusion.soft_mask import Feedback


class Scores(NamedTuple):
    """What was asked of one forward pass, at the N positions it predicted.

    Attributes:
        nll: (N,) -log p of the targets in nats; they have a gradient only where no weighted sum was asked for.
        feedback: the prediction, reduced to what a soft mask needs.
        total: the weighted sum of `nll`.
    """

    nll: Tensor | None
    feedback: Feedback | None
    total: Tensor | None = None


class Denoises(Protocol):
    """What an objective asks of a model: scores at masked positions, from ids and, maybe, feedback."""

    def __call__(
        self,
        ids: Tensor,
        masked: Tensor,
        feedback: Feedback | None = None,
        *,
        targets: Tensor | None = None,
        observe: bool = False,
        weight: Tensor | None = None,
    ) -> Scores: ...


class Loss(NamedTuple):
    """That of one batch, and its terms at the N masked positions.

    Attributes:
        total: the weighted sum; of the ELBO, in nats over the batch's tokens (visible tokens contribute 0).
        nll: (N,) -log p(x0 | x_t) in nats, without gradient.
        weight: (N,) its weight in the objective, 1/t in the ELBO for the log-linear schedule.
    """

    total: Tensor
    nll: Tensor
    weight: Tensor

    @classmethod
    def of(cls, scores: Scores, weight: Tensor) -> Loss:
        """From scores that were asked for with that weight."""
        assert scores.nll is not None
        assert scores.total is not None
        return cls(scores.total, scores.nll, weight)


def masked_loss(model: Denoises, x0: Tensor, draw: NoiseDraw, mask_id: int, weight: Tensor) -> Loss:
    """The loss of `x0` (B, L) at its N masked positions, row-major, each with its `weight` (N,).

    A two-pass draw first predicts from plain masks without gradient, then takes the loss of the prediction made from
    the soft-masked input; gradients reach the network and the three scalars through the second pass only
    (arXiv 2510.17206, section 3.3).
    """
    x_t = corrupt(x0, draw.masked, mask_id)
    feedback = None
    if draw.two_pass:
        with torch.no_grad():
            feedback = model(x_t, draw.masked, observe=True).feedback
    return Loss.of(model(x_t, draw.masked, feedback, targets=x0[draw.masked], weight=weight), weight)


def negative_elbo(model: Denoises, x0: Tensor, draw: NoiseDraw, schedule: NoiseSchedule, mask_id: int) -> Loss:
    """Negative ELBO of `x0` (B, L) under one draw of the noise."""
    weight = schedule.weight(draw.t)
    if draw.correction is not None:
        weight = weight * draw.correction
    return masked_loss(model, x0, draw, mask_id, weight[:, None].expand_as(x0)[draw.masked])


def mean_cross_entropy(model: Denoises, x0: Tensor, draw: NoiseDraw, mask_id: int, shift: bool) -> Loss:
    """1/t times the mean over masked tokens of -log p (arXiv 2510.17206, section 3.3, and its released trainer).

    All rows have one t. With shifted logits the first position has no output that predicts it and is not scored.
    """
    scored = draw.masked.clone()
    if shift:
        scored[:, 0] = False
    weight = scored / (draw.t[:, None] * scored.sum().clamp(min=1))
    return masked_loss(model, x0, draw, mask_id, weight[draw.masked])


def next_token_loss(model: Denoises, x0: Tensor, start_id: int) -> Loss:
    """-log p of every token of `x0` (B, L) given those before it, and `start_id` before the first; their sum."""
    before = torch.cat([torch.full_like(x0[:, :1], start_id), x0[:, :-1]], 1)
    weight = torch.ones(x0.numel(), device=x0.device)
    every = torch.ones_like(x0, dtype=torch.bool)
    return Loss.of(model(before, every, targets=x0.flatten(), weight=weight), weight)


@dataclass(frozen=True)
class Objective:
    """What a run minimises: the noise it draws, and the loss of a micro-batch under it.

    Attributes:
        noise: the schedule that gives the masked share at t.
        times: smallest and largest t.
        is_mean: the rows of a micro-batch share one t and its loss is a mean (`code`); otherwise each row has its own t
            and the loss is a sum over tokens (`elbo`).
        is_causal: no noise; the sum over all tokens given those before (`ar`).
    """

    noise: NoiseSchedule
    times: tuple[float, float]
    is_mean: bool = False
    is_causal: bool = False

    def loss(self, model: Denoises, x0: Tensor, draw: NoiseDraw, mask_id: int, shift: bool) -> Loss:
        """The micro-batch's loss."""
        if self.is_causal:
            return next_token_loss(model, x0, mask_id)
        if self.is_mean:
            return mean_cross_entropy(model, x0, draw, mask_id, shift)
        return negative_elbo(model, x0, draw, self.noise, mask_id)


def objective(name: str, times: tuple[float, float], noise: str = "log-linear") -> Objective:
    """`elbo`, `ar`, or `code`, which masks a share of (1 - eps) t + eps as its reference does."""
    if name == "elbo":
        return Objective(SCHEDULES[noise], times)
    if name == "code":
        return Objective(_CODE, times, is_mean=True)
    if name == "ar":
        return Objective(SCHEDULES[noise], times, is_causal=True)
    raise ValueError(f"unknown objective {name!r}; known: elbo, code, ar")


_EPS = 1e-3
_CODE = NoiseSchedule(g=lambda t: t + _EPS / (1 - _EPS), dg=torch.ones_like, eps=_EPS)
