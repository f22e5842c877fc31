"""Perplexity from the negative ELBO, in one pass and in two, over draws that all models share.

A draw masks n tokens of a sequence of L, chosen uniformly, with n uniform on 1..L. Given n, the ELBO of the log-linear
schedule weighs the sequence's masked tokens by the integral over t of C(L, n) t^(n-1) (1-t)^(L-n) = 1/n times C(L, n)
over itself, so that

    -ELBO / L = E_n [ mean of -log p(x0 | x_t) over the n masked tokens ]

exactly (also LLaDA, arXiv 2502.09992, equation 6). Compared with drawing t and weighing by 1/t, no draw has a large
weight, and n is stratified over the draws of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smdiff.diffusion.noise import corrupt
from smdiff.diffusion.soft_mask import Feedback
from smdiff.models.denoiser import Denoiser

# Elements of one block of logits: small enough to stay in the cache, and in memory with a large vocabulary.
_LOGITS_AT_ONCE = 2**22
_CONFIDENCE = 1.96


@dataclass(frozen=True)
class Mean:
    """A mean over sequences with its standard error, in nats a token."""

    mean: float
    standard_error: float
    n: int

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """From one value a sequence (S,)."""
        n = values.numel()
        error = float(values.double().std() / math.sqrt(n)) if n > 1 else math.nan
        return cls(float(values.double().mean()), error, n)

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


def mask_draws(sequences: int, length: int, draws: int, seed: int) -> Iterator[Tensor]:
    """`draws` masks (S, L, bool), the same for every model that asks with the same numbers.

    Over the draws of one sequence the masked count is stratified over 1..L.
    """
    generator = torch.Generator().manual_seed(seed)
    offset = torch.rand(sequences, generator=generator)
    for draw in range(draws):
        count = ((offset + draw) / draws * length).long().clamp(max=length - 1) + 1
        rank = torch.rand(sequences, length, generator=generator).argsort(1).argsort(1)
        yield rank < count[:, None]


def _score(denoiser: Denoiser, hidden: Tensor, targets: Tensor, observe: bool) -> tuple[Tensor, Feedback | None]:
    """-log p of `targets` (N,) from hidden states (N, D), and the feedback; logits exist for a block at a time."""
    rows = max(1, _LOGITS_AT_ONCE // denoiser.vocab_size)
    nll, parts = [], []
    for h, y in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = denoiser.logits(h).float()
        nll.append(F.cross_entropy(logits, y, reduction="none"))
        if observe:
            assert denoiser.soft_mask is not None
            parts.append(denoiser.soft_mask.observe(logits))
    if not observe:
        return torch.cat(nll), None
    fields = zip(*((p.logits, p.indices, p.neg_entropy) for p in parts), strict=True)
    return torch.cat(nll), Feedback(*(None if f[0] is None else torch.cat(f) for f in fields))


@torch.no_grad()
def elbo(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    draws: int = 8,
    seed: int = 0,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda sequences: None,
) -> Elbo:
    """Negative ELBO of sequences `x0` (S, L) under `denoiser`, each over `draws` masks.

    A soft-masked model gives both figures from two passes: the first pass is the one-pass estimate.

    Args:
        advance: told how many (sequence, draw) pairs were just scored.
    """
    total, length = x0.shape
    sums = torch.zeros(2, total, dtype=torch.float64)
    soft = denoiser.soft_mask is not None
    training, device = denoiser.training, denoiser.device
    denoiser.eval()
    for masks in mask_draws(total, length, draws, seed):
        for start in range(0, total, batch_size):
            part = slice(start, start + batch_size)
            x, masked = x0[part].to(device), masks[part].to(device)
            x_t, targets = corrupt(x, masked, denoiser.mask_id), x[masked]
            nll, feedback = _score(denoiser, denoiser.hidden(x_t, masked), targets, observe=soft)
            scores = [nll]
            if feedback is not None:
                scores.append(_score(denoiser, denoiser.hidden(x_t, masked, feedback), targets, observe=False)[0])
            for row, score in enumerate(scores):
                per_token = torch.zeros(x.shape, device=device).masked_scatter(masked, score)
                sums[row, part] += (per_token.sum(1) / masked.sum(1)).double().cpu()
            advance(len(x))
    denoiser.train(training)
    return Elbo(sums[0] / draws, sums[1] / draws if soft else None)


def verdict(difference: Mean) -> str:
    """What a paired difference allows to say: below or above 0, or neither."""
    low, high = difference.interval
    if math.isnan(low):
        return "one sequence only"
    return "lower" if high < 0 else "higher" if low > 0 else "within noise"


def bytes_per_token(texts: list[str], tokens: int) -> float:
    """UTF-8 bytes a token, to compare models of different tokenizers."""
    return float(np.sum([len(text.encode("utf-8", "replace")) for text in texts])) / tokens
