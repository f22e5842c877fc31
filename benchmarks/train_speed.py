"""What a training step costs: two passes over one, our step over the reference's, and how much of it is the network.

    python benchmarks/train_speed.py                                    # all parts
    python benchmarks/train_speed.py --parts a --models tiny
    python benchmarks/train_speed.py --parts d --models small --device cuda     # throughput on a GPU, bf16

(a) A two-pass step over a one-pass step; the floor in FLOPs is (1 + 1 + 2) / (1 + 2) = 1.33.
(b) The reference's two-pass step over ours, in time and in peak memory beyond the model, at equal losses. Its feedback
    is dense, as in its coding variant (weights over the vocabulary times the embeddings); the language variant's,
    the k best of every position, is told beside it.
(c) The share of a two-pass step that is matrix products of the network, by the profiler's self time.
(d) Tokens a second, MFU and peak memory of each kind of step, with and without torch.compile, and of decoding.

A step is a whole one: noise, loss, gradients, clipping, AdamW, averaging. `small-like` is the paper's 169M DiT with 2
blocks instead of 12. Weights are random, with predictions about as peaked as a trained model's. What is compared
alternates step by step on the same noise, at least 15 seconds long, and ratios are medians over pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from decode import ours as decoding
from finetune_memory import dense_mixture, peak
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from smdiff.diffusion.noise import SCHEDULES, NoiseDraw, corrupt, draw_step
from smdiff.diffusion.objective import negative_elbo
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.models.denoiser import Denoiser
from smdiff.models.dit import DiT, DiTConfig
from smdiff.training.ema import Ema
from smdiff.training.speed import Cost
from smdiff.training.speed import peak as peak_flops

TWO_PASS_LIMIT, REFERENCE_LIMIT, SHARE_LIMIT = 1.36, 3.0, 0.85
SECONDS = 15.0
NOISE = SCHEDULES["log-linear"]
SPREAD = 2.5
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::_scaled_dot_product")


class Shape(NamedTuple):
    """A DiT, and the tokens of a step."""

    width: int
    heads: int
    blocks: int
    cond: int
    tokens: int


SHAPES = {
    "tiny": Shape(128, 4, 4, 32, 2048),
    "small-like": Shape(768, 12, 2, 128, 2048),
    "small": Shape(768, 12, 12, 128, 32_768),
}


class Bench:
    """One model and its optimiser."""

    def __init__(self, shape: Shape, vocabulary: int, length: int, device: str, half: bool = False) -> None:
        torch.manual_seed(0)
        config = DiTConfig(vocabulary, shape.width, shape.blocks, shape.heads, shape.cond, 0.0, length)
        backbone = DiT(config)
        with torch.no_grad():
            backbone.output_layer.linear.weight.normal_(std=SPREAD / shape.width**0.5)
            for block in backbone.blocks:
                block.adaLN_modulation.bias.normal_(std=0.3)
        self.model = Denoiser(backbone, config.mask_token_id, SoftMask(3, w_s=0.5)).to(device).train()
        self.x0 = torch.randint(0, vocabulary - 1, (max(1, shape.tokens // length), length), device=device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        self.ema = Ema(self.model.backbone, 0.999)
        self.device, self.half = device, half

    def draw(self, index: int, two_pass: bool) -> NoiseDraw:
        rows, length = self.x0.shape
        noise = draw_step(NOISE, seed=0, step=index, rows=rows, length=length, device=self.device)
        return NoiseDraw(noise.t, noise.masked, two_pass)

    def ours(self, draw: NoiseDraw) -> Tensor:
        return negative_elbo(self.model, self.x0, draw, NOISE, self.model.mask_id).total

    def reference(self, draw: NoiseDraw, dense: bool = False) -> Tensor:
        """The loss as the reference computes it: logits, log-softmax and carry-over at every position, in float32."""
        model, x_t = self.model, corrupt(self.x0, draw.masked, self.model.mask_id)
        x = F.embedding(x_t, model.table)
        if draw.two_pass:
            with torch.no_grad():
                log_p = subs(model, x, x_t)
            x = (dense_feedback if dense else top_k_feedback)(model, x, x_t, log_p)
        nll = -subs(model, x, x_t).gather(-1, self.x0[..., None])[..., 0]
        return (nll * NOISE.weight(draw.t)[:, None]).sum()

    def step(self, loss: Callable[[NoiseDraw], Tensor], index: int, two_pass: bool) -> float:
        """Seconds of one step."""
        wait(self.device)
        start = time.perf_counter()
        with torch.autocast(self.device, torch.bfloat16) if self.half else contextlib.nullcontext():
            value = loss(self.draw(index, two_pass)) / self.x0.numel()
        self.optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update()
        wait(self.device)
        return time.perf_counter() - start


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def subs(model: Denoiser, x: Tensor, x_t: Tensor) -> Tensor:
    """(B, L, V) log-probabilities: the mask has none, and a visible token has all of its position's."""
    logits = model.backbone.decode(model.backbone.encode(x)).float()
    at_mask = torch.zeros(logits.shape[-1], device=logits.device).index_fill_(0, model.forbidden, -1e6)
    log_p = (logits + at_mask).log_softmax(-1)
    carried = torch.full_like(log_p, -1e6).scatter_(-1, x_t[..., None], 0.0)
    return torch.where((x_t == model.mask_id)[..., None], log_p, carried)


