"""The forward process: how much is masked at time t, which t to train on, and the masking itself.

A token survives to time t with probability alpha(t) and is replaced by the mask token otherwise (method of
MDLM, arXiv 2406.07524, section 3). A schedule is written through the masked share m(t) = 1 - alpha(t), because
the weight of the negative ELBO, -alpha'(t) / (1 - alpha(t)), is then m'(t) / m(t).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha(t) = 1 - (1 - eps) g(t) for t in (0, 1], with g rising from 0 to 1.

    `eps` keeps alpha(1) above 0; it cancels in the weight.
    """

    g: Callable[[Tensor], Tensor]
    dg: Callable[[Tensor], Tensor]
    eps: float = 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is still visible at t. Any shape in, same shape out."""
        return 1 - (1 - self.eps) * self.g(t)

    def dalpha(self, t: Tensor) -> Tensor:
        """Time derivative of `alpha`."""
        return -(1 - self.eps) * self.dg(t)

    def weight(self, t: Tensor) -> Tensor:
        """-alpha'(t) / (1 - alpha(t)): what a masked token's -log p counts in the negative ELBO (1/t if log-linear)."""
        return self.dg(t) / self.g(t)


SCHEDULES: dict[str, NoiseSchedule] = {
    # Log-linear: the paper's, and the only one with a weight of exactly 1/t.
    "log-linear": NoiseSchedule(g=lambda t: t, dg=torch.ones_like),
    # Cosine and quadratic as in MD4 (arXiv 2406.04329, table 1): more time spent with little masked.
    "cosine": NoiseSchedule(
        g=lambda t: torch.sin(math.pi / 2 * t), dg=lambda t: math.pi / 2 * torch.cos(math.pi / 2 * t)
    ),
    "polynomial": NoiseSchedule(g=lambda t: t**2, dg=lambda t: 2 * t),
}


def sample_times(u: Tensor, t_min: float = 1e-3, t_max: float = 1.0, antithetic: bool = True) -> Tensor:
    """Times for the rows of one global batch from one uniform draw per row.

    Args:
        u: (n,) uniform draws in [0, 1), n the rows of the whole batch over all processes and micro-batches.
        antithetic: row i draws from its own stratum [i/n, (i+1)/n), so every batch covers the whole range
            (MDLM, section 3.5). False: independent draws.

    Returns:
        (n,) times in [t_min, t_max].
    """
    if antithetic:
        n = u.shape[0]
        u = (u / n + torch.arange(n, dtype=u.dtype, device=u.device) / n) % 1
    return (t_max - t_min) * u + t_min


def corrupt(x0: Tensor, masked: Tensor, mask_id: int) -> Tensor:
    """x_t: `x0` (B, L) with the mask token wherever `masked` (B, L, bool) is true."""
    return x0.masked_fill(masked, mask_id)


@dataclass(frozen=True)
class NoiseDraw:
    """All the randomness of one training step, for the rows that one forward pass holds.

    Attributes:
        t: (B,) times.
        masked: (B, L) bool, true where a token is replaced by the mask.
        two_pass: whether the step makes the gradient-free first pass of soft-masking.
        correction: (B,) what a row's terms are multiplied by in the ELBO, see `mask_some`; None for nothing.
    """

    t: Tensor
    masked: Tensor
    two_pass: bool
    correction: Tensor | None = None


def mask_some(u: Tensor, share: Tensor, maskable: Tensor, pick: Tensor) -> tuple[Tensor, Tensor]:
    """Mask each maskable token with probability `share`, and one of them where that masks none.

    Rows that got one mask come up more often than they should, by (1 - p)^n / n for each of their n tokens beside
    p (1 - p)^(n-1). Their terms times n p / (n p + 1 - p), and a sum over masked tokens has the expectation that it has
    without the repair.

    Args:
        u: (B, L) uniform draws.
        share: (B,) the probability p.
        maskable: (B, L) bool, at least one true in each row.
        pick: (B,) uniform draws, for the rows that need a mask.

    Returns:
        (B, L) bool, and (B,) the factor, 1 for rows with several masks.
    """
    masked = (u < share[:, None]) & maskable
    count = maskable.sum(1)
    rank = maskable.cumsum(1) - 1
    one = maskable & (rank == (pick * count).long()[:, None])
    masked = torch.where(masked.any(1, keepdim=True), masked, one)
    natural = share * count
    factor = natural / (natural + 1 - share)
    return masked, torch.where(masked.sum(1) == 1, factor, torch.ones_like(factor))


def draw_step(
    schedule: NoiseSchedule,
    *,
    seed: int,
    step: int,
    rows: int,
    length: int,
    part: slice = slice(None),
    p_two_pass: float = 0.0,
    t_min: float = 1e-3,
    t_max: float = 1.0,
    antithetic: bool = True,
    device: torch.device | str = "cpu",
    maskable: Tensor | None = None,
    one_time: bool = False,
) -> NoiseDraw:
    """The noise of optimiser step `step`: a function of (seed, step) alone.

    Every process draws the noise of the whole global batch (`rows` x `length`) on the CPU and keeps its `part`, so
    the result does not depend on how the batch is spread over processes, micro-batches or devices, and a
    resumed run repeats an uninterrupted one.

    Args:
        maskable: (B, L) bool for the rows of `part`, L <= `length`: only these are masked, at least one in each row;
            None masks anything, or nothing.
        one_time: all rows of `part` have the time of its first.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    two_pass = bool(torch.rand((), generator=generator) < p_two_pass)
    t = sample_times(torch.rand(rows, generator=generator), t_min, t_max, antithetic)
    # Shuffled over the rows, or the last micro-batch and the last process would always get the most masks.
    t = t[torch.randperm(rows, generator=generator)]
    u = torch.rand(rows, length, generator=generator)[part]
    t = t[part]
    if one_time:
        t = t[:1].expand(len(t))
    share = 1 - schedule.alpha(t)
    if maskable is None:
        return NoiseDraw(t.to(device), (u < share[:, None]).to(device), two_pass)
    pick = torch.rand(rows, generator=generator)[part]
    masked, correction = mask_some(u[:, : maskable.shape[1]], share, maskable.cpu(), pick)
    return NoiseDraw(t.to(device), masked.to(device), two_pass, correction.to(device))
