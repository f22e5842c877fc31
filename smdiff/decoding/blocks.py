"""Semi-autoregressive decoding: columns of the text that are filled one block after the other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Columns `start` to before `end`, and the steps to fill them in."""

    start: int
    end: int
    steps: int


def blocks_of(start: int, end: int, length: int, steps: int) -> list[Block]:
    """Columns `start` to before `end` in blocks of `length`; the steps are spread evenly, a rest to the first blocks.

    Raises:
        ValueError: the columns do not divide into such blocks, or there are fewer steps than blocks.
    """
    count, rest = divmod(end - start, length)
    if rest:
        raise ValueError(f"{end - start} tokens do not divide into blocks of {length}")
    if steps < count:
        raise ValueError(f"{count} blocks need at least as many steps, not {steps}")
    each, more = divmod(steps, count)
    return [Block(start + i * length, start + (i + 1) * length, each + (i < more)) for i in range(count)]