def top_k_feedback(model: Denoiser, x: Tensor, x_t: Tensor, log_p: Tensor) -> Tensor:
    """The blend of the reference's language variant: indices and weights of the k best, at every position."""
    p = log_p.exp()
    strength = model.soft_mask.strength((p * (p + 1e-10).log()).sum(-1))
    strength = torch.where(x_t == model.mask_id, strength, 0.0)[..., None]
    best, indices = log_p.topk(model.soft_mask.k)
    mixture = (F.embedding(indices, model.table) * best.softmax(-1)[..., None]).sum(-2)
    return (1 - strength) * x + strength * mixture


def dense_feedback(model: Denoiser, x: Tensor, x_t: Tensor, log_p: Tensor) -> Tensor:
    """The blend of its coding variant: (B, L, V) weights times the embeddings."""
    return dense_mixture(model, x_t, log_p).to(x.dtype) @ model.table


def in_turn(first: Callable[[int], float], second: Callable[[int], float], pairs: int) -> list[float]:
    """Median seconds of both, and the median of their ratio first/second; they alternate, short ones for a while."""
    first(0), second(0)
    times = []
    while len(times) < pairs or sum(map(sum, times)) < SECONDS:
        times.append((first(len(times) + 1), second(len(times) + 1)))
    return [*map(statistics.median, zip(*times, strict=True)), statistics.median(a / b for a, b in times)]


FORMS = {
    "ours": Bench.ours,
    "reference, dense": partial(Bench.reference, dense=True),
    "reference, k best": partial(Bench.reference, dense=False),
}


def memory(form: str, shape: Shape, vocabulary: int, length: int, device: str, half: bool) -> float:
    """MiB that a two-pass step needs beyond what there was before it; for a process of its own."""
    bench = Bench(shape, vocabulary, length, device, half)
    whole, bench.x0 = bench.x0, bench.x0[:1, :16]
    bench.step(partial(FORMS[form], bench), 0, True)
    bench.x0 = whole
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again at VmRSS
    before = peak()
    bench.step(partial(FORMS[form], bench), 1, True)
    return peak() - before


def agree(bench: Bench) -> None:
    """Assert that all forms compute one loss; fp32."""
    with torch.no_grad():
        losses = [float(loss(bench, bench.draw(1, True))) for loss in FORMS.values()]
    assert all(abs(x - losses[0]) <= 1e-4 * losses[0] for x in losses), losses


class Report:
    """Tables, and what missed its limit."""

    def __init__(self) -> None:
        self.console, self.failed = Console(width=None if Console().is_terminal else 120), []

    def table(self, title: str, *columns: str) -> Table:
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, justify="left" if column in ("model", "step") else "right")
        return table

    def mark(self, kept: bool, what: str) -> str:
        if not kept:
            self.failed.append(what)
        return "" if kept else "FAILED"


