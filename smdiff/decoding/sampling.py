"""Drawing tokens: temperature, nucleus, top-k, and draws that follow the distribution exactly.

Noise comes from one generator per sample, so a text depends on (seed, its index) and not on the batch it shares.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from smdiff.diffusion.prediction import Prediction

# Tokens looked at first for a nucleus; if one is wider, more are looked at, and at last all.
_CANDIDATES = (32, 1024)


class Noise:
    """Uniform draws in float64, one independent stream for each row of a batch.

    Args:
        seed: seed of the whole call.
        rows: global indices of the batch's samples.
        padding: left padding of each row; a row's draws do not depend on it.
    """

    def __init__(self, seed: int, rows: Sequence[int], padding: Sequence[int] | None = None) -> None:
        self._generators = [torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63) for row in rows]
        self._padding = [0] * len(self._generators) if padding is None else padding

    def uniform(self, where: Tensor, alive: Tensor) -> Tensor:
        """(N,) draws for the true entries of `where` (B, L, bool), row-major.

        Only the streams of the rows in `alive` (B, bool) move on, so that a row which waits for the others of its
        batch draws what it would draw alone.
        """
        draws = torch.zeros(where.shape, dtype=torch.float64)
        for row in alive.nonzero()[:, 0].tolist():
            part = draws[row, self._padding[row] :]
            torch.rand(len(part), generator=self._generators[row], dtype=torch.float64, out=part)
        return draws.to(where.device)[where]


def nucleus(probs: Tensor, top_p: float, drop_crossing: bool = False) -> Tensor:
    """Probabilities in falling order (N, C), zero outside the smallest set whose mass reaches `top_p`. Not normalised.

    Args:
        drop_crossing: leave out the token that crosses `top_p` too, as MDLM's code does; for comparison only.
    """
    after = probs.cumsum(-1)
    outside = after > top_p if drop_crossing else after - probs >= top_p
    outside[..., 0] = False
    return probs.masked_fill(outside, 0.0)


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


class Filtered:
    """The distribution that tokens are drawn from: temperature, then top-p, then top-k (Dream's order).

    Without top-p and top-k it is the softmax over the whole vocabulary; with them only the candidates are kept,
    in falling order, so that nothing is sorted over the vocabulary unless a nucleus is as wide as that.

    Args:
        prediction: at N positions.
        temperature: 0 takes the most likely token, and confidences at temperature 1.
        top_p: mass of the nucleus; 1 keeps all tokens.
        top_k: most tokens kept; 0 keeps all.
    """

    def __init__(self, prediction: Prediction, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0) -> None:
        self.prediction = prediction
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self._scale = temperature or 1.0
        self._kept = self._candidates() if top_p < 1 or top_k else None

    def __getitem__(self, rows: Tensor) -> Filtered:
        """The distribution at some of the positions: `rows` is (N,) bool."""
        part = copy.copy(self)
        part.prediction = self.prediction[rows]
        part._kept = None if self._kept is None else (self._kept[0][rows], self._kept[1][rows])
        return part

    def _candidates(self) -> tuple[Tensor, Tensor]:
        """Renormalised probabilities (N, C) in falling order, 0 outside the filters, and their ids (N, C)."""
        vocabulary = self.prediction.logits.shape[-1]
        for size in (*_CANDIDATES, vocabulary):
            values, ids = self.prediction.top(size)
            probs = self._probability(values) if self.top_p < 1 else (values / self._scale).softmax(-1)
            # Enough is looked at where all of the nucleus is, or the k-th token and those that tie with it.
            enough = probs.sum(-1) >= self.top_p if self.top_p < 1 else torch.zeros_like(probs[:, 0], dtype=torch.bool)
            if 0 < self.top_k < size:
                enough = enough | (values[:, -1] < values[:, self.top_k - 1])
            if size >= vocabulary or bool(enough.all()):
                break
        if self.top_p < 1:
            probs = nucleus(probs, self.top_p)
        if 0 < self.top_k < probs.shape[-1]:
            probs = probs.masked_fill(values < values[:, self.top_k - 1 : self.top_k], 0.0)
        return probs / probs.sum(-1, keepdim=True), ids

    def _probability(self, logit: Tensor) -> Tensor:
        """(N, C) probabilities of tokens with these logits (N, C), without filters."""
        return (logit / self._scale - self.prediction.statistics(self._scale)[0][:, None]).exp()

    def greedy(self) -> tuple[Tensor, Tensor]:
        """The most likely tokens (N,) and their probabilities (N,)."""
        if self._kept is not None:
            return self._kept[1][:, 0], self._kept[0][:, 0]
        values, ids = self.prediction.top(1)
        return ids[:, 0], self._probability(values)[:, 0]

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N,) drawn with one float64 uniform `u` (N,) each, and their probabilities (N,)."""
        if self.temperature == 0:
            return self.greedy()
        if self._kept is not None:
            # By id, not by probability: rounding may swap two that are nearly equal, and with them the draw.
            ids, order = self._kept[1].sort(-1)
            probs = self._kept[0].gather(1, order)
            which = categorical(probs, u)[:, None]
            return ids.gather(1, which)[:, 0], probs.gather(1, which)[:, 0]
        probs = (self.prediction.logits.float() / self.temperature).softmax(-1)
        tokens = categorical(probs, u)
        return tokens, probs.gather(1, tokens[:, None])[:, 0]

    def margin(self) -> Tensor:
        """(N,) probability of the most likely token minus that of the next."""
        top = self._probability(self.prediction.top(2)[0]) if self._kept is None else self._kept[0][:, :2]
        return top[:, 0] - top[:, 1] if top.shape[1] > 1 else top[:, 0]

    def neg_entropy(self) -> Tensor:
        """(N,) sum p log p in nats: 0 is certain."""
        if self._kept is not None:
            return torch.special.xlogy(self._kept[0], self._kept[0]).sum(-1)
        return self.prediction.statistics(self._scale)[1]
