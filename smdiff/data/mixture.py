"""What a fine-tuning step gets: rows drawn from weighted sources, and filled up to one length."""

from __future__ import annotations

from typing import NamedTuple

import datasets
import numpy as np
import torch

from smdiff.data.packing import Shuffled
from smdiff.data.sft import Source

# Positions whose sources are drawn together.
_CHUNK = 4096


class Row(NamedTuple):
    """A row's tokens (L,) int64, the length of its prompt, and the fill that its batch gets if it comes first in it."""

    ids: np.ndarray
    prompt_length: int
    extra: int = 0


def valid_rows(sources: list[Source], limit: int) -> list[Row]:
    """At most `limit` held-out rows: each source's share by weight, one at least, spread evenly over the source."""
    counts = [0] * len(sources)
    for _ in range(min(limit, sum(len(s.valid) for s in sources))):
        left = [i for i, source in enumerate(sources) if counts[i] < len(source.valid)]
        counts[min(left, key=lambda i: (counts[i] > 0, (counts[i] + 0.5) / sources[i].weight))] += 1
    rows: list[Row] = []
    for source, count in zip(sources, counts, strict=True):
        taken = source.valid.select(np.linspace(0, len(source.valid) - 1, count).round().astype(int))
        rows += [Row(np.asarray(r["input_ids"], dtype=np.int64), r["prompt_length"]) for r in taken]
    return rows


class Mixture(torch.utils.data.Dataset):
    """`rows` training rows; the one at a position depends on (seed, position) alone, however many there are.

    A source is drawn by its weight and gives the next row of its permutation, as in `packing.Shuffled`.
    """

    def __init__(
        self, sources_train: list[datasets.Dataset], weights: list[float], rows: int, seed: int, max_extra: int = 0
    ) -> None:
        self.sources = [Shuffled(source, rows, seed) for source in sources_train]
        self.weights = np.asarray(weights, dtype=float) / sum(weights)
        self.rows, self.seed, self.max_extra = rows, seed, max_extra
        # How often each source (S,) was drawn before chunk 0, 1, ...
        self._before = [np.zeros(len(weights), dtype=np.int64)]
        self._chunk = -1

    def __len__(self) -> int:
        return self.rows

    def _enter(self, chunk: int) -> None:
        """Draw the sources of a chunk's positions (4096,), and count those drawn up to each (4096, S)."""
        self._draws = np.random.default_rng([self.seed, 7, chunk]).choice(len(self.weights), _CHUNK, p=self.weights)
        self._counts = self._before[chunk] + (self._draws[:, None] == np.arange(len(self.weights))).cumsum(0)
        if chunk + 1 == len(self._before):
            self._before.append(self._counts[-1].copy())  # a view would keep them all
        self._chunk = chunk

    def _place(self, position: int) -> tuple[int, int]:
        """The source at a position, and how often it was drawn before."""
        chunk, offset = divmod(position, _CHUNK)
        while chunk != self._chunk:
            self._enter(min(chunk, len(self._before) - 1))
        source = int(self._draws[offset])
        return source, int(self._counts[offset, source]) - 1

    def __getitems__(self, positions: list[int]) -> list[Row]:
        found: dict[int, Row] = {}
        places = [(position, *self._place(position)) for position in positions]
        for number, source in enumerate(self.sources):
            if own := [(position, source._index(rank)) for position, drawn, rank in places if drawn == number]:
                read = source.packed[[index for _, index in own]]
                for (position, _), ids, length in zip(own, read["input_ids"], read["prompt_length"], strict=True):
                    extra = np.random.default_rng([self.seed, 11, position]).integers(self.max_extra + 1)
                    found[position] = Row(np.asarray(ids, dtype=np.int64), int(length), int(extra))
        return [found[position] for position in positions]

    def __getitem__(self, position: int) -> Row:
        return self.__getitems__([position])[0]


class Collator:
    """Rows as one batch, filled up with `pad_id` to at most `limit` tokens, or the longest row's where that is more.

    With policy "learn" the fill is part of the response, so that the model learns to end; with "ignore" it is neither
    masked nor attended to.
    """

    def __init__(self, pad_id: int, policy: str, limit: int | None = None) -> None:
        self.pad_id, self.policy, self.limit = pad_id, policy, limit

    def _length(self, rows: list[Row]) -> int:
        longest = max(len(row.ids) for row in rows)
        extra = rows[0].extra if self.policy == "learn" else 0
        ends = self.policy == "learn" and (extra or any(row.prompt_length for row in rows))
        if not ends and all(len(row.ids) == longest for row in rows):
            return longest  # packed text
        filled = -(-(longest + extra) // 8) * 8
        return filled if self.limit is None else max(longest, min(filled, self.limit))

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """input_ids (B, L) int64, maskable (B, L) bool and, with "ignore" and a fill, valid (B, L) bool: no fill."""
        length = self._length(rows)
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.int64)
        for filled, row in zip(ids, rows, strict=True):
            filled[: len(row.ids)] = torch.from_numpy(row.ids)
        positions = torch.arange(length)
        maskable = positions >= torch.tensor([row.prompt_length for row in rows])[:, None]
        valid = positions < torch.tensor([len(row.ids) for row in rows])[:, None]
        if self.policy == "learn" or valid.all():
            return {"input_ids": ids, "maskable": maskable}
        return {"input_ids": ids, "maskable": maskable & valid, "valid": valid}
