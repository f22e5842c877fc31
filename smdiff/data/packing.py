"""Documents as sequences of one length: joined with end-of-text between them and cut, with nothing padded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from smdiff.data.hub import Documents
from smdiff.errors import UserError

# Documents joined at a time; what is left of less than one sequence at the end of each group is dropped.
_GROUP = 1000


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Iterator[list[int]]:
    """Ids of each text, whole, with no special tokens: the letters "<|mask|>" in a text are letters."""
    if not tokenizer.is_fast:
        encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return iter(encoded["input_ids"])
    # The backend alone, without the offsets and masks that nobody reads here, is several times faster.
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return (e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False))


def pack(documents: Documents, tokenizer: PreTrainedTokenizerBase, length: int, name: str) -> Documents:
    """Sequences of exactly `length` tokens in a column "input_ids".

    Raises:
        UserError: all the documents together are shorter than one sequence.
    """
    end = tokenizer.eos_token_id

    def group(batch: dict[str, list[str]]) -> dict[str, np.ndarray]:
        pieces = [piece for ids in _encode(tokenizer, batch["text"]) for piece in (ids, [end])]
        tokens = np.concatenate([np.asarray(piece, dtype=np.int32) for piece in pieces])
        whole = len(tokens) // length * length
        return {"input_ids": tokens[:whole].reshape(-1, length)}

    packed = documents.map(group, batched=True, batch_size=_GROUP, remove_columns=["text"])
    if isinstance(packed, datasets.Dataset) and len(packed) == 0:
        raise UserError(
            name, f"the text is shorter than one sequence of {length} tokens", "Add text, or lower --length."
        )
    return packed


def sequences(packed: Documents, limit: int) -> torch.Tensor:
    """At most `limit` sequences (S, L), for evaluation: spread evenly over a table, the first of a stream."""
    taken = (
        packed.take(limit)
        if isinstance(packed, datasets.IterableDataset)
        else (packed.select(np.linspace(0, len(packed) - 1, min(limit, len(packed))).round().astype(int)))
    )
    return torch.tensor(np.array([row["input_ids"] for row in taken]), dtype=torch.long)


class Shuffled(torch.utils.data.Dataset):
    """`rows` training rows in an order that depends on (seed, position) alone.

    One long pass instead of epochs: row i comes from a permutation of the data that is drawn anew every time the
    data has been seen once, so a resumed run and runs of other lengths see the same data at the same step.
    """

    def __init__(self, packed: datasets.Dataset, rows: int, seed: int) -> None:
        self.packed = packed.with_format("numpy")
        self.rows, self.seed = rows, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.rows

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.packed))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.packed))
        return int(self._order[offset])

    def __getitems__(self, positions: list[int]) -> list[np.ndarray]:
        return list(self.packed[[self._index(i) for i in positions]]["input_ids"])

    def __getitem__(self, position: int) -> np.ndarray:
        return self.__getitems__([position])[0]


class Streamed(torch.utils.data.IterableDataset):
    """Training rows from a stream, through a shuffle buffer, started over for as long as rows are asked for."""

    def __init__(self, packed: datasets.IterableDataset, seed: int, buffer: int = 10_000) -> None:
        self.packed = packed.shuffle(seed=seed, buffer_size=buffer)

    def __iter__(self) -> Iterator[np.ndarray]:
        epoch = 0
        while True:
            self.packed.set_epoch(epoch)
            seen = False
            for row in self.packed:
                seen = True
                yield np.asarray(row["input_ids"])
            if not seen:
                raise UserError("the stream", "it ended before one sequence was full", "Add text, or lower --length.")
            epoch += 1


def collate(rows: list[np.ndarray]) -> dict[str, Any]:
    """Rows of one length as a batch: input_ids (B, L)."""
    return {"input_ids": torch.from_numpy(np.stack(rows).astype(np.int64))}
