"""The output layer and its cross-entropy in one, which never holds all logits: ours, and liger-kernel's for CUDA."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from smdiff.errors import UserError

# Rows of one block of logits and its elements, both at most, on a CPU (True) and a GPU: enough rows for a product to be
# worth its overhead, few enough for a CPU's cache.
_ROWS, _AT_ONCE = {True: 512, False: 4096}, {True: 2**24, False: 2**26}
# Tokens of one product: a CPU in float32 then takes the weights from its cache, and is up to half as fast again.
_WIDE = 1024
# Rows up to which `few_rows` is worth it.
FEW = 32


def few_rows(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`linear` as one product for each part of the vocabulary.

    A CPU's matrix product spreads few rows badly over its cores; parts of the vocabulary go about twice as fast.
    """
    vocabulary, width = weight.shape
    parts = next((c for c in range(64, 15, -1) if vocabulary % c == 0), 1)
    split = weight.view(parts, vocabulary // parts, width).transpose(1, 2)
    logits = torch.bmm(hidden.expand(parts, *hidden.shape), split).transpose(0, 1)
    return logits.reshape(-1, vocabulary).add_(bias)


def linear(hidden: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """hidden (N, D) @ weight (V, D) transposed + bias (V,), (N, V), without gradient."""
    if out is None:
        out = hidden.new_empty(len(hidden), len(weight))
    wide = _WIDE if hidden.is_cpu and hidden.dtype == torch.float32 else len(weight)
    for w, b, part in zip(weight.split(wide), bias.split(wide), out.split(wide, 1), strict=True):
        torch.addmm(b, hidden, w.T, out=part)
    return out


def logit_blocks(hidden: Tensor, weight: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """What `linear` gives for some rows at a time: which, and their logits.

    All are written into the same memory, as fresh pages of the system's cost a CPU a tenth of a step.
    """
    rows = max(1, min(_ROWS[hidden.is_cpu], _AT_ONCE[hidden.is_cpu] // len(weight)))
    parts = max(1, math.ceil(len(hidden) / rows))
    found, start = hidden.new_empty(math.ceil(len(hidden) / parts), len(weight)), 0
    for h in hidden.tensor_split(parts):
        yield slice(start, start + len(h)), linear(h, weight, bias, found[: len(h)])
        start += len(h)


def in_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As autocast would have them in a matrix product."""
    kind = tensors[0].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensors[0].dtype
    return tuple(x.to(dtype) for x in tensors)


class WeightedNll(torch.autograd.Function):
    """sum_n w_n (-log p_n(target_n)) of a linear layer's logits, and the N terms without their weights.

    The gradient of a block of logits is softmax minus one-hot, so with the weights known it is made where the block is,
    and no logits have to be kept for the backward pass, or computed again in it.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sum, which has a gradient, and (N,) -log p, which have none.

        Args:
            hidden: (N, D).
            weight: (V, D).
            bias: (V,), finite.
            targets: (N,) token ids.
            factors: (N,) the terms' weights.
        """
        nll = torch.empty(len(hidden), device=hidden.device)
        of_hidden, of_weight, of_bias = (
            torch.zeros(x.shape, device=x.device) if needed else None
            for x, needed in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        )
        h, w, b = in_autocast(hidden, weight, bias)
        with torch.autocast(hidden.device.type, enabled=False):
            scratch = torch.empty(0, device=hidden.device)
            for part, logits in logit_blocks(h, w, b):
                y, factor = targets[part][:, None], factors[part][:, None]
                scratch = scratch if len(scratch) else torch.empty(logits.shape, device=hidden.device)
                p, nll[part] = _softmax(logits, y, scratch)
                p.scatter_add_(1, y, p.new_full((1, 1), -1.0).expand_as(y))
                if of_bias is not None:
                    of_bias += factor[:, 0] @ p
                p = p.to(w.dtype)
                if of_hidden is not None:
                    of_hidden[part] = (p @ w) * factor
                if of_weight is not None:
                    _add_product(of_weight, p.T, (h[part] * factor).to(w.dtype))
        grads = (of_hidden, of_weight, of_bias)
        ctx.grads = [None if g is None else g.to(x.dtype) for g, x in zip(grads, (hidden, weight, bias), strict=True)]
        ctx.mark_non_differentiable(nll)
        return (nll * factors).sum(), nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Those made by `forward`, scaled; once, as they are scaled in place."""
        if (made := ctx.grads) is None:
            raise RuntimeError("gradients can be asked of a weighted loss once")
        ctx.grads = None
        return *(None if g is None else g.mul_(grads[0]) for g in made), None, None


def _softmax(logits: Tensor, targets: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """softmax of logits (n, V) in float32, in `out`, and (n,) -log p of `targets` (n, 1)."""
    p = torch.softmax(logits, -1, dtype=torch.float32, out=out[: len(logits)])
    return p, logits.amax(-1).float() - logits.gather(1, targets)[:, 0].float() - p.amax(-1).log()


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, summed in float32."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def check_liger() -> None:
    """Refuse where the kernel cannot run.

    Raises:
        UserError: no CUDA device, or no liger-kernel.
    """
    if not torch.cuda.is_available():
        raise UserError("--liger", "its kernels need a CUDA device", "Leave it out.")
    if find_spec("liger_kernel") is None:
        raise UserError("--liger needs liger-kernel", fix="pip install 'smdiff[liger]', or leave it out.")


def fused_nll(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """(N,) -log p of `targets` (N,) from hidden (N, D), weight (V, D) and bias (V,).

    Each token's gradient is scaled on its own, which liger-kernel does right from 0.8.5 on.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(hidden, weight, targets, bias=bias, reduction="none")
