"""What a decoding step costs: soft-masking, our loop over the reference's step, and the block cache. Ratios in one run.

    python benchmarks/decode.py              # all parts; about a quarter of an hour on two cores
    python benchmarks/decode.py --parts a,c

The model is a Dream: its real vocabulary of 152,064 over a narrow body, with random weights whose predictions are as
peaked as a trained model's (logits of standard deviation 2.5). Part (a) runs the DiT `small` too. All decode the same
prompt with the entropy order; what is compared alternates step by step.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import resource
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from smdiff.config import PretrainConfig, resolve
from smdiff.decoding.blocks import blocks_of
from smdiff.decoding.denoise import Options, Step, denoise
from smdiff.decoding.sampling import Noise
from smdiff.decoding.schedulers.confidence import Entropy, dream_clock
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.models.denoiser import Denoiser
from smdiff.models.dit import DiT, DiTConfig

SOFT_LIMIT, REFERENCE_LIMIT, CACHE_LIMIT = 1.03, 4.0, 4.0
VOCABULARY, MASK = 152_064, 151_666
PROMPT = 32


def dream(width: int, layers: int, device: str) -> Denoiser:
    """A Dream with random weights."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=round(width * 5.3 / 64) * 64,
        num_hidden_layers=layers, num_attention_heads=width // 64, num_key_value_heads=max(1, width // 256),
        max_position_embeddings=4096, is_causal=False, mask_token_id=MASK,
    )  # fmt: skip
    backbone = Qwen2ForCausalLM(config).to(device).eval()
    with torch.no_grad():
        backbone.lm_head.weight.mul_(2.5 / (config.initializer_range * width**0.5))
    forbidden = [MASK, *range(151_667, VOCABULARY)]
    return Denoiser(backbone, MASK, SoftMask(3, w_s=0.5).to(device), shift=True, forbidden=forbidden)


def small_dit(device: str) -> Denoiser:
    """The preset `small`: 169 million parameters, vocabulary 50,258; its head has trained-like logits."""
    config = resolve(PretrainConfig, {"preset": "small"}).config
    torch.manual_seed(0)
    dit = DiT(DiTConfig(50_258, config.hidden_size, config.layers, config.heads, config.cond_dim, 0.0))
    with torch.no_grad():
        dit.output_layer.linear.weight.normal_(std=2.5 / config.hidden_size**0.5)
        for block in dit.blocks:
            block.adaLN_modulation.bias.normal_(std=0.3)
    return Denoiser(dit.to(device).eval(), dit.config.mask_token_id, SoftMask(3, w_s=0.5).to(device))


def start(model: Denoiser, new: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, 40_000, (1, PROMPT), generator=generator)
    return F.pad(prompt, (0, new), value=model.mask_id).to(model.device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(model: Denoiser, steps: Iterator) -> Iterator[tuple[float, Tensor]]:
    """(seconds, ids) of each step."""
    while True:
        wait(model.device)
        began = time.perf_counter()
        step = next(steps, None)
        wait(model.device)
        if step is None:
            return
        yield time.perf_counter() - began, step.ids if isinstance(step, Step) else step


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """MiB that the block needed beyond what was there before it."""
    found: list[float] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found.append((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    page, statm = resource.getpagesize(), Path("/proc/self/statm")
    read = lambda: int(statm.read_text().split()[1]) * page / 2**20  # noqa: E731
    before, highest, done = read(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], read())

    thread = threading.Thread(target=watch)
    thread.start()
    yield found
    done.set()
    thread.join()
    found.append(max(highest[0] - before, 0.0))


def ours(model: Denoiser, new: int, steps: int, temperature: float, top_p: float, **options) -> Iterator[Step]:
    ids, blocks = start(model, new), None
    if length := options.pop("block", None):
        blocks = blocks_of(PROMPT, PROMPT + new, length, steps)
    scheduler = Entropy(temperature=temperature, top_p=top_p)
    return denoise(model, ids, scheduler, steps, Noise(0, [0]), Options(**options), blocks=blocks)


@torch.no_grad()
def reference(
    model: Denoiser, new: int, steps: int, temperature: float, top_p: float, everywhere: bool
) -> Iterator[Tensor]:
    """Dream's step as published: logits over the whole text, shifted by a copy, sorted and filtered.

    Args:
        everywhere: sort and filter all (L, V) logits; else those of masked positions, a copy more.
    """
    ids, times = start(model, new), dream_clock(steps, 1e-3)
    for t, s in itertools.pairwise(times):
        masked = ids == model.mask_id
        logits = model.backbone(inputs_embeds=F.embedding(ids, model.table), use_cache=False).logits
        logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
        logits[..., model.forbidden] = -torch.inf
        rows = (logits[0] if everywhere else logits[masked]) / temperature
        ordered, order = rows.sort(-1, descending=True)
        outside = ordered.softmax(-1).cumsum(-1) > top_p
        outside = F.pad(outside[:, :-1], (1, 0), value=False)
        rows = rows.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), torch.finfo(rows.dtype).min)
        probs = rows.softmax(-1)
        confidence, tokens = (probs * (probs + 1e-10).log()).sum(-1), torch.multinomial(probs, 1)[:, 0]
        if everywhere:
            confidence, tokens = confidence[masked[0]], tokens[masked[0]]
        count = int(len(tokens) * (1 - torch.tensor(s) / torch.tensor(t)))
        chosen = confidence.topk(count).indices
        where = masked.nonzero()[chosen]
        ids = ids.index_put((where[:, 0], where[:, 1]), tokens[chosen])
        yield ids


def row(name: str, first: float, second: float, ratio: float, remark: str = "") -> None:
    print(f"  {name:58}{first * 1e3:10.1f}ms{second * 1e3:10.1f}ms{ratio:8.3f}  {remark}", flush=True)


