"""Soft-masking: what a position that stays masked carries from one prediction into the next input.

"Soft-Masked Diffusion Language Models" (arXiv 2510.17206), section 3. The input at a masked position becomes

    x = (1 - lambda) E[m] + lambda sum_i pi_i E[v_i],    lambda = w_s sigmoid(w_a (-H(p) - w_b))

with p the last prediction there, H its entropy in nats and pi the softmax of its k largest logits. Everything is kept
sparse: k indices and weights a masked position, never a vector over the vocabulary.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Keeps softplus and its negative away from exactly 0, as in the reference's heads, so that their exported values agree.
_FLOOR = 1e-6
# sigmoid(raw) = w_s is inverted at the start; the paper starts at 0, which means logit(1e-6).
_MIN_SCALE = 1e-6
# Width of the blocks whose maxima are searched first.
_BLOCK = 64

SCHEDULES = ("none", "linear", "step")


@dataclass(frozen=True)
class Feedback:
    """A prediction at N masked positions, reduced to what the blend needs.

    Attributes:
        logits: (N, k) the k largest logits, or (N, V) all of them where the mixture is over the full vocabulary.
        indices: (N, k) their token ids; None for the full vocabulary.
        neg_entropy: (N,) sum p log p in nats; None for the full vocabulary, where it depends on the temperature.
    """

    logits: Tensor
    indices: Tensor | None
    neg_entropy: Tensor | None


def negative_entropy(logits: Tensor) -> Tensor:
    """sum p log p in nats over the last axis of `logits` (N, V), p = softmax(logits): (N,), at most 0.

    Written with one exponential; entries of -inf (a forbidden token) count as p = 0.
    """
    shifted = logits - logits.amax(-1, keepdim=True)
    p = shifted.exp()
    total = p.sum(-1)
    return (p * shifted.clamp(min=-1e4)).sum(-1) / total - total.log()


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row of (N, V) and their indices, in falling order.

    The k largest entries lie in the k blocks with the largest maxima, so a fast maximum over blocks followed by a
    top-k among k blocks is exact and about twice as fast as torch.topk on a CPU.
    """
    n, v = logits.shape
    blocks = v // _BLOCK
    if logits.device.type != "cpu" or blocks <= 4 * k or n == 0:
        values, indices = logits.topk(k)
        return values, indices
    body = logits[:, : blocks * _BLOCK].view(n, blocks, _BLOCK)
    best = body.amax(-1).topk(k).indices
    candidates = body.gather(1, best[..., None].expand(-1, -1, _BLOCK)).flatten(1)
    tail = logits[:, blocks * _BLOCK :]  # the vocabulary need not be a multiple of the block
    values, where = torch.cat([candidates, tail], 1).topk(k)
    block = best.gather(1, (where // _BLOCK).clamp(max=k - 1))
    indices = torch.where(where < k * _BLOCK, block * _BLOCK + where % _BLOCK, blocks * _BLOCK + where - k * _BLOCK)
    return values, indices


class SoftMask(nn.Module):
    """The three learned scalars of soft-masking, and the blend they control.

    Args:
        k: how many predictions are mixed in; None mixes all of the vocabulary, with a learned temperature.
        w_s: start of the scale, in [0, 1): 0 is plain masking.
        w_a: start of the steepness, > 0, in 1/nat.
        w_b: start of the centre, < 0, in nats of negative entropy.
        temperature: start of the temperature of the full mixture, > 0.
    """

    def __init__(
        self,
        k: int | None = 3,
        w_s: float = 0.0,
        w_a: float = 6.66,
        w_b: float = -0.75,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.k = k
        scale = min(max(w_s, _MIN_SCALE), 1 - _MIN_SCALE)
        self.raw_scale = nn.Parameter(torch.tensor(math.log(scale / (1 - scale))))
        self.raw_steepness = nn.Parameter(torch.tensor(math.log(math.expm1(max(w_a - _FLOOR, _FLOOR)))))
        self.raw_centre = nn.Parameter(torch.tensor(math.log(math.expm1(max(-w_b - _FLOOR, _FLOOR)))))
        if k is None:
            self.raw_temperature = nn.Parameter(torch.tensor(math.log(math.expm1(max(temperature - _FLOOR, _FLOOR)))))

    @property
    def w_s(self) -> Tensor:
        """Scale in (0, 1): the largest share of the mask's embedding that predictions can replace."""
        return self.raw_scale.sigmoid()

    @property
    def w_a(self) -> Tensor:
        """Steepness, > 0."""
        return F.softplus(self.raw_steepness) + _FLOOR

    @property
    def w_b(self) -> Tensor:
        """Centre, < 0: the negative entropy at which lambda is half of the scale."""
        return -F.softplus(self.raw_centre) - _FLOOR

    @property
    def temperature(self) -> Tensor:
        """Temperature of the full mixture, > 0."""
        return F.softplus(self.raw_temperature) + _FLOOR

    def observe(self, logits: Tensor) -> Feedback:
        """Reduce a prediction (N, V) to what the next input needs. Without gradient."""
        logits = logits.detach().float()
        if self.k is None:
            # A forbidden token's -inf would turn the temperature's gradient into NaN.
            return Feedback(logits.clamp(min=-1e6), None, None)
        values, indices = top_k(logits, min(self.k, logits.shape[-1]))
        return Feedback(values, indices, negative_entropy(logits))

    def strength(self, neg_entropy: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """lambda for `neg_entropy` of any shape; `scale` multiplies w_s (a schedule over decoding progress)."""
        return scale * self.w_s * torch.sigmoid(self.w_a * (neg_entropy - self.w_b))

    def embed(
        self,
        ids: Tensor,
        masked: Tensor,
        feedback: Feedback,
        table: Tensor,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """Input embeddings (B, L, D): of `ids` where visible, the soft-masked blend where `masked`.

        Args:
            ids: (B, L) tokens, the mask token where `masked`.
            masked: (B, L) bool with N true entries.
            feedback: the last prediction at those N positions, row-major.
            table: (V, D) input embeddings.
            scale: factor on lambda in [0, 1], one or (N,); 0 gives the mask's embedding exactly.
        """
        if feedback.indices is None:
            log_p = (feedback.logits / self.temperature).log_softmax(-1)
            p = log_p.exp()
            strength = self.strength((p * log_p).sum(-1), scale)[:, None].to(table.dtype)
            plain = F.embedding(ids, table)
            return plain.masked_scatter(
                masked[..., None], torch.lerp(plain[masked], p.to(table.dtype) @ table, strength)
            )
        assert feedback.neg_entropy is not None
        strength = self.strength(feedback.neg_entropy, scale)[:, None]
        # Every position is a bag of weighted rows: a visible one holds its token with weight 1, a masked one the mask
        # and its k predictions. One gather-and-sum kernel makes all of the input, and one pass its gradient; the
        # (N, k, D) rows are never materialised.
        n, k = feedback.indices.shape
        sizes = 1 + k * masked.flatten()
        in_mask = masked.flatten().repeat_interleave(sizes, output_size=masked.numel() + n * k)
        rows = torch.cat([ids[masked][:, None], feedback.indices], 1)
        weights = torch.cat([1 - strength, strength * feedback.logits.softmax(-1)], 1)
        rows = ids.flatten().repeat_interleave(sizes, output_size=len(in_mask)).masked_scatter(in_mask, rows)
        weights = torch.ones_like(rows, dtype=weights.dtype).masked_scatter(in_mask, weights).to(table.dtype)
        bags = F.embedding_bag(rows, table, sizes.cumsum(0) - sizes, per_sample_weights=weights, mode="sum")
        return bags.view(*ids.shape, -1)

    def values(self) -> dict[str, float]:
        """The scalars as users know them: w_s, w_a, w_b (and the temperature of the full mixture)."""
        names = ("w_s", "w_a", "w_b") + (("temperature",) if self.k is None else ())
        return {name: float(getattr(self, name)) for name in names}

    def save(self, folder: Path) -> None:
        """Write `soft_mask.json`: the raw parameters (exact) beside the values that a person reads."""
        raw = {name: float(p) for name, p in self.named_parameters()}
        (folder / "soft_mask.json").write_text(json.dumps({"k": self.k, **self.values(), "raw": raw}, indent=2) + "\n")

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> SoftMask:
        """The inverse of `save`."""
        module = cls(k=stored["k"])
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.fill_(float(stored["raw"][name]))
        return module


def progress_scale(schedule: str, masks_left: Tensor, threshold: float = 0.5) -> Tensor:
    """Factor on lambda over decoding progress (paper, section 5.3), of the shape of `masks_left`.

    Args:
        schedule: "none" (always 1), "linear" (the share of masks left), or "step" (1 while that share is above
            `threshold`, then 0).
        masks_left: masks left over masks at the start, in [0, 1].
    """
    if schedule == "none":
        return torch.ones_like(masks_left)
    if schedule == "linear":
        return masks_left
    if schedule == "step":
        return (masks_left > threshold).to(masks_left.dtype)
    raise ValueError(f"unknown soft-mask schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
