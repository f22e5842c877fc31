"""Held-out likelihood of several models on the same sequences and the same masks, with paired differences."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from smdiff.config import EvalTextConfig
from smdiff.data.corpora import Corpus, is_built_in, load_corpus
from smdiff.data.hub import Documents
from smdiff.data.packing import pack, sequences
from smdiff.errors import UserError
from smdiff.evaluation.store import Lines
from smdiff.evaluation.text import Mean, bytes_per_token, elbo, verdict
from smdiff.files import read_json, run_of
from smdiff.models.load import Model

SCORES = "scores.jsonl"
KEY = ("key",)


def lineage(model: str) -> Iterator[dict[str, Any]]:
    """What run.json says of `model` and of the runs that it continues."""
    seen: set[Path] = set()
    folder: Path | None = Path(model).expanduser()
    while folder is not None and folder not in seen:
        seen.add(folder)
        home = run_of(folder)
        run = {} if home is None else read_json(home / "run.json") or {}
        yield run
        init = run.get("identity", {}).get("init") or run.get("identity", {}).get("model")
        folder = None if init is None else Path(init).expanduser()


def _trained_on(models: list[str], corpus: Corpus) -> list[dict[str, Any]]:
    """The configurations of the runs behind `models` that trained on this very data."""

    def same(run: dict[str, Any]) -> bool:
        trained = run.get("corpus") or {}
        return trained.get("name") == corpus.name or trained.get("sha256") == corpus.sha256 is not None

    return [run["identity"] for model in models for run in lineage(model) if "identity" in run and same(run)]


@dataclass
class Part:
    """The documents of one source that are scored.

    Attributes:
        split: "held-out" or "all".
    """

    corpus: Corpus
    documents: Documents
    split: str
    _packed: list[tuple[dict[str, int], Documents]] = field(default_factory=list)

    def sequences(self, tokenizer: PreTrainedTokenizerBase, length: int, limit: int) -> Tensor:
        """At most `limit` sequences (S, length), spread evenly; the same for models that share a vocabulary."""
        vocabulary = tokenizer.get_vocab()
        packed = next((p for v, p in self._packed if v == vocabulary), None)
        if packed is None:
            packed = pack(self.documents, tokenizer, length, self.corpus.name)
            self._packed.append((vocabulary, packed))
        return sequences(packed, limit)

    def facts(self) -> dict[str, Any]:
        return {"name": self.corpus.name, "sha256": self.corpus.sha256, "split": self.split}


def part(models: list[str], source: str, config: EvalTextConfig) -> Part:
    """What of a source is scored. The held-out part is one that every model trained on this data held out too."""
    corpus = load_corpus(source, valid_fraction=config.valid_fraction, column=config.text_column, scored=True)
    runs = _trained_on(models, corpus)
    split = config.split
    if split == "auto":
        split = "held-out" if runs or corpus.own_split or is_built_in(source) else "all"
    if split == "all":
        return Part(corpus, corpus.documents, split)
    if not corpus.own_split and any(run.get("valid_data") for run in runs):
        raise UserError(
            f"--data {source} has no held-out part", "a model was trained on all of it, with --valid-data",
            "Score on that data, or on all of this one with --split all.",
        )  # fmt: skip
    share = min([config.valid_fraction, *(run["valid_fraction"] for run in runs)])
    if share < config.valid_fraction:
        corpus = load_corpus(source, valid_fraction=share, column=config.text_column)
    return Part(corpus, corpus.valid, split)


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """What tokenizers share whose tokens mean the same."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def score(
    model: Model, of: Part, config: EvalTextConfig, length: int, key: str, lines: Lines, advance: Callable[[int], None]
) -> None:
    """Score a model on a part of a source, and keep the figures of every sequence."""
    x0 = of.sequences(model.tokenizer, length, config.limit)
    found = elbo(
        model.denoiser, x0, draws=config.draws, seed=config.seed, batch_size=config.batch_size, advance=advance
    )
    record = {
        "key": key,
        "exact": model.denoiser.causal,
        "vocabulary": vocabulary_hash(model.tokenizer),
        "bytes_per_token": bytes_per_token(model.tokenizer.batch_decode(x0, skip_special_tokens=True), x0.numel()),
        "one_pass": found.one_pass.tolist(),
        "two_pass": None if found.two_pass is None else found.two_pass.tolist(),
    }
    lines.add([record])


def rows(scored: list[tuple[str, dict[str, Any]]], data: str) -> list[dict[str, Any]]:
    """A row for each model and number of passes; differences are against the first model's own bound.

    Args:
        scored: models and their records, in the order of the table.
    """
    found: list[dict[str, Any]] = []
    base = scored[0][1]
    against = base["two_pass"] or base["one_pass"]
    for name, record in scored:
        for passes, values in ((1, record["one_pass"]), (2, record["two_pass"])):
            if values is None:
                continue
            row = _row(name, data, passes, torch.tensor(values, dtype=torch.float64), record)
            if record["vocabulary"] == base["vocabulary"] and values is not against:
                row["difference"] = _difference(values, against)
            found.append(row)
    return found


def _row(model: str, data: str, passes: int, values: Tensor, record: dict[str, Any]) -> dict[str, Any]:
    mean = Mean.of(values)
    return {
        "model": model,
        "data": data,
        "passes": passes,
        "sequences": mean.n,
        "exact": record["exact"],
        "vocabulary": record["vocabulary"],
        "perplexity": mean.perplexity,
        "nats": mean.mean,
        "standard_error": mean.standard_error,
        "bits_per_byte": mean.mean / math.log(2) / record["bytes_per_token"],
    }


def _difference(values: list[float], against: list[float]) -> dict[str, Any]:
    """Paired difference in nats a token over the same sequences and masks."""
    paired = Mean.of(torch.tensor(values, dtype=torch.float64) - torch.tensor(against, dtype=torch.float64))
    return {
        "nats": paired.mean,
        "standard_error": paired.standard_error,
        "interval": paired.interval,
        "perplexity_ratio": paired.perplexity,
        "verdict": verdict(paired),
    }
