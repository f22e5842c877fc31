"""`smdiff pretrain`: from a configuration to a trained model in a run folder."""

from __future__ import annotations

import itertools
import os
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import set_seed

from smdiff.config import PretrainConfig, Resolved
from smdiff.data.corpora import Corpus, load_corpus, texts
from smdiff.data.packing import Shuffled, Streamed, collate, pack, sequences
from smdiff.data.tokenizers import load_tokenizer, make_tokenizer
from smdiff.diffusion.objective import objective
from smdiff.errors import UserError
from smdiff.evaluation.text import HeldOut
from smdiff.lock import locked
from smdiff.models.denoiser import Denoiser
from smdiff.models.dit import DiT, DiTConfig
from smdiff.models.load import read_checkpoint, read_tokenizer
from smdiff.models.mdlm import Checkpoint
from smdiff.models.weights import load_strictly
from smdiff.training.estimate import estimate
from smdiff.training.run import (
    Prepared,
    check_trackers,
    choose_soft_mask,
    generation_of,
    make_fast,
    open_folder,
    run,
    stream_seed,
)
from smdiff.ui.console import note

# What a shape option of the configuration is called in the model's.
_SHAPE = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "cond_dim": "cond_dim",
}
# A tokenizer is trained on this many documents at most, so that a stream has an end.
_TOKENIZER_DOCUMENTS = 100_000


def _tokenizer(
    config: PretrainConfig, given: bool, init: Checkpoint | None, corpus: Corpus, folder: Path
) -> PreTrainedTokenizerBase:
    """The run's own from an earlier start, the one asked for, the checkpoint's, or the corpus's default."""
    if (folder / "tokenizer_config.json").exists():
        return load_tokenizer(str(folder))
    if init is not None and init.folder is not None and not given:
        return read_tokenizer(init)
    spec = config.tokenizer or "bytes"
    if not given and corpus.default_tokenizer is not None:
        spec = corpus.default_tokenizer
    return make_tokenizer(spec, itertools.islice(texts(corpus.train), _TOKENIZER_DOCUMENTS))


def _shape(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> DiTConfig:
    return DiTConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=config.length,
        mask_token_id=tokenizer.mask_token_id,
        dropout=config.dropout,
        is_causal=config.objective == "ar",
        **{theirs: getattr(config, ours) for ours, theirs in _SHAPE.items()},
    )


def _from_checkpoint(resolved: Resolved[PretrainConfig], init: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> DiT:
    """The checkpoint's network, in the shape that was asked for if one was."""
    config, shape = resolved.config, init.shape
    shape.dropout, shape.max_position_embeddings = config.dropout, config.length
    shape.vocab_size, shape.mask_token_id = len(tokenizer), tokenizer.mask_token_id
    for ours in resolved.explicit & _SHAPE.keys():
        if ours == "heads" and config.heads != shape.num_attention_heads:
            raise UserError(
                f"{init.source} has {shape.num_attention_heads} attention heads", f"--heads asks for {config.heads}"
            )
        setattr(shape, _SHAPE[ours], getattr(config, ours))
    backbone = DiT(shape)
    load_strictly(backbone, init.tensors, init.source)
    return backbone


def _fits_in_memory(shape: DiTConfig) -> None:
    """Refuse a network whose weights, averages, gradients and moments exceed the machine, before it is made."""
    with torch.device("meta"):
        need = 5 * 4 * sum(p.numel() for p in DiT(shape).parameters())
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > have:
        raise UserError(
            f"--hidden-size {shape.hidden_size} --layers {shape.num_hidden_layers}",
            f"training needs {need / 1e9:,.0f} GB for its weights and optimiser, the machine has {have / 1e9:,.0f} GB",
        )


def prepare(resolved: Resolved[PretrainConfig]) -> Prepared:
    """Load data and model, and look at the run's folder. Writes nothing.

    Raises:
        UserError: anything wrong with the input.
    """
    config = resolved.config
    folder = open_folder("pretrain", config)
    check_trackers(config)
    init = None
    if config.init is not None:
        init = read_checkpoint(config.init, config.heads if "heads" in resolved.explicit else None)
        if init.note:
            note(init.note)
        if init.shape.is_causal != (config.objective == "ar"):
            kind = "an autoregressive" if init.shape.is_causal else "a masked diffusion"
            fix = "--init takes a run of the same --objective."
            raise UserError(f"--objective {config.objective}", f"{init.source} is {kind} model", fix)
    note(f"reading {config.data}")
    corpus = load_corpus(
        config.data,
        valid_spec=config.valid_data,
        valid_fraction=config.valid_fraction,
        column=config.text_column,
        streaming=config.streaming,
    )
    tokenizer = _tokenizer(config, "tokenizer" in resolved.given, init, corpus, folder.path)
    packed = pack(corpus.train, tokenizer, config.length, config.data)
    valid = sequences(pack(corpus.valid, tokenizer, config.length, "the held-out data"), config.eval_sequences)
    if config.soft_mask and config.k >= len(tokenizer):
        raise UserError(f"--k {config.k}", f"the vocabulary has {len(tokenizer)} tokens", "0 mixes all of them.")
    set_seed(config.seed)
    _fits_in_memory(_shape(config, tokenizer) if init is None else init.shape)
    backbone = DiT(_shape(config, tokenizer)) if init is None else _from_checkpoint(resolved, init, tokenizer)
    stored = (None, "") if init is None else (init.soft_mask, init.source)
    denoiser = Denoiser(backbone, tokenizer.mask_token_id, choose_soft_mask(config, resolved.given, *stored))
    generation = 0 if init is None else generation_of(init.folder)
    stream = stream_seed(config.seed, generation)
    train: torch.utils.data.Dataset
    if isinstance(packed, datasets.Dataset):
        train = Shuffled(packed, config.total_steps * config.batch_size, stream)
    else:
        train = Streamed(packed, stream)
    compute = make_fast(config, denoiser, folder)
    return Prepared(
        folder=folder,
        facts={"corpus": {"name": corpus.name, "sha256": corpus.sha256}, "generation": generation},
        tokenizer=tokenizer,
        denoiser=denoiser,
        objective=objective(config.objective, config.times, config.noise),
        train=train,
        train_rows=len(packed) if isinstance(packed, datasets.Dataset) else None,
        collate=collate,
        valid=HeldOut(valid),
        length=config.length,
        stream=stream,
        compute=compute,
        plan={"length": config.length, "tokens": config.total_steps * config.batch_size * config.length},
        estimate=partial(estimate, config, denoiser, config.length, config.length, compute["precision"] == "bf16"),
    )


def pretrain(resolved: Resolved[PretrainConfig]) -> dict[str, Any]:
    """Train as configured and return the result; a finished run's result is returned as it is.

    Raises:
        UserError: bad input. RunFailed: the loss is not finite, or a file could not be written.
        Interrupted: stopped by a signal, with a checkpoint saved.
    """
    folder = open_folder("pretrain", resolved.config)
    if (done := folder.result()) is not None:
        note(f"{folder.path} is finished: this is its result")
        return done
    with locked(folder.path):
        return run("pretrain", resolved.config, prepare(resolved))
