"""The denoising loop, the only one: predict, let the scheduler reveal, feed the prediction back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smdiff.decoding.blocks import Block
from smdiff.decoding.sampling import Noise
from smdiff.decoding.schedulers import Move, Scheduler, State
from smdiff.diffusion.prediction import FORBIDDEN, Prediction
from smdiff.diffusion.soft_mask import Memory, progress_scale
from smdiff.models.cache import BlockCache
from smdiff.models.denoiser import Denoiser


@dataclass(frozen=True)
class Step:
    """What a viewer sees after each step.

    Attributes:
        index: 0 for the first step.
        ids: (B, L) tokens after the step.
        masked: (B, L) bool, what is still to fill.
        confidence: (B, L) the model's probability of each token when it was revealed; 0 where it revealed none.
        nfe: forward passes so far.
        where: (B, L) bool, the N positions that this step predicted.
        prediction: at those positions.
    """

    index: int
    ids: Tensor
    masked: Tensor
    confidence: Tensor
    nfe: int
    where: Tensor
    prediction: Prediction


@dataclass(frozen=True)
class Options:
    """How the loop runs, whatever the scheduler.

    Attributes:
        soft_mask: feed predictions back into the positions that stay masked.
        soft_mask_schedule: factor on lambda over progress: none, linear or step.
        cache: what is kept between the steps of a block: "none", "prefix" (all before it) or "dual" (also all after).
        refresh: steps between two passes over everything; 0 makes one at the start of each block.
        guidance: classifier-free, 0 for none: away from what the model says without the prompt. Doubles the passes.
        ends: ids that end a text.
        stop: a row is done when everything before its first end is decided.
        suppress_ends: no end is drawn at so many first new positions.
        overlap: with shifted logits, compute the position before the block too, which predicts its first. False is what
            Fast-dLLM does; only comparisons with it use that.
    """

    soft_mask: bool = False
    soft_mask_schedule: str = "none"
    cache: str = "none"
    refresh: int = 0
    guidance: float = 0.0
    ends: Sequence[int] = ()
    stop: bool = False
    suppress_ends: int = 0
    overlap: bool = True


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    ids: Tensor,
    scheduler: Scheduler,
    steps: int,
    noise: Noise,
    options: Options | None = None,
    *,
    blocks: Sequence[Block] | None = None,
    valid: Tensor | None = None,
) -> Iterator[Step]:
    """Fill the masks of `ids` (B, L), yielding the state after each step (paper, section 3.4).

    The first step sees plain masks. With soft-masking, every later one sees, at the positions that stayed masked, the
    blend made from the last prediction there. What the scheduler leaves masked at the end of a block takes its
    most likely token, which costs one more pass.

    Args:
        steps: over all blocks; schedulers that take as many as they need ignore it.
        blocks: columns to fill one after the other; by default all at once.
        valid: (B, L, bool) false at left padding; None for none.
    """
    run = _Run(denoiser, ids, scheduler, noise, options or Options(), valid)
    for block in blocks or [Block(0, ids.shape[1], steps)]:
        yield from run.fill(block)


@dataclass
class _Run:
    """The state of one call: what is written, and what each position last heard."""

    denoiser: Denoiser
    ids: Tensor
    scheduler: Scheduler
    noise: Noise
    options: Options
    valid: Tensor | None

    def __post_init__(self) -> None:
        self.denoiser.nfe = 0
        self.index = 0
        self.soft_mask = self.denoiser.soft_mask if self.options.soft_mask else None
        if self.options.soft_mask and self.soft_mask is None:
            raise ValueError("soft-masking was asked of a model without soft-mask scalars")
        device = self.ids.device
        self.writable = self.ids == self.denoiser.mask_id
        self.masked = self.writable
        self.at_start = self.masked.sum(1)
        self.confidence = torch.zeros(self.ids.shape, device=device)
        self.memory = Memory(self.ids.shape, device)
        self.ends = torch.tensor(list(self.options.ends), dtype=torch.long, device=device)
        self.endless = self.writable & (self.writable.cumsum(1) <= self.options.suppress_ends)

    def fill(self, block: Block) -> Iterator[Step]:
        """All steps of one block."""
        cache = None
        last = (0.0, 0.0)  # whatever is left takes its most likely token
        for index, (t, s) in enumerate(itertools.chain(self.scheduler.timesteps(block.steps), [last])):
            inside = torch.zeros_like(self.masked)
            inside[:, block.start : block.end] = True
            active, deciding = self.masked & inside, index < block.steps or self.scheduler.adaptive
            if not active.any() and not (self.scheduler.remasks and deciding):
                return
            cache = self._cache(block, index, cache)
            alive = active.any(1) | self.scheduler.remasks
            state = State(
                self.ids, active, self.writable & inside, self.confidence, index, block.steps, t, s, self.noise, alive
            )
            where = self.scheduler.plan(state) if deciding else active
            asked = self._asked(where, active, cache)
            prediction = self._predict(asked, cache)
            mine = prediction
            if not torch.equal(asked, where):
                if self.soft_mask is not None:
                    prediction.statistics()  # of all before a part is taken, so that the part has them too
                mine = prediction[where[asked]]
            move = self.scheduler.step(state, where, mine) if deciding else Move(where, mine.top(1)[1][:, 0])
            self._apply(move, asked, prediction)
            yield Step(self.index, self.ids, self.masked, self.confidence, self.denoiser.nfe, asked, prediction)
            self.index += 1

    def _cache(self, block: Block, index: int, cache: BlockCache | None) -> BlockCache | None:
        """The cache of this step's pass: a new one where it is time for a full pass, narrowed in between."""
        every = self.options.refresh
        if self.options.cache == "none":
            return None
        if cache is None or not cache.filled or (every and index % every == 0):
            return BlockCache()
        start = max(block.start - (self.denoiser.shift and self.options.overlap), 0)
        cache.narrow(start, None if self.options.cache == "prefix" else block.end)
        return cache

    def _asked(self, where: Tensor, active: Tensor, cache: BlockCache | None) -> Tensor:
        """The positions to predict: what the scheduler needs, and with soft-masking all that may stay masked.

        Feedback outside the block is renewed by passes over everything only; the keys and values that the cache holds
        were made with it.
        """
        if self.soft_mask is None:
            return where
        everything = cache is None or not cache.filled
        return self.masked & active.any(1)[:, None] if everything else active

    def _predict(self, asked: Tensor, cache: BlockCache | None) -> Prediction:
        """One pass, or two with guidance, over the rows that have something to predict; none if no row has."""
        rows = asked.any(1)
        if not rows.any():
            return Prediction(torch.zeros(0, self.denoiser.vocab_size, device=self.ids.device))
        if cache is not None:
            rows = torch.ones_like(rows)
        logits = self._logits(self.ids, asked, rows, cache)
        if self.options.guidance:
            blind = self.ids.masked_fill(~self.writable, self.denoiser.mask_id)
            logits = torch.lerp(self._logits(blind, asked, rows, None), logits, 1 + self.options.guidance)
        if self.options.suppress_ends:
            logits[self.endless[asked].nonzero(), self.ends] = FORBIDDEN
        return Prediction(logits)

    def _logits(self, ids: Tensor, asked: Tensor, rows: Tensor, cache: BlockCache | None) -> Tensor:
        """Logits (N, V) at `asked`, from the `rows` (B, bool) of `ids`."""
        feedback, scale, blended = None, 1.0, self.memory.known & rows[:, None]
        if cache is not None:
            blended = blended & _columns(blended, cache.window)
        if blended.any():
            feedback = self.memory.read(blended)
            # Progress is a row's own, so that a text does not depend on its batch.
            left = self.masked.sum(1) / self.at_start.clamp(min=1)
            scale = progress_scale(self.options.soft_mask_schedule, left)[:, None].expand_as(blended)[blended]
        valid = None if self.valid is None else self.valid[rows]
        return self.denoiser.predict(
            ids[rows], asked[rows], feedback, scale, blended=blended[rows], valid=valid, cache=cache
        )  # fmt: skip

    def _apply(self, move: Move, asked: Tensor, prediction: Prediction) -> None:
        """Write what was decided; keep what was predicted where it was not."""
        before = self.ids
        self.ids = before.masked_scatter(move.revealed, move.tokens)
        probability = prediction.probability(move.revealed[asked], move.tokens)
        self.confidence = self.confidence.masked_scatter(move.revealed, probability)
        if move.remasked is not None:
            self.ids = self.ids.masked_fill(move.remasked, self.denoiser.mask_id)
            self.confidence = self.confidence.masked_fill(move.remasked, 0.0)
        self.masked = self.writable & (self.ids == self.denoiser.mask_id)
        self._stop_rows()
        if self.soft_mask is not None:
            self.memory.write(asked & self.masked, self.soft_mask.observe(prediction)[self.masked[asked]])
            if move.remasked is not None:
                self.memory.write_certain(move.remasked, before[move.remasked])
            self.memory.known &= self.masked

    def _stop_rows(self) -> None:
        """Fill what follows the first end-of-text of a row, once all before it is decided."""
        if not self.options.stop or not len(self.ends) or self.scheduler.remasks:
            return
        ends = torch.isin(self.ids, self.ends) & self.writable
        after = ends.cumsum(1) > 0
        done = ends.any(1) & ~(self.masked & ~after).any(1)
        rest = self.masked & done[:, None]
        self.ids = self.ids.masked_fill(rest, int(self.ends[0]))
        self.masked = self.masked & ~rest


def _columns(like: Tensor, window: slice) -> Tensor:
    """(L,) true at the columns of `window`."""
    columns = torch.zeros(like.shape[1], dtype=torch.bool, device=like.device)
    columns[window] = True
    return columns
