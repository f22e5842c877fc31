"""The denoising loop, the only one: predict, let the scheduler reveal, feed the prediction back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from smdiff.decoding.sampling import Noise
from smdiff.decoding.schedulers import Scheduler, State
from smdiff.diffusion.soft_mask import progress_scale
from smdiff.models.denoiser import Denoiser


@dataclass(frozen=True)
class Step:
    """What a viewer sees after each step.

    Attributes:
        index: 0 for the first step.
        ids: (B, L) tokens after the step.
        nfe: forward passes so far.
    """

    index: int
    ids: Tensor
    nfe: int


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    ids: Tensor,
    scheduler: Scheduler,
    steps: int,
    noise: Noise,
    soft_mask: bool = False,
    soft_mask_schedule: str = "none",
) -> Iterator[Step]:
    """Fill the masks of `ids` (B, L) in `steps` steps, yielding the state after each (paper, section 3.4).

    The first step sees plain masks. With `soft_mask`, every later one sees, at the positions that stayed masked,
    the blend made from the step before. A step without any mask left costs nothing and is skipped. What the
    scheduler leaves masked at the end takes its most likely token, which costs one more pass.
    """
    masked = ids == denoiser.mask_id
    at_start = masked.sum(1)
    denoiser.nfe = 0
    feedback, scale = None, torch.ones(())
    for index, (t, s) in enumerate([*scheduler.timesteps(steps), (0.0, 0.0)]):
        if not masked.any():
            return
        logits = denoiser(ids, masked, feedback, scale)
        if index < steps:
            ids = scheduler.step(State(ids, masked, t, s, noise), logits)
        else:
            ids = ids.masked_scatter(masked, logits.argmax(-1))
        still = ids == denoiser.mask_id
        if soft_mask:
            assert denoiser.soft_mask is not None
            feedback = denoiser.soft_mask.observe(logits[still[masked]])
            # Progress is a row's own, so that a text does not depend on its batch.
            scale = progress_scale(soft_mask_schedule, still.sum(1) / at_start)[:, None].expand_as(still)[still]
        masked = still
        yield Step(index, ids, denoiser.nfe)
