"""Memory and time of a soft-masked finetuning step, against the dense one-hot form that the reference code trains with.

    python benchmarks/finetune_memory.py        # six minutes of one core, 12 if it is shared; 9 GiB

The step is loss and gradient (no optimiser) of the `code` objective at t = 0.5 in two passes, the first without
gradient, over a Dream with random weights and DoRA adapters: fp32 on a CPU, bf16 on CUDA; narrow, since logits do not
grow with the width. The dense form (arXiv 2510.17206's released trainer; no dense tensor more than there) takes logits
at all positions, shifted by a copy, writes the mixture as (B, T, V), multiplies it by the embedding table, and has
`transformers` compute the loss over all positions.

Both use one network, one noise and one set of scalars, and it is asserted in fp32 that losses and gradients agree. For
that no token is forbidden, not even the mask (`forbidden=()`), since the dense form blocks none. The scalars start
where the gate is half open for these weights, or their gradients would underflow.

Memory is a fresh process's peak over resident memory after a tiny warm-up step. The body is the same two passes
from plain masks with the sum of the hidden states as loss; what a form needs beyond that is its extra memory.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from smdiff.diffusion.noise import NoiseDraw, corrupt, draw_step
from smdiff.diffusion.objective import objective
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.models import adapters
from smdiff.models.denoiser import Denoiser

LIMIT, T = 5.0, 0.5
CODE = objective("code", (T, T))
LOSS_APART, GRADIENT_APART = 1e-4, 1e-3  # in fp32, relative; of gradients by each tensor's norm
SPREAD = 2.5  # standard deviation of the logits, about as peaked as a trained model's
DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)


def build(a: argparse.Namespace, dtype: torch.dtype) -> Denoiser:
    """A Dream with random weights and adapters that do something."""
    warnings.filterwarnings("ignore")  # peft's and transformers' about each other
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=a.vocabulary, hidden_size=a.width, intermediate_size=2 * a.width, num_hidden_layers=a.layers,
        num_attention_heads=max(1, a.width // 64), num_key_value_heads=max(1, a.width // 128),
        max_position_embeddings=a.length, is_causal=False, mask_token_id=a.vocabulary - 1,
    )  # fmt: skip
    backbone = Qwen2ForCausalLM(config)
    with torch.no_grad():
        backbone.lm_head.weight.mul_(SPREAD / (config.initializer_range * a.width**0.5))
    adapter = adapters.attach(backbone.to(DEVICE, dtype), "dora", base="random")
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:  # at its start, 0, lora_A has no gradient
            torch.nn.init.normal_(parameter, std=0.02)
    soft_mask = SoftMask(3, w_s=0.5, w_a=1.0, w_b=SPREAD**2 / 2 - math.log(a.vocabulary)).to(DEVICE)
    return Denoiser(backbone, config.mask_token_id, soft_mask, shift=True, forbidden=(), adapter=adapter).train()


def batch(model: Denoiser, length: int) -> tuple[Tensor, NoiseDraw]:
    """One text without masks of its own, and the noise."""
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randint(0, model.mask_id, (1, length), generator=generator).to(DEVICE)
    options = {"seed": 0, "step": 0, "rows": 1, "length": length, "p_two_pass": 1.0, "device": DEVICE}
    return x0, draw_step(CODE.noise, t_min=T, t_max=T, **options)


def ours(model: Denoiser, x0: Tensor, draw: NoiseDraw) -> Tensor:
    return CODE.loss(model, x0, draw, model.mask_id, model.shift).total


def dense(model: Denoiser, x0: Tensor, draw: NoiseDraw) -> Tensor:
    """1/t times the loss that `transformers` computes, from inputs that are dense over the vocabulary."""
    x_t, labels = corrupt(x0, draw.masked, model.mask_id), x0.masked_fill(~draw.masked, -100)
    with torch.no_grad():
        logits = model.backbone(input_ids=x_t, use_cache=False).logits
        logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
    mixture = dense_mixture(model, x_t, logits)
    embeddings = mixture.to(model.table.dtype) @ model.table
    return model.backbone(inputs_embeds=embeddings, labels=labels, use_cache=False).loss / T


def dense_mixture(model: Denoiser, x_t: Tensor, logits: Tensor) -> Tensor:
    """(B, T, V): the weight of each token's embedding in each input."""
    p = logits.softmax(-1)
    strength = model.soft_mask.strength((p * (p + 1e-10).log()).sum(-1))
    del p
    strength = torch.where(x_t == model.mask_id, strength, 0.0)[..., None]
    best, indices = logits.topk(3)
    predicted = torch.zeros_like(logits).scatter_(-1, indices, best.softmax(-1))
    current = torch.zeros_like(logits).scatter_(-1, x_t[..., None], 1.0)
    return (1 - strength) * current + strength * predicted


