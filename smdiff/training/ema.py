"""Averaged weights of the backbone, which are what a run delivers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Ema:
    """Exponential moving average of a module's trainable parameters.

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that a short run does not keep its random start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates, self._paused = decay, 0, False
        self._live = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.average: dict[str, Tensor] = {n: p.detach().clone() for n, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        if self._paused:
            self._paused = False
            return
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.values()), list(self._live.values()), 1 - decay)

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
            parameter.data, self.average[name] = self.average[name], parameter.data

    def save(self, path: Path) -> None:
        """Write the averages and the number of updates."""
        save_file(self.average, path, metadata={"updates": str(self.updates), "format": "pt"})

    def load(self, path: Path, updates: int) -> None:
        """Read them back; the number of updates is that of the optimiser's steps."""
        for name, tensor in load_file(path).items():
            self.average[name].copy_(tensor)
        self.updates = updates