def in_turn(model: Denoiser, first: Iterator, second: Iterator) -> tuple[list[float], list[float], Tensor, Tensor]:
    """Times of two decodings that take steps in turn, and their final ids."""
    a, b = timed(model, first), timed(model, second)
    pairs = list(zip(a, b, strict=True))
    return [x[0] for x, _ in pairs], [y[0] for _, y in pairs], pairs[-1][0][1], pairs[-1][1][1]


def part_a(models: dict[str, Denoiser], new: int, steps: int, repeats: int) -> bool:
    print(f"(a) entropy order, {steps} steps for {new} new tokens: soft-masked over binary step (at most {SOFT_LIMIT})")
    kept = True
    for name, model in models.items():
        for label, temperature, top_p in (("greedy", 0.0, 1.0), ("temperature 0.1, top-p 0.9", 0.1, 0.9)):
            times: tuple[list[float], list[float]] = ([], [])
            for repeat in range(repeats + 1):
                soft = ours(model, new, steps, temperature, top_p, soft_mask=True)
                found = in_turn(model, soft, ours(model, new, steps, temperature, top_p))
                if repeat:  # the first warms up
                    times[0].extend(found[0][1:])  # the first step has no feedback yet
                    times[1].extend(found[1][1:])
            ratio = statistics.median(x / y for x, y in zip(*times, strict=True))
            total = sum(times[0]) / sum(times[1])
            row(f"{name}, {label}", *map(statistics.median, times), ratio, f"all steps {total:.3f}")
            kept &= ratio <= SOFT_LIMIT
    return kept


def part_b(model: Denoiser, new: int, steps: int) -> bool:
    setting = f"temperature 0.1, top-p 0.9, {steps} steps for {new} new tokens"
    print(f"(b) {setting}: the reference's step over ours (at least {REFERENCE_LIMIT:g})")
    ratios = []
    for label, everywhere in (("all (L, V) logits sorted", True), ("masked positions' logits sorted", False)):
        for _ in ours(model, new, 1, 0.1, 0.9):  # warm up
            pass
        theirs, mine, a, b = in_turn(
            model, reference(model, new, steps, 0.1, 0.9, everywhere), ours(model, new, steps, 0.1, 0.9)
        )
        ratios.append(sum(theirs) / sum(mine))
        assert len(theirs) == len(mine) == model.nfe == steps, "not the same number of passes"
        assert not torch.stack([a, b]).eq(MASK).any(), "not the same number of tokens"
        row(label, statistics.median(theirs), statistics.median(mine), ratios[-1], "over all steps")
    return ratios[0] >= REFERENCE_LIMIT


def part_c(model: Denoiser, new: int, steps: int, block: int) -> bool:
    print(f"(c) {new} new tokens in blocks of {block}, {steps} steps: no cache over cache (at least {CACHE_LIMIT:g})")
    list(ours(model, block, 2, 0.0, 1.0, block=block, cache="dual"))  # warm up
    spent, final, passes = {}, {}, {}
    for cache in ("none", "dual"):
        began = time.perf_counter()
        for step in ours(model, new, steps, 0.0, 1.0, block=block, cache=cache):
            final[cache] = step.ids
        wait(model.device)
        spent[cache], passes[cache] = time.perf_counter() - began, model.nfe
    agree = (final["dual"] == final["none"])[:, PROMPT:].float().mean()
    remark = f"NFE {passes['none']} and {passes['dual']}, {100 * agree:.1f} % of tokens agree"
    ratio = spent["none"] / spent["dual"]
    row("dual, mean step", spent["none"] / passes["none"], spent["dual"] / passes["dual"], ratio, remark)
    return ratio >= CACHE_LIMIT


def part_d(model: Denoiser, new: int) -> bool:
    print(f"(d) temperature 0.1, top-p 0.9: peak memory beyond the weights, first steps of {new} new tokens")
    runs = {
        "binary": lambda: ours(model, new, 4, 0.1, 0.9),
        "soft-masked": lambda: ours(model, new, 4, 0.1, 0.9, soft_mask=True),
        "soft-masked, blocks of 32, dual cache": lambda: ours(
            model, new, new // 8, 0.1, 0.9, block=32, cache="dual", soft_mask=True
        ),
        "reference, all (L, V) logits sorted": lambda: reference(model, new, 4, 0.1, 0.9, True),
    }
    for name, steps in runs.items():
        with peak_memory(model.device) as found:
            for _, _step in zip(range(3), steps(), strict=False):
                pass
        print(f"  {name:58}{found[0]:10.0f} MiB", flush=True)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="a,b,c,d")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    parts, missed = arguments.parts.split(","), []
    print(f"{arguments.device}, {torch.get_num_threads()} threads, fp32; medians of a step\n")
    # Dream is 3,584 wide. The narrower the body, the more a pass over the logits weighs, which (a) and (b) are about.
    if set(parts) & set("abd"):
        model = dream(1024, 8, arguments.device)
        print(f"Dream: 8 layers of width 1,024, vocabulary {VOCABULARY:,}")
        if "a" in parts and not part_a({"Dream": model, "DiT small": small_dit(arguments.device)}, 224, 16, 2):
            missed.append("a")
        if "b" in parts and not part_b(model, 224, 8):
            missed.append("b")
        if "d" in parts:
            part_d(model, 224)
        del model
    if "c" in parts:
        print(f"Dream: 12 layers of width 512, vocabulary {VOCABULARY:,}")
        if not part_c(dream(512, 12, arguments.device), 512, 512, 32):
            missed.append("c")
    if missed:
        raise SystemExit(f"FAILED: {', '.join(missed)} missed the limit")


if __name__ == "__main__":
    main()