def body(model: Denoiser, x0: Tensor, draw: NoiseDraw) -> Tensor:
    with torch.no_grad():
        model.hidden(corrupt(x0, draw.masked, model.mask_id), draw.masked)
    return model.hidden(corrupt(x0, draw.masked, model.mask_id), draw.masked).sum()


FORMS = {"ours": ours, "dense": dense, "body": body}


def step(form: str, model: Denoiser, length: int) -> tuple[float, float]:
    """Seconds and loss of one step; the gradients are new."""
    model.zero_grad()
    x0, draw = batch(model, length)
    began = time.perf_counter()
    loss = FORMS[form](model, x0, draw)
    loss.backward()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, loss.item()


def memory(form: str, a: argparse.Namespace) -> float:
    """MiB that a step needs beyond what there was before it; for a process of its own."""
    model = build(a, DTYPE)
    step(form, model, 16)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again at VmRSS
    before = peak()
    step(form, model, a.length)
    return peak() - before


def peak() -> float:
    """MiB at most since the last reset."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 2**10


def agree(model: Denoiser, length: int) -> None:
    """Assert that both forms compute one loss and one gradient; fp32."""
    found = []
    for form in ("ours", "dense"):
        loss = step(form, model, length)[1]
        found.append((loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (a, mine), (b, theirs) = found
    assert abs(a - b) <= LOSS_APART * abs(b), f"losses {a} and {b}"
    assert mine.keys() == theirs.keys() > set(map("soft_mask.raw_{}".format, ("scale", "steepness", "centre")))
    apart = {n: float((mine[n] - theirs[n]).norm() / theirs[n].norm()) for n in mine}
    assert all(x <= GRADIENT_APART for x in apart.values()), apart
    print(f"losses {a:.6f} and {b:.6f}; gradients of {len(mine)} tensors within {max(apart.values()):.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("vocabulary", 152_064), ("length", 2048), ("width", 256), ("layers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    peaks = {}
    for form in FORMS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            peaks[form] = fresh.submit(memory, form, a).result()
    model = build(a, torch.float32)
    agree(model, a.length)
    if DEVICE == "cuda":
        model = build(a, DTYPE)
        step("ours", model, a.length), step("dense", model, a.length)
    pairs = [(step("ours", model, a.length)[0], step("dense", model, a.length)[0]) for _ in range(3)]
    seconds = {form: statistics.median(pair[i] for pair in pairs) for i, form in enumerate(("ours", "dense"))}
    extra = {form: peaks[form] - peaks["body"] for form in seconds}
    print(f"vocabulary {a.vocabulary:,}, length {a.length:,}, width {a.width}, {a.layers} layers, {DEVICE}")
    title = f"{torch.get_num_threads()} threads; the body alone {peaks['body']:,.0f} MiB"
    table = Table("step", "peak MiB", "extra MiB", "seconds", title=title)
    for form in seconds:
        table.add_row(form, f"{peaks[form]:,.0f}", f"{extra[form]:,.0f}", f"{seconds[form]:.2f}")
    ratio, slower = extra["dense"] / extra["ours"], statistics.median(y / x for x, y in pairs)
    table.add_row("dense over ours", f"{peaks['dense'] / peaks['ours']:.1f}", f"{ratio:.1f}", f"{slower:.1f}")
    Console().print(table)
    if ratio < LIMIT:
        raise SystemExit(f"FAILED: the dense form's extra memory is {ratio:.2f} times ours, below {LIMIT:g}")


if __name__ == "__main__":
    main()
