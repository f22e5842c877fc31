"""The training objective: the negative ELBO of masked diffusion in one pass, or in the two passes of soft-masking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from smdiff.diffusion.noise import NoiseDraw, NoiseSchedule, corrupt
from smdiff.diffusion.soft_mask import Feedback, SoftMask


class Denoises(Protocol):
    """What the objective asks of a model: logits at masked positions, from ids and, maybe, feedback."""

    def __call__(self, ids: Tensor, masked: Tensor, feedback: Feedback | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Loss:
    """Per-token terms at the N masked positions of one batch.

    Attributes:
        nll: (N,) -log p(x0 | x_t) in nats.
        weight: (N,) its weight in the negative ELBO, 1/t for the log-linear schedule.
    """

    nll: Tensor
    weight: Tensor

    def total(self) -> Tensor:
        """The negative ELBO of the batch in nats, summed over its tokens (visible tokens contribute 0)."""
        return (self.nll * self.weight).sum()


def negative_elbo(
    model: Denoises,
    x0: Tensor,
    draw: NoiseDraw,
    schedule: NoiseSchedule,
    mask_id: int,
    soft_mask: SoftMask | None = None,
) -> Loss:
    """Negative ELBO of `x0` (B, L) under one draw of the noise (method of arXiv 2510.17206, section 3.3).

    A two-pass draw first predicts from plain masks without gradient, then takes the loss of the prediction made from
    the soft-masked input; gradients reach the network and the three scalars through the second pass only.
    """
    x_t = corrupt(x0, draw.masked, mask_id)
    feedback = None
    if draw.two_pass:
        if soft_mask is None:
            raise ValueError("a two-pass step needs a soft mask")
        with torch.no_grad():
            feedback = soft_mask.observe(model(x_t, draw.masked))
    logits = model(x_t, draw.masked, feedback)
    nll = F.cross_entropy(logits.float(), x0[draw.masked], reduction="none")
    weight = schedule.weight(draw.t)[:, None].expand_as(x0)[draw.masked]
    return Loss(nll, weight)
