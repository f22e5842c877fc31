"""How models are scored: `smdiff eval-text`."""

from __future__ import annotations

from dataclasses import dataclass

from smdiff.config.options import option

DATA = "Data"


@dataclass(frozen=True)
class EvalTextConfig:
    """How models are scored on text."""

    data: str = option("python-stdlib", "What to score on: as in smdiff pretrain", DATA)
    split: str = option(
        "auto",
        "auto: the held-out part of built-in data and of data that a model was trained on, else all; or say which",
        DATA,
        choices=("auto", "held-out", "all"),
    )
    valid_fraction: float = option(0.05, "Share that is held out, as in training", DATA, above=0, high=0.5)
    text_column: str = option("text", "Column with the text, in jsonl, parquet and hub data", DATA)
    tokenizer: str | None = option(None, "Folder or hub name, for bare weights that carry none", DATA)
    length: int | None = option(
        None, "Tokens in a sequence; by default the training length, at most 1024", DATA, low=2, high=131072
    )
    limit: int = option(512, "Sequences scored, at most; spread evenly over the data", DATA, low=1, high=100_000_000)
    draws: int = option(8, "Masks drawn for each sequence, stratified over the masked share", "Estimate",
                        low=1, high=100_000)  # fmt: skip
    seed: int = option(0, "Seed of the masks, which all models share", "Estimate", low=0, high=2**31)
    batch_size: int = option(32, "Sequences at once; does not change the result", "Estimate", low=1, high=100_000)
