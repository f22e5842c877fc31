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

from smdiff.diffusion.prediction import Prediction

# Keeps softplus and its negative away from exactly 0, as in the reference's heads, so that their exported values agree.
_FLOOR = 1e-6
# sigmoid(raw) = w_s is inverted at the start; the paper starts at 0, which means logit(1e-6).
_MIN_SCALE = 1e-6

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

    def __getitem__(self, rows: Tensor) -> Feedback:
        """The feedback of some of the positions: `rows` is (N,) bool."""
        return Feedback(*(None if x is None else x[rows] for x in (self.logits, self.indices, self.neg_entropy)))

    @classmethod
    def cat(cls, parts: list[Feedback]) -> Feedback:
        """The feedback of several groups of positions, one after the other."""
        fields = zip(*((p.logits, p.indices, p.neg_entropy) for p in parts), strict=True)
        return cls(*(None if f[0] is None else torch.cat(f) for f in fields))


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

    def observe(self, prediction: Prediction | Tensor) -> Feedback:
        """Reduce a prediction, or its logits (N, V), to what the next input needs. Without gradient."""
        if isinstance(prediction, Tensor):
            prediction = Prediction(prediction.detach())
        if self.k is None:
            # A forbidden token's logit would turn the temperature's gradient into NaN.
            return Feedback(prediction.logits.float().clamp(min=-1e6), None, None)
        values, indices = prediction.top(self.k)
        return Feedback(values, indices, prediction.statistics()[1])

    def strength(self, neg_entropy: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """lambda for `neg_entropy` of any shape; `scale` multiplies w_s (a schedule over decoding progress)."""
        return scale * self.w_s * torch.sigmoid(self.w_a * (neg_entropy - self.w_b))

    def blend(self, feedback: Feedback, scale: float | Tensor = 1.0) -> Tensor:
        """(N,) lambda at the positions of `feedback`."""
        if feedback.neg_entropy is not None:
            return self.strength(feedback.neg_entropy, scale)
        log_p = (feedback.logits / self.temperature).log_softmax(-1)
        return self.strength((log_p.exp() * log_p).sum(-1), scale)

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
            p = (feedback.logits / self.temperature).softmax(-1)
            strength = self.blend(feedback, scale)[:, None].to(table.dtype)
            plain = F.embedding(ids, table)
            mixture = (p.to(table.dtype) @ table).to(table.dtype)  # autocast multiplies in half precision
            return plain.masked_scatter(masked[..., None], torch.lerp(plain[masked], mixture, strength))
        strength = self.blend(feedback, scale)[:, None]
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
    def from_transparency(cls, stored: dict[str, Any]) -> SoftMask | None:
        """From the `transparency_config.json` of the paper's code (values rounded to bf16); None if it is off."""
        kind, temperature = stored["transparency_alg"], float(stored.get("mixture_temp", 1.0))
        if kind == "none":
            return None
        if kind not in ("mixinputs_with_topk", "mixinputs_with_temp"):
            raise ValueError(f"transparency_alg {kind!r} is not known")
        if kind == "mixinputs_with_topk" and temperature != 1:
            raise ValueError(f"a mixture_temp of {temperature:g} with top-k is not supported")
        w_s, w_a, w_b = (float(stored[f"transparency_{name}"]) for name in ("scale", "steepness", "centre"))
        return cls(int(stored["mixinputs_k"]) if kind == "mixinputs_with_topk" else None, w_s, w_a, w_b, temperature)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> SoftMask:
        """The inverse of `save`."""
        module = cls(k=stored["k"])
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.fill_(float(stored["raw"][name]))
        return module


class Memory:
    """The last prediction at every position of a batch, for the positions that have one.

    A position is forgotten when its token is decided, and has no feedback until it is predicted again: it then
    enters as the plain mask.
    """

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self.known = torch.zeros(shape, dtype=torch.bool, device=device)
        self._grids: list[Tensor] = []

    def write(self, where: Tensor, feedback: Feedback) -> None:
        """Keep `feedback`, whose N rows belong to the N true entries of `where` (B, L, bool), row-major."""
        parts = [x for x in (feedback.logits, feedback.indices, feedback.neg_entropy) if x is not None]
        if not self._grids:
            self._grids = [x.new_zeros(*where.shape, *x.shape[1:]) for x in parts]
        for grid, part in zip(self._grids, parts, strict=True):
            grid[where] = part
        self.known |= where

    def write_certain(self, where: Tensor, tokens: Tensor) -> None:
        """Keep certainty about `tokens` (N,): what a visible position predicts of itself (SUBS carries it over)."""
        logits = torch.full_like(self._grids[0][where], -1e6)
        if len(self._grids) == 1:
            return self.write(where, Feedback(logits.scatter(1, tokens[:, None], 0.0), None, None))
        logits[:, 0] = 0.0
        self.write(where, Feedback(logits, tokens[:, None].expand_as(logits), logits.new_zeros(len(tokens))))

    def read(self, where: Tensor) -> Feedback:
        """Feedback of the true entries of `where`, which must all be known."""
        parts = [grid[where] for grid in self._grids]
        return Feedback(*parts) if len(parts) == 3 else Feedback(parts[0], None, None)


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
