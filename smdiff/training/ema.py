"""Averaged weights of the backbone, which are what a run delivers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def _local(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter: all of it, or its shard."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter.data


class Ema:
    """Exponential moving average of a module's trainable parameters.

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that a short run does not keep its random start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates, self._paused = decay, 0, False
        self._live = {n: p for n, p in module.named_parameters() if p.requires_grad}
        with torch.no_grad():
            self.average: dict[str, Tensor] = {n: _local(p).clone() for n, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        if self._paused:
            self._paused = False
            return
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.values()), list(map(_local, self._live.values())), 1 - decay)

    def pause(self) -> None:
        """Leave out the next update: the step made none."""
        self._paused = True

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in place of the parameters while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._live.items():
            kept = _local(parameter).clone()
            _local(parameter).copy_(self.average[name])
            self.average[name].copy_(kept)

    def save(self, path: Path, module: nn.Module) -> None:
        """Write the averages, which `module` holds now, and the number of updates."""
        tensors = {name: p.detach() for name, p in module.named_parameters() if name in self.average}
        save_file(tensors, path, metadata={"updates": str(self.updates), "format": "pt"})
