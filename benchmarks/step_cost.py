"""What a two-pass training step costs over a one-pass step, and what logits at masked positions only save.

    python benchmarks/step_cost.py

The floor of the first ratio is (1 + 1 + 2) / (1 + 2) = 1.33: a forward pass more on top of a forward and a backward of
twice its cost. Both kinds of step alternate in one run, and ratios are medians over pairs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from smdiff.config import PretrainConfig, resolve
from smdiff.diffusion.noise import SCHEDULES, NoiseDraw, corrupt, draw_step
from smdiff.diffusion.objective import negative_elbo
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.models.denoiser import Denoiser
from smdiff.models.dit import DiT, DiTConfig
from smdiff.training.ema import Ema

NOISE = SCHEDULES["log-linear"]
LIMIT = 1.40
# The model that `make demo` trains.
DEMO = {"layers": 2, "batch_size": 16}


class Step:
    """One optimiser step as in training: loss, gradients, clipping, AdamW, averaging."""

    def __init__(self, config: PretrainConfig, vocab_size: int, length: int, rows: int) -> None:
        torch.manual_seed(0)
        shape = DiTConfig(vocab_size, config.hidden_size, config.layers, config.heads, config.cond_dim, 0.0)
        self.model = Denoiser(DiT(shape), shape.mask_token_id, SoftMask(config.k, config.w_s))
        self.x0 = torch.randint(0, vocab_size - 1, (rows, length))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        self.ema = Ema(self.model.backbone, 0.999)

    def draw(self, index: int, two_pass: bool) -> NoiseDraw:
        rows, length = self.x0.shape
        noise = draw_step(NOISE, seed=0, step=index, rows=rows, length=length)
        return NoiseDraw(noise.t, noise.masked, two_pass)

    def finish(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update()

    def run(self, index: int, two_pass: bool) -> None:
        loss = negative_elbo(
            self.model, self.x0, self.draw(index, two_pass), NOISE, self.model.mask_id, self.model.soft_mask
        )
        self.finish(loss.total() / self.x0.numel())

    def run_with_all_logits(self, index: int) -> None:
        """A one-pass step that computes logits, log-softmax and loss at every position, as the references do."""
        draw = self.draw(index, two_pass=False)
        x_t = corrupt(self.x0, draw.masked, self.model.mask_id)
        logits = self.model.backbone.decode(self.model.backbone.encode(self.model.backbone.vocab_embed(x_t)))
        nll = -logits.log_softmax(-1).gather(-1, self.x0[..., None])[..., 0]
        weight = NOISE.weight(draw.t)[:, None] * draw.masked
        self.finish((nll * weight).sum() / self.x0.numel())


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired(a: Callable[[int], None], b: Callable[[int], None], pairs: int) -> tuple[float, float, float]:
    """Median seconds of `a` and of `b`, and the median of their ratio a/b, alternating on the same noise."""
    for index in range(2):
        a(index), b(index)
    times = [(seconds(lambda i=i: a(i)), seconds(lambda i=i: b(i))) for i in range(pairs)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return medians[0], medians[1], statistics.median(x / y for x, y in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40)
    arguments = parser.parse_args()
    demo = resolve(PretrainConfig, DEMO).config
    print(f"width {demo.hidden_size}, {torch.get_num_threads()} threads, fp32; medians over {arguments.pairs} pairs")
    print(f"{'two-pass over one-pass step':50}{'two-pass':>11}{'one-pass':>11}{'ratio':>8}")
    ratios = []
    for name, config, vocab_size in (("demo", demo, 258), ("tiny", resolve(PretrainConfig, {}).config, 1024)):
        step = Step(config, vocab_size, config.length, config.batch_size)
        two, one, ratio = paired(lambda i: step.run(i, True), lambda i: step.run(i, False), arguments.pairs)  # noqa: B023
        label = f"{name}: {config.layers} blocks, vocabulary {vocab_size}, {config.batch_size} x {config.length} tokens"
        print(f"{label:50}{two * 1e3:9.1f}ms{one * 1e3:9.1f}ms{ratio:8.3f}")
        ratios.append(ratio)
    print(f"(the demo model's is to be at most {LIMIT}; the floor in FLOPs is 1.333)")
    config = resolve(PretrainConfig, {}).config
    print(f"\n{'one-pass step, logits at':50}{'all':>11}{'masked':>11}{'ratio':>8}")
    for vocab_size, rows, pairs in ((4096, 16, arguments.pairs // 2), (50258, 8, max(3, arguments.pairs // 5))):
        step = Step(config, vocab_size, config.length, rows)
        everywhere, masked, saved = paired(step.run_with_all_logits, lambda i: step.run(i, False), pairs)  # noqa: B023
        label = f"vocabulary {vocab_size}, {rows} x {config.length} tokens"
        print(f"{label:50}{everywhere * 1e3:9.1f}ms{masked * 1e3:9.1f}ms{saved:8.3f}")
    if ratios[0] > LIMIT:
        raise SystemExit(f"FAILED: two-pass over one-pass is {ratios[0]:.3f}, above {LIMIT}")


if __name__ == "__main__":
    main()