def part_a(report: Report, a: argparse.Namespace) -> None:
    title = f"(a) two-pass over one-pass step, at most {TWO_PASS_LIMIT}"
    table = report.table(title, "model", "V", "L", "rows", "two-pass s", "one-pass s", "ratio", "")
    for name, vocabulary, length in itertools.product(a.models, a.vocabularies, a.lengths):
        bench = Bench(a.shapes[name], vocabulary, length, a.device, a.half)
        two, one, ratio = in_turn(
            lambda i, b=bench: b.step(b.ours, i, True), lambda i, b=bench: b.step(b.ours, i, False), a.pairs
        )
        mark = report.mark(ratio <= TWO_PASS_LIMIT, f"(a) {name}, V {vocabulary}, L {length}: {ratio:.3f}")
        shape = (name, f"{vocabulary:,}", f"{length:,}", str(len(bench.x0)))
        table.add_row(*shape, f"{two:.3f}", f"{one:.3f}", f"{ratio:.3f}", mark)
    report.console.print(table)


def part_b(report: Report, a: argparse.Namespace) -> None:
    title = f"(b) the reference's two-pass step over ours; dense: at least {REFERENCE_LIMIT:g}"
    columns = ("model", "V", "L", "form", "seconds", "ours s", "ratio", "MiB", "ours MiB", "ratio", "")
    table, vocabulary = report.table(title, *columns), a.vocabularies[-1]
    for name, length in itertools.product(a.models, a.lengths):
        shape = (a.shapes[name], vocabulary, length, a.device, a.half)
        spent = {}
        for form in FORMS:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                spent[form] = fresh.submit(memory, form, *shape).result()
        bench = Bench(*shape)
        if not a.half:
            agree(bench)
        for form in list(FORMS)[1:]:
            loss = partial(FORMS[form], bench)
            theirs, mine, ratio = in_turn(
                lambda i, b=bench, f=loss: b.step(f, i, True),
                lambda i, b=bench: b.step(b.ours, i, True),
                max(1, a.pairs // 2),
            )
            more = spent[form] / spent["ours"]
            kept = "dense" not in form or min(ratio, more) >= REFERENCE_LIMIT
            mark = report.mark(kept, f"(b) {name}, L {length}: {ratio:.2f} in time, {more:.2f} in memory")
            table.add_row(
                name, f"{vocabulary:,}", f"{length:,}", form.removeprefix("reference, "), f"{theirs:.2f}",
                f"{mine:.2f}", f"{ratio:.2f}", f"{spent[form]:,.0f}", f"{spent['ours']:,.0f}", f"{more:.1f}", mark,
            )  # fmt: skip
    report.console.print(table)


def part_c(report: Report, a: argparse.Namespace) -> None:
    title = f"(c) matrix products of the network in a two-pass step, small-like: at least {SHARE_LIMIT:.0%}"
    table = report.table(title, "model", "V", "L", "share", "next", "")
    for name, vocabulary, length in itertools.product(a.models, a.vocabularies, a.lengths):
        bench = Bench(a.shapes[name], vocabulary, length, a.device, a.half)
        bench.step(bench.ours, 0, True)
        kinds = {ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if a.device == "cuda" else [])}
        with profile(activities=kinds) as found:
            bench.step(bench.ours, 1, True)
        field = "self_device_time_total" if a.device == "cuda" else "self_cpu_time_total"
        times = {event.key: getattr(event, field) for event in found.key_averages()}
        share = sum(t for key, t in times.items() if key.startswith(PRODUCTS)) / sum(times.values())
        rest = sorted((k for k in times if not k.startswith(PRODUCTS)), key=times.__getitem__, reverse=True)[:3]
        told = ", ".join(f"{k.removeprefix('aten::')[:28]} {times[k] / sum(times.values()):.1%}" for k in rest)
        kept = name != "small-like" or a.device == "cuda" or share >= SHARE_LIMIT
        mark = report.mark(kept, f"(c) {name}, V {vocabulary}, L {length}: {share:.1%}")
        table.add_row(name, f"{vocabulary:,}", f"{length:,}", f"{share:.1%}", told, mark)
    report.console.print(table)


