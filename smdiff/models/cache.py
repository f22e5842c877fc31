"""The keys and values of a whole text, of which one window is computed anew (Fast-dLLM, arXiv 2505.22618).

A bidirectional model has no cache that stays exact: every key depends on every token. But over the few steps in which
one block of the text is filled, the keys and values elsewhere hardly change. One pass over everything fills the cache;
the following ones compute a window (the block, or the block and all after it), write it in place and attend to
everything.
"""

from __future__ import annotations

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class _WindowLayer(DynamicLayer):
    """Keys and values of one layer, (B, H, L, head_dim)."""

    window = slice(0, None)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Put the window's keys and values in their place; returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states.contiguous(), value_states.contiguous()
        else:
            self.keys[:, :, self.window] = key_states
            self.values[:, :, self.window] = value_states
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys and their offset: the window is part of what is there already."""
        return (self.keys.shape[-2] if self.is_initialized else query_length), 0


class BlockCache(Cache):
    """A `transformers` cache over all positions. A new one is empty: its first pass must cover everything.

    Attributes:
        window: the columns that the next pass computes; everything until `narrow` is called.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_WindowLayer)
        self.window = slice(0, None)

    @property
    def filled(self) -> bool:
        """Whether a pass over everything has been made."""
        return bool(self.layers)

    def narrow(self, start: int, end: int | None) -> None:
        """From now on compute the columns from `start` to before `end` only."""
        self.window = slice(start, end)
        for layer in self.layers:
            layer.window = self.window
