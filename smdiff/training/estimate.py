"""What a run is going to need, before it starts: memory and time, from its shape and the device's speed. Rough."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from smdiff.config import TrainingConfig
from smdiff.models.denoiser import Denoiser
from smdiff.models.dit import DiT

# Bytes kept for the backward pass, a token, a unit of width and a layer, in half precision with fused attention
# (Korthikanti et al., arXiv 2205.05198, table 2, without the attention scores).
_ACTIVATION = 34
# The share of a large matrix product's speed that training reaches.
_UTILISATION = 0.4
_SECONDS = 0.2
# Seconds; micro-batches that should take longer are not tried.
_MOMENT = 3.0


def _speed(device: str, dtype: torch.dtype) -> float:
    """Multiply-adds a second of matrix products, measured for a moment."""
    size = 4096 if device == "cuda" else 768
    a = torch.randn(size, size, device=device, dtype=dtype)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SECONDS:
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        done += 1
    return done * size**3 / (time.perf_counter() - start)


def _body(network: nn.Module) -> int:
    """Weights that every token goes through: all but the embeddings and the output layer."""
    tables = {id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = network.output_layer if isinstance(network, DiT) else network.get_output_embeddings()
    tables |= {id(p) for p in head.parameters()}
    return sum(p.numel() for p in network.parameters() if id(p) not in tables)


def estimate(
    config: TrainingConfig,
    denoiser: Denoiser,
    row: float,
    longest: int,
    half: bool,
    checkpointing: bool,
    micro_batch: Callable[[bool], None],
) -> dict[str, str]:
    """Memory at the longest batch, and time: measured on micro-batches where they take moments, else worked out.

    Args:
        row: mean length of a row, in tokens, padding included.
        longest: that of the longest.
        half: whether the run computes in bf16.
        checkpointing: whether activations are recomputed.
        micro_batch: runs one, with the first pass of soft-masking or without.
    """
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
    # Multiply-adds a token: one a weight forward, one for the input's gradient, and one for the weight's if it is
    # trained; the first pass and checkpointing add a forward each.
    body = _body(denoiser.backbone)
    passes = 2 + trained / sum(p.numel() for p in parameters) + checkpointing + (config.p_sm if config.soft else 0)
    head = denoiser.vocab_size * width * 0.5  # about half of the tokens are masked
    speed = _UTILISATION * _speed(device, torch.bfloat16 if half else torch.float32)
    batches = config.total_steps * config.accumulation
    seconds = batches * (config.batch_size // config.accumulation) * row * (body + head) * passes / speed
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
