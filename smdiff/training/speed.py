"""How fast the machine is and how much of it a run uses: what steps cost in FLOPs, the device's peak, how a CPU is
used best."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smdiff.config import TrainingConfig
from smdiff.errors import UserError, first_line
from smdiff.models.denoiser import Denoiser
from smdiff.models.dit import DiT
from smdiff.ranks import ranks

# Dense bf16 FLOP/s from the makers' data sheets, by a part of the device's name; the first that fits counts.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}
_SECONDS, _TRIES = 0.2, 10
# Below this width autocast's casts eat what a CPU's products save. With AVX512-BF16 a product is 1.9 times as fast at
# width 128 and a whole step 1.06 times; at width 768 the product is 2.3 times as fast and the step 1.6 times.
_WIDE = 256
_WORTH_IT = 1.5
# Multiply-adds of one product of the check.
_CHECK = 2**29
_OWN_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of training a network, two a multiply-add; recomputed activations do not count.

    Attributes:
        body: weights that every token goes through.
        last: weights that only predicted tokens go through: what follows the attention of a DiT's last block.
        trained: the share of them that is trained.
        head: weights of the output layer, which predicted tokens go through.
        head_trained: whether they are trained.
        attention: layers times width.
    """

    body: int
    last: int
    trained: float
    head: int
    head_trained: bool
    attention: int

    @classmethod
    def of(cls, network: nn.Module) -> Cost:
        """That of a DiT or of a `transformers` model."""
        once, last = [m for m in network.modules() if isinstance(m, nn.Embedding)], list[nn.Parameter]()
        output = network.output_layer.linear if isinstance(network, DiT) else network.get_output_embeddings()
        head = list(output.parameters())
        if isinstance(network, DiT):  # the conditioning is one row for all tokens
            once = [network.vocab_embed, network.sigma_map, network.output_layer]
            once += [block.adaLN_modulation for block in network.blocks]
            block = network.blocks[-1]
            last = [*block.attn_out.parameters(), *block.norm2.parameters(), *block.mlp.parameters()]
        left_out = {id(p) for p in head} | {id(p) for module in once for p in module.parameters()}
        body = [p for p in network.parameters() if id(p) not in left_out]
        count = sum(p.numel() for p in body)
        after = sum(p.numel() for p in last)
        return cls(
            body=count - after,
            last=after,
            trained=sum(p.numel() for p in body if p.requires_grad) / max(1, count),
            head=sum(p.numel() for p in head),
            head_trained=any(p.requires_grad for p in head),
            attention=network.config.num_hidden_layers * network.config.hidden_size,
        )

    def step(self, tokens: float, predicted: float, length: float, extra: float) -> float:
        """FLOPs of a step.

        A forward pass costs 2 a weight and token, and 4 x width x layers x length for attention; the backward pass as
        much for its inputs, and again for the weights that are trained.

        Args:
            tokens: in all rows.
            predicted: those that get logits.
            length: of a row.
            extra: forward passes more: 1 for the first of two, 1 for recomputed activations.
        """
        body = 2 * (self.body * tokens + self.last * predicted) * (2 + self.trained + extra)
        head = 2 * self.head * predicted * (2 + self.head_trained + extra)
        return body + head + 4 * self.attention * length * tokens * (3 + extra)


def _seconds(a: Tensor, b: Tensor) -> float:
    start = time.perf_counter()
    a @ b
    if a.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@functools.cache
def _measured(device: str, dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of a large matrix product: the best of a moment."""
    # On a CPU short enough to fall between the interruptions by other work, and large enough for its threads.
    size = 8192 if device == "cuda" else 512 * round(threads ** (1 / 3))
    a = torch.randn(size, size, device=device, dtype=dtype)
    best, start, tries = math.inf, time.perf_counter(), 0
    while tries < _TRIES or time.perf_counter() - start < _SECONDS:
        best, tries = min(best, _seconds(a, a)), tries + 1
    return 2 * size**3 / best


def peak(device: str, half: bool) -> tuple[float, str]:
    """The FLOP/s that a device can reach, and how that is known."""
    if device == "cuda" and half:
        name = torch.cuda.get_device_name()
        for known, flops in _PEAKS.items():
            if known in name:
                return flops, f"data sheet of {known}"
    dtype = torch.bfloat16 if half else torch.float32
    return _measured(device, dtype, torch.get_num_threads()), f"measured, {'bf16' if half else 'fp32'}"


def peak_memory() -> int:
    """Bytes at most so far: of the GPU's memory, or of the process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _usable_cpus() -> int:
    """CPUs that this process may use: its affinity, and the quota of its container (cgroup v2), which torch ignores."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, math.ceil(int(quota) / int(period))))


@torch.no_grad()
def _gain_of_half(width: int) -> float:
    """How many times as fast a product of the network's own width is in bf16."""
    rows = max(16, min(1024, _CHECK // (4 * width * width)))
    x, w = torch.randn(rows, width), torch.randn(width, 4 * width)
    pairs = {torch.float32: (x, w), torch.bfloat16: (x.bfloat16(), w.bfloat16())}
    best = dict.fromkeys(pairs, math.inf)
    for _ in range(4):  # the first also warms up
        for dtype, pair in pairs.items():
            best[dtype] = min(best[dtype], _seconds(*pair))
    return best[torch.float32] / best[torch.bfloat16]


def bf16(precision: str) -> bool:
    """Whether `precision` means bf16 before a model and a CPU have been looked at."""
    return precision == "bf16" or (precision == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def bf16_autocast(device: str, half: bool) -> contextlib.AbstractContextManager[Any]:
    """Products in bf16 within the block, if `half`."""
    return torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext()


def check_compiler() -> None:
    """Compile something small.

    Raises:
        UserError: torch.compile does not work here.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # of many kinds: no compiler, no headers, no Triton
        reason = first_line(error)
        raise UserError("--compile does not work here", reason, "It needs g++ on a CPU, Triton on a GPU.") from None


def choose_compute(config: TrainingConfig, denoiser: Denoiser, stored: dict[str, Any] | None) -> dict[str, Any]:
    """Precision and threads of a run: what was asked for, what the run began with, or what suits the machine.

    Sets the process's number of threads.

    Args:
        stored: an earlier start's choice, which holds where nothing was asked for, or the run would not go on bit for
            bit.

    Returns:
        precision ("fp32" or "bf16"), threads, and why that precision.
    """
    began_with = stored["threads"] if stored is not None and ranks() == 1 else 0  # a launcher may share CPUs otherwise
    threads = config.threads or began_with or min(_OWN_THREADS, _usable_cpus())
    torch.set_num_threads(threads)
    if stored is not None:
        return stored
    half, reason = bf16(config.precision), "asked for"
    width = denoiser.backbone.config.hidden_size
    if config.precision == "auto":
        reason = "the GPU has it" if half else "the GPU has no bf16"
        if not torch.cuda.is_available():
            if ranks() > 1:
                reason = "several processes on CPUs, which must agree"
            elif width < _WIDE:
                reason = f"width {width} is too narrow for bf16 to help"
            else:
                gain = _gain_of_half(width)
                half = gain >= _WORTH_IT
                reason = f"products of width {width} are {gain:.1f} times as fast in bf16 here"
    return {"precision": "bf16" if half else "fp32", "threads": threads, "reason": reason}