def part_d(report: Report, a: argparse.Namespace) -> None:
    """Throughput; nothing is compared with a limit."""
    vocabulary, length = a.vocabularies[-1], a.lengths[-1]
    flops, source = peak_flops(a.device, a.half)
    table = report.table(
        f"(d) throughput, vocabulary {vocabulary:,}, L {length:,}; peak {flops / 1e12:.3g} TFLOP/s ({source})",
        "model", "step", "compiled", "tokens/s", "MFU", "peak MiB",
    )  # fmt: skip
    for name, compiled in itertools.product(a.models, (False, True)):
        bench = Bench(a.shapes[name], vocabulary, length, a.device, a.half)
        cost = Cost.of(bench.model.backbone)
        if compiled:
            bench.model.compile_blocks()
        steps = {"one-pass": (bench.ours, False), "two-pass": (bench.ours, True)}
        if not compiled:
            steps["reference, two-pass"] = (partial(FORMS["reference, k best"], bench), True)
        for label, (loss, two_pass) in steps.items():
            for i in range(2):
                bench.step(loss, i, two_pass)
            if a.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            times = [bench.step(loss, i, two_pass) for i in range(a.pairs)]
            masked = sum(int(bench.draw(i, two_pass).masked.sum()) for i in range(a.pairs)) / a.pairs
            speed = cost.step(bench.x0.numel(), masked, length, two_pass) / statistics.median(times)
            table.add_row(
                name, label, "yes" if compiled else "no", f"{bench.x0.numel() / statistics.median(times):,.0f}",
                f"{speed / flops:.1%}", f"{peak():,.0f}",
            )  # fmt: skip
    report.console.print(table)
    for name in a.models:
        report.console.print(decoding_speed(report, name, a, vocabulary, length))


@torch.no_grad()
def decoding_speed(report: Report, name: str, a: argparse.Namespace, vocabulary: int, length: int) -> Table:
    """New tokens a second of one text, a step for every four tokens."""
    model, new = Bench(a.shapes[name], vocabulary, length, a.device).model.eval(), length - 32
    model.backbone.to(torch.bfloat16 if a.half else torch.float32)
    table = report.table(f"(d) {name}: {new} new tokens in {new // 4} steps", "step", "tokens/s", "NFE")
    kinds = {"binary": {}, "soft-masked": {"soft_mask": True}, "cached": {"block": 32, "cache": "dual"}}
    for label, options in kinds.items():
        for _ in range(2):  # the first warms up
            model.nfe = 0
            wait(a.device)
            start = time.perf_counter()
            for _step in decoding(model, new, new // 4, 0.0, 1.0, **options):
                pass
            wait(a.device)
            seconds = time.perf_counter() - start
        table.add_row(label, f"{new / seconds:,.0f}", str(model.nfe))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = lambda text: [int(x) for x in text.split(",")]  # noqa: E731
    parser.add_argument("--parts", default="a,b,c")
    parser.add_argument("--models", default="tiny,small-like", help=", ".join(SHAPES))
    parser.add_argument("--vocabularies", type=numbers, default=[4096, 50_258])
    parser.add_argument("--lengths", type=numbers, default=[128, 1024])
    parser.add_argument("--tokens", type=int, help="of a step; by default the shape's own")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cuda: in bf16")
    a = parser.parse_args()
    a.models, a.half = a.models.split(","), a.device == "cuda"
    a.shapes = {n: SHAPES[n]._replace(tokens=a.tokens or SHAPES[n].tokens) for n in a.models}
    place = torch.cuda.get_device_name() if a.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    report = Report()
    report.console.print(f"{place}, {'bf16' if a.half else 'fp32'}; medians over {a.pairs} pairs or more")
    for part in a.parts.split(","):
        {"a": part_a, "b": part_b, "c": part_c, "d": part_d}[part](report, a)
    if report.failed:
        raise SystemExit("FAILED: " + "; ".join(report.failed))


if __name__ == "__main__":
    main()
