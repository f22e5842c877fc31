"""`smdiff eval-text`: several models on the same sequences and the same masks, with paired differences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from smdiff.config import EvalTextConfig, as_dict
from smdiff.data.corpora import Corpus, Documents, is_built_in, load_corpus
from smdiff.data.packing import pack, sequences
from smdiff.errors import UserError
from smdiff.evaluation.results import read_json, result, write_json
from smdiff.evaluation.text import Elbo, Mean, bytes_per_token, elbo, verdict
from smdiff.models.load import load
from smdiff.ui.console import note, track


def _trained_on(model: str, corpus: Corpus) -> bool:
    """Whether `model`, or a run it continues, saw this very data in training."""
    seen: set[str] = set()
    folder: str | None = model
    while folder is not None and folder not in seen:
        seen.add(folder)
        run = read_json(Path(folder).expanduser() / "run.json") or {}
        trained = run.get("corpus", {})
        if trained and (trained.get("name") == corpus.name or trained.get("sha256") == corpus.sha256 is not None):
            return True
        folder = run.get("identity", {}).get("init")
    return False


def _part(models: list[str], config: EvalTextConfig) -> tuple[Documents, str, Corpus]:
    """The documents to score, and which part of the data they are."""
    corpus = load_corpus(config.data, valid_fraction=config.valid_fraction, column=config.text_column)
    split = config.split
    if split == "auto":
        held_out = is_built_in(config.data) or any(_trained_on(m, corpus) for m in models)
        split = "held-out" if held_out else "all"
    return (corpus.valid if split == "held-out" else corpus.documents), split, corpus


def _difference(scores: torch.Tensor, base: torch.Tensor) -> dict[str, Any]:
    """Paired difference in nats a token over the same sequences and masks."""
    paired = Mean.of(scores - base)
    return {
        "nats": paired.mean,
        "standard_error": paired.standard_error,
        "interval": paired.interval,
        "perplexity_change": math.expm1(paired.mean),
        "verdict": verdict(paired),
    }


def _row(model: str, passes: int, scores: torch.Tensor, bytes_each: float) -> dict[str, Any]:
    mean = Mean.of(scores)
    return {
        "model": model,
        "passes": passes,
        "perplexity_bound": mean.perplexity,
        "nats": mean.mean,
        "standard_error": mean.standard_error,
        "bits_per_byte": mean.mean / math.log(2) / bytes_each,
    }


def compare(models: list[str], config: EvalTextConfig, out: Path | None = None) -> dict[str, Any]:
    """Score `models` and return the result: a row for each model and number of passes.

    Each row's difference is against the first model's own bound, over the same sequences and masks; models of
    another tokenizer have none, and only bits per byte compare.

    Raises:
        UserError: a model or the data cannot be used, or `out` cannot be written.
    """
    if out is not None and (out.is_dir() or not out.resolve().parent.is_dir()):
        raise UserError(f"--out {out}", "a JSON file in a folder that exists is needed")
    loaded = {name: load(name, config.tokenizer) for name in dict.fromkeys(models)}
    note(f"reading {config.data}")
    documents, split, corpus = _part(models, config)
    length = config.length or min(d.backbone.config.max_position_embeddings for d, _, _ in loaded.values())
    rows: list[dict[str, Any]] = []
    reference: tuple[PreTrainedTokenizerBase, Elbo] | None = None
    x0 = torch.empty(0)
    with track("scoring", len(loaded) * config.limit * config.draws) as tracker:
        for index, (name, (denoiser, tokenizer, remark)) in enumerate(loaded.items()):
            if remark:
                note(remark)
            same = reference is not None and reference[0].get_vocab() == tokenizer.get_vocab()
            if not same:
                x0 = sequences(pack(documents, tokenizer, length, config.data), config.limit)
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
            reference = reference or (tokenizer, found)
    summary = result(
        "eval-text",
        as_dict(config),
        data={"name": corpus.name, "sha256": corpus.sha256, "split": split, "sequences": len(x0), "length": length},
        results=rows,
        notes=["perplexities are upper bounds, from the negative ELBO"],
    )
    if out is not None:
        try:
            write_json(out, summary)
        except OSError as error:
            raise UserError(f"cannot write --out {out}", error.strerror or str(error)) from None
    return summary
