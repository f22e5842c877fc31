"""Drawing tokens: temperature, nucleus, and draws that follow the distribution exactly.

Noise comes from one generator per sample, so a text depends on (seed, its index) and not on the batch it shares.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Noise:
    """Uniform draws in float64, one independent stream for each row of a batch.

    Args:
        seed: seed of the whole call.
        rows: global indices of the batch's samples.
    """

    def __init__(self, seed: int, rows: range) -> None:
        self._generators = [torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63) for row in rows]

    def uniform(self, where: Tensor) -> Tensor:
        """(N,) draws for the true entries of `where` (B, L, bool), row-major."""
        shape = where.shape[1:]
        draws = [torch.rand(shape, generator=g, dtype=torch.float64) for g in self._generators]
        return torch.stack(draws).to(where.device)[where]


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Probabilities (N, V) cut to the smallest set of tokens whose mass reaches `top_p`, renormalised."""
    if top_p >= 1:
        return probs
    ordered, indices = probs.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(before >= top_p, 0.0)
    kept[:, 0] = ordered[:, 0]
    return torch.zeros_like(probs).scatter(-1, indices, kept / kept.sum(-1, keepdim=True))


def categorical(probs: Tensor, u: Tensor) -> Tensor:
    """Draw from each row of `probs` (N, V, need not sum to 1) with one float64 uniform `u` (N,): ids (N,).

    Inverts the cumulative distribution in float64. Gumbel noise in float32 would lower the temperature
    silently, because it loses the tail of a large vocabulary (arXiv 2409.02908).
    """
    cumulative = probs.double().cumsum(-1)
    target = u[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    # Rounding may put u * total on the total itself: the last token with any mass is then the answer.
    return torch.minimum(drawn, (cumulative < cumulative[:, -1:]).sum(-1))
