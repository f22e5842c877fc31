"""A prediction at N masked positions, and the few numbers that everything else asks of it.

Schedulers and soft-masking need the most likely tokens and the entropy. Both read the same (N, V) logits, which at a
vocabulary of 150,000 cost as much to pass over as a layer of the network, so each number is computed once, and only
when it is asked for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Width of the blocks whose maxima are searched first.
_BLOCK = 64
# Entries worked on at once: on a CPU (True) what stays in a core's cache from one operation to the next.
_AT_ONCE = {True: 2**19, False: 2**26}

FORBIDDEN = -1e30
"""Logit of a token that can never be chosen. Finite, because 0 times -inf is not 0."""


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row of (N, V) and their indices, in falling order, the lower id first among equals.

    The k largest entries lie in the k blocks with the largest maxima, so a fast maximum over blocks followed by a
    top-k among k blocks is exact and about twice as fast as torch.topk on a CPU.
    """
    n, v = logits.shape
    blocks = v // _BLOCK
    if logits.device.type != "cpu" or blocks <= 4 * k or n == 0:
        return _in_order(*(logits.topk(k) if k > 1 else logits.max(-1, keepdim=True)))
    body = logits[:, : blocks * _BLOCK].view(n, blocks, _BLOCK)
    best = body.amax(-1).topk(k).indices if k > 1 else body.amax(-1).argmax(-1, keepdim=True)
    candidates = body.gather(1, best[..., None].expand(-1, -1, _BLOCK)).flatten(1)
    if v % _BLOCK:  # what is left of the vocabulary is a block of its own
        candidates = torch.cat([candidates, logits[:, blocks * _BLOCK :]], 1)
        best = F.pad(best, (0, 1), value=blocks)
    values, where = candidates.topk(k) if k > 1 else candidates.max(-1, keepdim=True)
    return _in_order(values, best.gather(1, where // _BLOCK) * _BLOCK + where % _BLOCK)


def _in_order(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Among equal values the lower id first, as argmax has it."""
    if values.is_cpu and not (values[:, 1:] == values[:, :-1]).any():  # elsewhere looking would be waiting
        return values, ids
    ids, order = ids.sort(-1)
    values, again = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, again)


def rows_at_once(logits: Tensor) -> int:
    """How many rows of (N, V) to work on at once."""
    return max(1, _AT_ONCE[logits.device.type == "cpu"] // logits.shape[-1])


def statistics(logits: Tensor, temperature: float = 1.0, largest: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(N,) log sum exp(l) and (N,) sum p log p in nats, for l = logits (N, V) / temperature and p = softmax(l).

    A few rows at a time, in buffers that stay in the cache; softmax has the fastest exponential of all kernels.

    Args:
        logits: finite.
        largest: (N,) the largest logit of each row, if it is known.
    """
    largest = logits.amax(-1).float() if largest is None else largest
    n, v = logits.shape
    rows = max(1, min(n, rows_at_once(logits)))
    shifted, p = (torch.empty(rows, v, device=logits.device) for _ in range(2))
    log_total, neg_entropy = (torch.empty(n, device=logits.device) for _ in range(2))
    for start in range(0, n, rows):
        part, top = logits[start : start + rows].float(), largest[start : start + rows]
        z = torch.sub(part, top[:, None], out=shifted[: len(part)])
        if temperature != 1:
            # e^-80 of the largest is nothing in float32; below that come denormal numbers, which are slow.
            z.div_(temperature).clamp_(min=-80.0)
        torch.softmax(z, -1, out=p[: len(part)])
        total = -p[: len(part)].amax(-1).log()  # the largest has z = 0
        log_total[start : start + rows] = total + top / temperature
        neg_entropy[start : start + rows] = z.mul_(p[: len(part)]).sum(-1) - total
    return log_total, neg_entropy


class Prediction:
    """Logits (N, V) and, computed once each when asked for, their top entries and entropies.

    Args:
        logits: (N, V), finite; `FORBIDDEN` at tokens that can never be chosen.
    """

    def __init__(self, logits: Tensor | None, source: tuple[Prediction, Tensor] | None = None) -> None:
        self._logits, self._source = logits, source
        self._top: tuple[Tensor, Tensor] | None = None
        self._statistics: dict[float, tuple[Tensor, Tensor]] = {}

    @property
    def logits(self) -> Tensor:
        """(N, V); rows of another prediction are copied only when they are looked at."""
        if self._logits is None:
            assert self._source is not None
            self._logits = self._source[0].logits[self._source[1]]
        return self._logits

    def __getitem__(self, rows: Tensor) -> Prediction:
        """The prediction at some of the positions: `rows` is (N,) bool."""
        part = Prediction(None, (self, rows))
        if self._top is not None:
            part._top = (self._top[0][rows], self._top[1][rows])
        part._statistics = {t: (total[rows], entropy[rows]) for t, (total, entropy) in self._statistics.items()}
        return part

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k largest logits in float32, in falling order, and their token ids: two (N, k)."""
        if self._top is None or self._top[0].shape[1] < min(k, self.logits.shape[-1]):
            values, indices = top_k(self.logits, min(k, self.logits.shape[-1]))
            self._top = values.float(), indices
        return self._top[0][:, :k], self._top[1][:, :k]

    def probability(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """(M,) the model's probability of `tokens` (M,) at the M true entries of `rows` (N, bool)."""
        log_total = self[rows].statistics()[0]
        return (self.logits[rows.nonzero()[:, 0], tokens].float() - log_total).exp()

    def statistics(self, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """(N,) log-normaliser and (N,) sum p log p of softmax(logits / temperature)."""
        if temperature not in self._statistics:
            largest = None if self._top is None else self._top[0][:, 0]
            self._statistics[temperature] = statistics(self.logits, temperature, largest)
        return self._statistics[temperature]
