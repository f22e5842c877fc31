"""Perplexity from the negative ELBO, in one pass and in two, over draws that all models share.

A draw masks n tokens of a sequence of L, chosen uniformly, with n uniform on 1..L. Given n, the ELBO of the log-linear
schedule weighs the sequence's masked tokens by the integral over t of C(L, n) t^(n-1) (1-t)^(L-n) = 1/n times C(L, n)
over itself, so that

    -ELBO / L = E_n [ mean of -log p(x0 | x_t) over the n masked tokens ]

exactly (also LLaDA, arXiv 2502.09992, equation 6). Compared with drawing t and weighing by 1/t, no draw has a large
weight, and n is stratified over the draws of a sequence. Of an autoregressive model -log p itself is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smdiff.diffusion.noise import corrupt
from smdiff.diffusion.objective import next_token_loss
from smdiff.models.denoiser import Denoiser
from smdiff.ranks import gather, share, turns

_CONFIDENCE = 1.96


@dataclass(frozen=True)
class Mean:
    """A mean over sequences with its standard error, in nats a token."""

    mean: float
    standard_error: float
    n: int

    @classmethod
    def of(cls, values: Tensor, weights: Tensor | None = None) -> Mean:
        """From one value a sequence (S,), weighted by its number of tokens (S,) where sequences differ."""
        n, values = values.numel(), values.double()
        w = torch.ones_like(values) if weights is None else weights.double()
        w = w / w.sum()
        mean = float((w * values).sum())
        # The error of a ratio of two sums; with equal weights it is that of a mean.
        error = math.sqrt(float((w * (values - mean)).square().sum()) * n / (n - 1)) if n > 1 else math.nan
        return cls(mean, error, n)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, from the normal distribution."""
        return self.mean - _CONFIDENCE * self.standard_error, self.mean + _CONFIDENCE * self.standard_error

    @property
    def perplexity(self) -> float:
        """exp of the mean; of a negative ELBO it is an upper bound of the perplexity."""
        return math.exp(self.mean) if self.mean < 700 else math.inf


@dataclass(frozen=True)
class Elbo:
    """Negative ELBO of each of S sequences, in nats a token.

    Attributes:
        one_pass: (S,) from plain masks.
        two_pass: (S,) with the second, soft-masked pass; None for a binary model.
    """

    one_pass: Tensor
    two_pass: Tensor | None

    @property
    def bound(self) -> Tensor:
        """The model's own bound: two passes if it has soft-mask scalars."""
        return self.one_pass if self.two_pass is None else self.two_pass


def mask_draws(maskable: Tensor, draws: int, seed: int, times: tuple[float, float] = (0.0, 1.0)) -> Iterator[Tensor]:
    """`draws` masks (S, L, bool) of `maskable` (S, L, bool), the same for every model that asks with the same numbers.

    Over the draws of one sequence the masked share is stratified over `times`.
    """
    generator = torch.Generator().manual_seed(seed)
    total = maskable.sum(1)
    offset = torch.rand(len(maskable), generator=generator)
    low, high = times
    for draw in range(draws):
        share = low + (high - low) * (offset + draw) / draws
        count = torch.minimum((share * total).long() + 1, total)
        order = torch.rand(maskable.shape, generator=generator).masked_fill(~maskable, torch.inf)
        yield (order.argsort(1).argsort(1) < count[:, None]) & maskable


@dataclass(frozen=True)
class HeldOut:
    """Sequences to score.

    Attributes:
        ids: (S, L) tokens.
        maskable: (S, L, bool) the tokens that are scored (a response's); None for all.
        valid: (S, L, bool) false at padding on the right, which nothing sees; None for none.
    """

    ids: Tensor
    maskable: Tensor | None = None
    valid: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)


@torch.no_grad()
def elbo(
    denoiser: Denoiser,
    x0: Tensor | HeldOut,
    *,
    draws: int = 8,
    seed: int = 0,
    batch_size: int = 32,
    times: tuple[float, float] = (0.0, 1.0),
    advance: Callable[[int], None] = lambda sequences: None,
) -> Elbo:
    """Negative ELBO of sequences `x0` (S, L) under `denoiser`, each over `draws` masks.

    A soft-masked model gives both figures from two passes: the first pass is the one-pass estimate. An autoregressive
    model needs no masks: its -log p is exact.

    Args:
        times: masked shares to average over; the ELBO is over all of them.
        advance: told how many (sequence, draw) pairs were just scored.
    """
    data = x0 if isinstance(x0, HeldOut) else HeldOut(x0)
    if denoiser.causal:
        return Elbo(_exact(denoiser, data.ids, batch_size, lambda rows: advance(draws * rows)), None)
    maskable = torch.ones_like(data.ids, dtype=torch.bool) if data.maskable is None else data.maskable
    sums = torch.zeros(2, len(data), dtype=torch.float64)
    soft = denoiser.soft_mask is not None
    training, device = denoiser.training, denoiser.device
    denoiser.eval()
    for masks in mask_draws(maskable, draws, seed, times):
        for turn in turns(range(0, len(data), batch_size)):
            start, counts = share(turn)
            part = slice(start, start + batch_size)
            x, masked, valid = data.ids[part], masks[part], None
            if data.valid is not None:
                longest = int(data.valid[part].sum(1).max())
                x, masked, valid = x[:, :longest], masked[:, :longest], data.valid[part, :longest].to(device)
            x, masked = x.to(device), masked.to(device)
            x_t, targets = corrupt(x, masked, denoiser.mask_id), x[masked]
            first = denoiser(x_t, masked, targets=targets, observe=soft, valid=valid)
            scores = [first.nll]
            if soft:
                scores.append(denoiser(x_t, masked, first.feedback, targets=targets, valid=valid).nll)
            for row, score in enumerate(scores if counts else ()):
                assert score is not None
                per_token = torch.zeros(x.shape, device=device).masked_scatter(masked, score)
                sums[row, part] += (per_token.sum(1) / masked.sum(1)).double().cpu()
            advance(len(data.ids[turn[0] : turn[-1] + batch_size]))
    denoiser.train(training)
    sums = torch.stack(gather(sums)).sum(0)
    return Elbo(sums[0] / draws, sums[1] / draws if soft else None)


def _exact(denoiser: Denoiser, ids: Tensor, batch_size: int, advance: Callable[[int], None]) -> Tensor:
    """(S,) -log p of sequences (S, L) in nats a token under an autoregressive model."""
    training, found = denoiser.training, []
    denoiser.eval()
    for turn in turns(ids.split(batch_size)):
        x, _ = share(turn)
        nll = next_token_loss(denoiser, x.to(denoiser.device), denoiser.mask_id).nll
        found += gather(nll.view(x.shape).double().mean(1).cpu())[: len(turn)]
        advance(sum(map(len, turn)))
    denoiser.train(training)
    return torch.cat(found)


def verdict(difference: Mean) -> str:
    """What a paired difference allows to say: below or above 0, or neither."""
    low, high = difference.interval
    if math.isnan(low):
        return "one sequence only"
    return "lower" if high < 0 else "higher" if low > 0 else "within noise"


def bytes_per_token(texts: list[str], tokens: int) -> float:
    """UTF-8 bytes a token, to compare models of different tokenizers."""
    return float(np.sum([len(text.encode("utf-8", "replace")) for text in texts])) / tokens
