"""What happened to one text, step by step, in plain Python values: for viewers and `--history`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from smdiff.decoding.denoise import Step

_CANDIDATES = 3


@dataclass(frozen=True)
class Frame:
    """One text after one step. The lists have one entry a position, left padding left out.

    Attributes:
        text: index of the text.
        step: 0 for the first step; -1 for the start.
        nfe: forward passes of its batch so far.
        ids: tokens.
        pieces: what each token writes; "" at masks.
        masked: still to fill.
        given: part of the prompt.
        confidence: of a mask, the probability of its likeliest token when it was last predicted (0 before); of a
            written token, its probability when it was revealed; of a given one, 1.
        candidates: for each mask that was predicted, by position: its likeliest tokens and their probabilities.
        soft: whether the candidates are fed back into the masks.
    """

    text: int
    step: int
    nfe: int
    ids: list[int]
    pieces: list[str]
    masked: list[bool]
    given: list[bool]
    confidence: list[float]
    candidates: dict[int, list[tuple[str, float]]]
    soft: bool


class Recorder:
    """Turns the steps of one batch into frames.

    Args:
        tokenizer: to write tokens as text.
        ids: (B, L) the start.
        mask_id: id of the mask token.
        texts: index of each row's text.
        padding: left padding of each row.
        soft: whether predictions are fed back.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ids: Tensor,
        mask_id: int,
        texts: list[int],
        padding: list[int],
        soft: bool,
    ) -> None:
        self._given = ids != mask_id
        self._texts, self._padding, self._soft = texts, padding, soft
        self._piece: Callable[[int], str] = functools.cache(lambda token: tokenizer.decode([token]))
        self._probs = torch.zeros(*ids.shape, _CANDIDATES)
        self._ids = torch.zeros(*ids.shape, _CANDIDATES, dtype=torch.long)
        self._masked, self._written = ~self._given.cpu(), ids.cpu()

    def frames(self, step: Step) -> Iterator[Frame]:
        """One frame for each row of the batch."""
        where = step.where.cpu()
        if where.any():
            values, ids = step.prediction.top(_CANDIDATES)
            probs = (values - step.prediction.statistics()[0][:, None]).exp()
            k = values.shape[1]
            self._probs[where, :k], self._ids[where, :k] = probs.cpu(), ids.cpu()
        masked = step.masked.cpu()
        again = (
            masked & ~self._masked
        )  # remasked: what is fed back there, if anything, is the token that was taken away
        self._probs[again] = torch.eye(_CANDIDATES)[0] * self._soft
        self._ids[again, 0] = self._written[again]
        self._masked, self._written = masked, step.ids.cpu()
        confidence = torch.where(masked, self._probs[..., 0], step.confidence.cpu())
        confidence = confidence.masked_fill(self._given.cpu(), 1.0)
        for row, (text, pad) in enumerate(zip(self._texts, self._padding, strict=True)):
            hidden = masked[row, pad:].tolist()
            ids = step.ids[row, pad:].tolist()
            yield Frame(
                text,
                step.index,
                step.nfe,
                ids,
                ["" if m else self._piece(i) for i, m in zip(ids, hidden, strict=True)],
                hidden,
                self._given[row, pad:].tolist(),
                [round(c, 4) for c in confidence[row, pad:].tolist()],
                {
                    i: self._leading(row, pad + i)
                    for i, m in enumerate(hidden)
                    if m and self._probs[row, pad + i, 0] > 0
                },
                self._soft,
            )

    def _leading(self, row: int, column: int) -> list[tuple[str, float]]:
        pairs = zip(self._ids[row, column].tolist(), self._probs[row, column].tolist(), strict=True)
        return [(self._piece(i), round(p, 4)) for i, p in pairs if p > 0]
