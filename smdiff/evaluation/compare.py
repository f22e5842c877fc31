"""`smdiff eval-text`: several models on the same sequences and the same masks, with paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from smdiff.config import EvalTextConfig, as_dict
from smdiff.data.corpora import Corpus, Documents, is_built_in, load_corpus
from smdiff.data.packing import pack, sequences
from smdiff.errors import UserError
from smdiff.evaluation.results import result
from smdiff.evaluation.text import Elbo, Mean, bytes_per_token, elbo, verdict
from smdiff.files import read_json, run_of
from smdiff.models.denoiser import Denoiser
from smdiff.models.load import load
from smdiff.ui.console import note, track

_LONGEST = 1024


def _lineage(model: str) -> Iterator[dict[str, Any]]:
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

    return [run["identity"] for model in models for run in _lineage(model) if "identity" in run and same(run)]


def _part(models: list[str], config: EvalTextConfig) -> tuple[Documents, str, Corpus]:
    """The documents to score, and which part of the data they are.

    The held-out part is one that every model trained on this data held out too.
    """
    corpus = load_corpus(config.data, valid_fraction=config.valid_fraction, column=config.text_column)
    runs = _trained_on(models, corpus)
    split = config.split
    if split == "auto":
        split = "held-out" if runs or corpus.own_split or is_built_in(config.data) else "all"
    if split == "all":
        return corpus.documents, split, corpus
    if not corpus.own_split and any(run.get("valid_data") for run in runs):
        raise UserError(
            f"--data {config.data} has no held-out part", "a model was trained on all of it, with --valid-data",
            "Score on that data, or on all of this one with --split all.",
        )  # fmt: skip
    share = min([config.valid_fraction, *(run["valid_fraction"] for run in runs)])
    if share < config.valid_fraction:
        corpus = load_corpus(config.data, valid_fraction=share, column=config.text_column)
    return corpus.valid, split, corpus


def _length(name: str, denoiser: Denoiser) -> int:
    """The length that a model was trained on; of one that could take very long texts, a usual one."""
    run = next(iter(_lineage(name)))
    return run.get("identity", {}).get("max_length") or min(denoiser.max_length, _LONGEST)


def _difference(scores: torch.Tensor, base: torch.Tensor) -> dict[str, Any]:
    """Paired difference in nats a token over the same sequences and masks."""
    paired = Mean.of(scores - base)
    return {
        "nats": paired.mean,
        "standard_error": paired.standard_error,
        "interval": paired.interval,
        "perplexity_ratio": paired.perplexity,
        "verdict": verdict(paired),
    }


def _row(model: str, passes: int, scores: torch.Tensor, bytes_each: float) -> dict[str, Any]:
    mean = Mean.of(scores)
    return {
        "model": model,
        "passes": passes,
        "perplexity": mean.perplexity,
        "nats": mean.mean,
        "standard_error": mean.standard_error,
        "bits_per_byte": mean.mean / math.log(2) / bytes_each,
    }


def compare(models: list[str], config: EvalTextConfig) -> dict[str, Any]:
    """Score `models` and return the result: a row for each model and number of passes.

    Each row's difference is against the first model's own bound, over the same sequences and masks; models of
    another tokenizer have none, and only bits per byte compare.

    Raises:
        UserError: a model or the data cannot be used.
    """
    loaded = {name: load(name, config.tokenizer) for name in dict.fromkeys(models)}
    note(f"reading {config.data}")
    documents, split, corpus = _part(models, config)
    length = config.length or min(_length(name, model.denoiser) for name, model in loaded.items())
    rows: list[dict[str, Any]] = []
    reference: tuple[dict[str, int], Elbo] | None = None
    packed: list[tuple[dict[str, int], torch.Tensor]] = []  # sequences of each vocabulary
    with track("scoring", len(loaded) * config.limit * config.draws) as tracker:
        for index, (name, (denoiser, tokenizer, remark)) in enumerate(loaded.items()):
            if remark:
                note(remark)
            vocabulary = tokenizer.get_vocab()
            x0 = next((x for v, x in packed if v == vocabulary), None)
            if x0 is None:
                x0 = sequences(pack(documents, tokenizer, length, config.data), config.limit)
                packed.append((vocabulary, x0))
            same = reference is not None and reference[0] == vocabulary
            bytes_each = bytes_per_token(tokenizer.batch_decode(x0, skip_special_tokens=True), x0.numel())
            found = elbo(
                denoiser, x0, draws=config.draws, seed=config.seed, batch_size=config.batch_size,
                advance=tracker.advance,
            )  # fmt: skip
            tracker.update((index + 1) * config.limit * config.draws)
            passes = [(1, found.one_pass)] + ([] if found.two_pass is None else [(2, found.two_pass)])
            for count, scores in passes:
                row = _row(name, count, scores, bytes_each)
                own_bound = reference is None and scores is found.bound
                if same and reference is not None:
                    row["difference"] = _difference(scores, reference[1].bound)
                elif reference is None and not own_bound:
                    row["difference"] = _difference(scores, found.bound)
                rows.append(row)
            reference = reference or (vocabulary, found)
    return result(
        "eval-text",
        as_dict(config),
        data={
            "name": corpus.name,
            "sha256": corpus.sha256,
            "split": split,
            "sequences": len(packed[0][1]),
            "length": length,
        },
        results=rows,
        notes=["perplexities are upper bounds, from the negative ELBO"],
    )
