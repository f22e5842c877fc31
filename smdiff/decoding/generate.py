"""Texts from a model: batches through the loop, with what they cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from smdiff.config import SampleConfig
from smdiff.decoding.denoise import denoise
from smdiff.decoding.sampling import Noise
from smdiff.decoding.schedulers import SCHEDULERS
from smdiff.errors import UserError
from smdiff.models.denoiser import Denoiser
from smdiff.ui.console import note, track


@dataclass(frozen=True)
class Text:
    """One text and how it was made.

    Attributes:
        nfe: forward passes of the batch it was written in.
        seconds: wall time of that batch.
    """

    index: int
    text: str
    ids: list[int]
    nfe: int
    seconds: float
    soft_mask: bool


def generate(
    denoiser: Denoiser, tokenizer: PreTrainedTokenizerBase, remark: str, config: SampleConfig
) -> Iterator[Text]:
    """Write `config.num` unconditional texts; they come as their batch is done.

    Raises:
        UserError: soft-masking asked of a model without the scalars.
    """
    if remark:
        note(remark)
    soft = denoiser.soft_mask is not None if config.soft_mask is None else config.soft_mask
    if soft and denoiser.soft_mask is None:
        raise UserError(
            "--soft-mask",
            "this model has no soft-mask scalars",
            "Train them: smdiff pretrain --soft-mask --init MODEL.",
        )
    length = config.length or denoiser.backbone.config.max_position_embeddings
    scheduler = SCHEDULERS[config.scheduler](top_p=config.top_p)
    batches = range(0, config.num, config.batch_size)
    calls = 0
    began = time.monotonic()
    with track("sampling", len(batches) * config.steps) as tracker:
        for batch, start in enumerate(batches):
            rows = range(start, min(start + config.batch_size, config.num))
            since = time.monotonic()
            ids = torch.full((len(rows), length), denoiser.mask_id, device=denoiser.device)
            for step in denoise(
                denoiser, ids, scheduler, config.steps, Noise(config.seed, rows), soft, config.soft_mask_schedule
            ):
                ids = step.ids
                tracker.update(batch * config.steps + min(step.index + 1, config.steps))
            calls += denoiser.nfe
            seconds = time.monotonic() - since
            for index, row in zip(rows, ids.tolist(), strict=True):
                yield Text(index, tokenizer.decode(row), row, denoiser.nfe, seconds, soft)
    seconds = time.monotonic() - began
    tokens = config.num * length
    kind = "soft-masked" if soft else "binary"
    note(
        f"{kind}, {config.scheduler}: {config.num} x {length} tokens in {config.steps} steps, {calls} forward passes "
        f"over {len(batches)} {'batch' if len(batches) == 1 else 'batches'}, "
        f"{seconds:.1f} s, {tokens / max(seconds, 1e-9):,.0f} tokens/s"
    )
