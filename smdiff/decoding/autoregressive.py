"""Texts from an autoregressive model, one token after the other: the reference that the others are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from smdiff.decoding.sampling import Filtered, Noise
from smdiff.diffusion.prediction import Prediction
from smdiff.models.denoiser import Denoiser
from smdiff.models.dit import DiT


@torch.inference_mode()
def continue_from_start(
    denoiser: Denoiser,
    length: int,
    seed: int,
    rows: Sequence[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Tensor:
    """Texts (B, length) from nothing: as many forward passes as tokens, each over one position.

    Args:
        rows: numbers of the texts; a text depends on the seed and its number.
        temperature: 0 takes the likeliest token.
        top_p: mass of the nucleus; 1 keeps all tokens.
        advance: told after every pass how many tokens were written.
    """
    backbone = denoiser.backbone
    assert denoiser.causal
    assert isinstance(backbone, DiT)
    cache, noise = DynamicCache(), Noise(seed, rows)
    last = torch.full((len(rows), 1), denoiser.mask_id, device=denoiser.device)
    one, alive = torch.ones(last.shape, dtype=torch.bool), torch.ones(len(rows), dtype=torch.bool)
    written = []
    for place in range(length):
        position = torch.tensor([[place]], device=denoiser.device)
        hidden = backbone.encode(denoiser.embed(last, one), None, None, position, cache)[:, 0]
        denoiser.nfe += 1
        found = Filtered(Prediction(denoiser.logits(hidden)), temperature, top_p)
        last = found.draw(noise.uniform(one, alive).to(denoiser.device))[0][:, None]
        written.append(last)
        advance(len(rows))
    return torch.cat(written, 1)
