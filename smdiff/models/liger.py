"""The output layer and its cross-entropy as one kernel of liger-kernel, which never holds all logits. CUDA only."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from smdiff.errors import UserError


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
