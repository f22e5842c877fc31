"""What a run is going to need, before it starts: memory and time, from its shape and the device's speed. Rough."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from smdiff.config import TrainingConfig
from smdiff.models.denoiser import Denoiser
from smdiff.training.speed import Cost, peak

# Bytes kept for the backward pass, a token, a unit of width and a layer, in half precision with fused attention
# (Korthikanti et al., arXiv 2205.05198, table 2, without the attention scores).
_ACTIVATION = 34
# The share of a large matrix product's speed that training reaches.
_UTILISATION = 0.4
# Seconds; micro-batches that should take longer are not tried.
_MOMENT = 3.0


def estimate(
    config: TrainingConfig,
    denoiser: Denoiser,
    row: float,
    longest: int,
    half: bool,
    micro_batch: Callable[[bool], None],
) -> dict[str, str]:
    """Memory at the longest batch, and time: measured on micro-batches where they take moments, else worked out.

    Args:
        row: mean length of a row, in tokens, padding included.
        longest: that of the longest.
        half: whether the run computes in bf16.
        micro_batch: runs one, with the first pass of soft-masking or without.
    """
    checkpointing = config.gradient_checkpointing
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = denoiser.backbone.config
    width, layers = shape.hidden_size, shape.num_hidden_layers
    parameters = list(denoiser.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    tokens = longest * config.batch_size // config.accumulation
    kept = layers * tokens * width * (_ACTIVATION if not checkpointing else 2)
    if checkpointing:
        kept += _ACTIVATION * tokens * width  # of the layer that is being recomputed
    memory = sum(p.numel() * p.element_size() for p in parameters)
    memory += trained * 4 * (3 + bool(config.ema)) + kept * (1 if half else 2)
    # About half of the tokens are masked.
    seen = config.batch_size * row
    extra = checkpointing + (config.p_sm if config.soft else 0.0)
    flops = Cost.of(denoiser.backbone).step(seen, seen / 2, row, extra)
    batches = config.total_steps * config.accumulation
    seconds = config.total_steps * flops / (_UTILISATION * peak(device, half)[0])
    if device == "cpu" and seconds / batches < _MOMENT:
        share = config.p_sm if config.soft else 0.0
        one, two = _timed(lambda: micro_batch(False)), _timed(lambda: micro_batch(True)) if share else 0.0
        seconds = batches * ((1 - share) * one + share * two)
    return {"memory": f"about {memory / 1e9:.1f} GB", "time": f"about {_duration(seconds)} on this {device}"}


def _timed(run: Callable[[], None]) -> float:
    """Seconds of a second run: the first also pays for what is made once."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
