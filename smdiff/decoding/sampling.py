"""Drawing tokens: temperature, nucleus, top-k, and draws that follow the distribution exactly.

Noise comes from one generator per sample, so a text depends on (seed, its index) and not on the batch it shares.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from smdiff.diffusion.prediction import Prediction, rows_at_once

# Tokens looked at first for a nucleus; if one is wider, more are looked at, and at last all.
_CANDIDATES = (32, 1024)
# Histogram of log p over which a wide nucleus is found: 32 nats below the largest, the rest in the last bin.
_BINS_PER_NAT, _BINS = 128, 4096


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


def wide_nucleus(probs: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest sets whose mass reaches `top_p`, of probabilities (N, V) in any order, without sorting them.

    A histogram over log p tells in which bin the mass crosses; only that bin is ordered. Tokens equal to the last one
    taken are taken too.

    Returns:
        Their probabilities and ids, two (N, C) in the order of the ids, with zeros behind them.
    """
    bins = (probs.amax(-1, keepdim=True) / probs).log_().mul_(_BINS_PER_NAT).clamp_(max=_BINS - 1).long()
    mass = torch.zeros(len(probs), _BINS, dtype=torch.float64, device=probs.device)
    mass.scatter_add_(1, bins, probs.double())
    after = mass.cumsum(-1)
    crossing = (after < top_p).sum(-1, keepdim=True).clamp(max=_BINS - 1)
    inside = probs.masked_fill(bins != crossing, 0.0)
    ordered = inside.topk(max(1, int((inside > 0).sum(-1).max()))).values
    before = (after - mass).gather(1, crossing) + ordered.double().cumsum(-1) - ordered
    last = ordered.gather(1, ((before < top_p) & (ordered > 0)).sum(-1, keepdim=True).clamp(min=1) - 1)
    kept = (bins < crossing) | ((inside >= last) & (inside > 0))
    row, column = kept.nonzero(as_tuple=True)
    count = kept.sum(-1)
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    width = int(count.max())
    out, ids = probs.new_zeros(len(probs), width), column.new_zeros(len(probs), width)
    out[row, place], ids[row, place] = probs[row, column], column
    return out, ids


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

    Without top-p and top-k it is the softmax over the whole vocabulary; with them only the candidates are kept, so
    that nothing is ever sorted over the vocabulary.

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
        self._found: tuple[Tensor, Tensor] | None = None

    def __getitem__(self, rows: Tensor) -> Filtered:
        """The distribution at some of the positions: `rows` is (N,) bool."""
        part = copy.copy(self)
        part.prediction = self.prediction[rows]
        part._found = None if self._found is None else (self._found[0][rows], self._found[1][rows])
        return part

    @property
    def _kept(self) -> tuple[Tensor, Tensor] | None:
        """What the filters keep, found when it is first asked for; None without filters."""
        if self._found is None and (self.top_p < 1 or 0 < self.top_k < self.prediction.logits.shape[-1]):
            self._found = self._candidates()
        return self._found

    def _candidates(self) -> tuple[Tensor, Tensor]:
        """Renormalised probabilities (N, C), 0 outside the filters, and their ids (N, C)."""
        top_k = min(self.top_k, self.prediction.logits.shape[-1])
        for size in _CANDIDATES:
            values, ids = self.prediction.top(size)
            probs = self._probability(values) if self.top_p < 1 else (values / self._scale).softmax(-1)
            # Enough is looked at where all of the nucleus is, or the k-th token and those that tie with it.
            enough = probs.sum(-1) >= self.top_p if self.top_p < 1 else torch.zeros_like(probs[:, 0], dtype=torch.bool)
            if 0 < top_k < values.shape[1]:
                enough = enough | (values[:, -1] < values[:, top_k - 1])
            if size >= self.prediction.logits.shape[-1] or bool(enough.all()):
                probs = nucleus(probs, self.top_p) if self.top_p < 1 else probs
                break
        else:
            probs, ids = self._wide(nucleus(probs, self.top_p), ids, ~enough)
        if 0 < top_k < probs.shape[-1]:
            probs = probs.masked_fill(probs < probs.topk(top_k).values[:, -1:], 0.0)
        return probs / probs.sum(-1, keepdim=True), ids

    def _wide(self, probs: Tensor, ids: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
        """`probs` and `ids` (N, C) with the rows of `wide` (N, bool) replaced by all of their nucleus."""
        part = self.prediction[wide]
        log_total = part.statistics(self._scale)[0]
        rows = rows_at_once(part.logits)
        found = [
            wide_nucleus((logits.float() / self._scale - total[:, None]).exp_(), self.top_p)
            for logits, total in zip(part.logits.split(rows), log_total.split(rows), strict=True)
        ]
        width = max(probs.shape[1], *(p.shape[1] for p, _ in found))
        probs, ids = (F.pad(x, (0, width - x.shape[1])) for x in (probs, ids))
        probs[wide] = torch.cat([F.pad(p, (0, width - p.shape[1])) for p, _ in found])
        ids[wide] = torch.cat([F.pad(i, (0, width - i.shape[1])) for _, i in found])
        return probs, ids

    def _probability(self, logit: Tensor) -> Tensor:
        """(N, C) probabilities of tokens with these logits (N, C), without filters."""
        return (logit / self._scale - self.prediction.statistics(self._scale)[0][:, None]).exp()

    def greedy(self) -> tuple[Tensor, Tensor]:
        """The most likely tokens (N,) and their probabilities (N,)."""
        if self._kept is not None:
            probs, which = self._kept[0].max(-1)
            return self._kept[1].gather(1, which[:, None])[:, 0], probs
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
        if self._kept is None:
            top = self._probability(self.prediction.top(2)[0])
        else:
            top = self._kept[0].topk(min(2, self._kept[0].shape[1])).values
        return top[:, 0] - top[:, 1] if top.shape[1] > 1 else top[:, 0]

    def neg_entropy(self) -> Tensor:
        """(N,) sum p log p in nats: 0 is certain."""
        if self._kept is not None:
            return torch.special.xlogy(self._kept[0], self._kept[0]).sum(-1)
        return self.prediction.statistics(self._scale)[1]
