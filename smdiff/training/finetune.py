"""`smdiff finetune`: from a model and data to an adapter, or to new weights, in a run folder."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import set_seed

from smdiff.config import FinetuneConfig, Resolved, fingerprint, flag
from smdiff.data.mixture import Collator, Mixture, Row, valid_rows
from smdiff.data.sft import Format, Source, check_sources, load_sources
from smdiff.diffusion.objective import objective
from smdiff.errors import RunFailed, UserError, first_line
from smdiff.evaluation.text import HeldOut
from smdiff.files import flush
from smdiff.lock import check_held, locked
from smdiff.models import adapters
from smdiff.models.adapt import Adaptation
from smdiff.models.causal import four_bits, set_attention
from smdiff.models.denoiser import Denoiser
from smdiff.models.dit import DiT
from smdiff.models.load import Model, is_causal_model, local_path, merged, open_base
from smdiff.ranks import is_first
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
from smdiff.training.speed import bf16
from smdiff.ui.console import note

_MERGED = "merged"
_MAX_LENGTH = 1024


def _no_effect(resolved: Resolved[FinetuneConfig]) -> None:
    """Refuse options that change nothing beside the others."""
    config, idle = resolved.config, []
    if config.adapter == "none":
        idle += [(name, "--adapter none") for name in ("rank", "alpha", "adapter_dropout", "targets", "merge")]
    if config.pad_policy == "ignore":
        idle.append(("extra_pads", "--pad-policy ignore"))
    if not config.soft_mask:
        idle += [(name, "--no-soft-mask") for name in ("k", "p_sm", "w_s", "w_a", "w_b", "soft_mask_lr")]
    for name, beside in idle:
        if name in resolved.given and getattr(config, name) is not False:
            raise UserError(f"{flag(name)} has no effect", f"beside {beside}", "Leave out one of them.")


def _open(config: FinetuneConfig) -> tuple[Model, bool]:
    """The model to start from, and whether its mask is new: an adapter must train that row."""
    assert config.model is not None
    path = local_path(config.model)
    fresh = is_causal_model(path)
    for name in ("shift", "mask_token"):
        if not fresh and getattr(config, name) is not None:
            raise UserError(f"{flag(name)} has no effect", f"{config.model} is a masked diffusion model already")
    # An adapter leaves its base as it is, so the base may be in half precision; weights that are trained may not.
    dtype = torch.bfloat16 if config.adapter != "none" and bf16(config.precision) else torch.float32
    adaptation = Adaptation(config.shift is not False, config.mask_token)
    model = open_base(config.model, config.tokenizer, dtype, quantize=config.quantize == "4bit", adaptation=adaptation)
    if model.note:
        note(model.note)
    if model.denoiser.causal:
        raise UserError(f"{config.model} is autoregressive", "a DiT of --objective ar fills no masks")
    if config.quantize != "none" and isinstance(model.denoiser.backbone, DiT):
        raise UserError(f"--quantize {config.quantize}", "a DiT is not loaded in four bits")
    set_attention(model.denoiser.backbone, config.attn)
    return model, fresh


def _base_name(name: str) -> str:
    """The base as an adapter's file names it: a path holds wherever it is read from."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _adapted(resolved: Resolved[FinetuneConfig], denoiser: Denoiser, fresh_mask: bool) -> Denoiser:
    """The model with what is to be trained: a fresh adapter, the one that it has, or all of its weights."""
    config = resolved.config
    assert config.model is not None
    if config.adapter == "none":
        if config.quantize != "none":
            raise UserError(f"--quantize {config.quantize} --adapter none", "weights of four bits cannot be trained")
        denoiser = merged(denoiser)
        denoiser.backbone.requires_grad_(True)
        return denoiser
    if denoiser.adapter is not None:
        names = {"adapter", "rank", "alpha", "adapter_dropout", "targets"} & resolved.given
        adapters.same(denoiser.adapter, {n: getattr(config, n) for n in names})
        return denoiser
    adapter = adapters.attach(
        denoiser.backbone, config.adapter, base=_base_name(config.model), rank=config.rank, alpha=config.alpha,
        dropout=config.adapter_dropout, targets=config.targets, train_row=denoiser.mask_id if fresh_mask else None,
    )  # fmt: skip
    forbidden = denoiser.forbidden.tolist()
    return Denoiser(denoiser.backbone, denoiser.mask_id, denoiser.soft_mask, denoiser.shift, forbidden, adapter)


def _template(config: FinetuneConfig) -> str | None:
    if config.chat_template is None:
        return None
    try:
        return Path(config.chat_template).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"cannot read --chat-template {config.chat_template}", reason) from None


def _format(config: FinetuneConfig) -> Format:
    return Format(
        kind=config.format,
        messages_column=config.messages_column,
        prompt_column=config.prompt_column,
        response_column=config.response_column,
        text_column=config.text_column,
        chat=config.chat,
        skip_bad=config.skip_bad_rows,
    )


def _sources(config: FinetuneConfig, form: Format, tokenizer: PreTrainedTokenizerBase, longest: int) -> list[Source]:
    assert config.data is not None
    sources = load_sources(
        config.data, tokenizer, form, max_length=longest, valid_spec=config.valid_data,
        valid_fraction=config.valid_fraction,
    )  # fmt: skip
    for source in sources:
        for reason, count in source.dropped.items():
            note(f"{source.name}: {count:,} rows left out, {reason}")
    return sources


def _held_out(rows: list[Row], pad_id: int, without_first: bool) -> HeldOut:
    """Rows of like length side by side; padding takes no part, so that a score does not depend on it.

    Args:
        without_first: leave out the first position, which the objective does not score either.
    """
    batch = Collator(pad_id, "ignore")(sorted(rows, key=lambda row: len(row.ids)))
    batch["maskable"][:, 0] &= not without_first
    return HeldOut(batch["input_ids"], batch["maskable"], batch.get("valid"))


def _facts(sources: list[Source], generation: int) -> dict[str, Any]:
    names = [f"{s.name}:{s.weight:g}" for s in sources] if len(sources) > 1 else [sources[0].name]
    hashes = [s.sha256 for s in sources]
    # One source of text has its own hash, by which eval-text knows the data again.
    digest = hashes[0] if len(hashes) == 1 else fingerprint({"sources": hashes})
    rows = [{"name": s.name, "kind": s.kind, "train": len(s.train), "dropped": s.dropped} for s in sources]
    return {"corpus": {"name": ",".join(names), "sha256": digest}, "sources": rows, "generation": generation}


def _adapter_facts(denoiser: Denoiser) -> dict[str, Any]:
    """What the adapter is: a continued one has its own options."""
    return {} if denoiser.adapter is None else {"adapter": adapters.options(denoiser.adapter)}


def prepare(resolved: Resolved[FinetuneConfig]) -> Prepared:
    """Load model and data, and look at the run's folder. Writes nothing.

    Raises:
        UserError: anything wrong with the input.
    """
    config = resolved.config
    assert config.model is not None
    assert config.data is not None
    _no_effect(resolved)
    folder = open_folder("finetune", config)
    check_trackers(config)
    # What needs no model is looked at first: loading one may take minutes.
    form, template = _format(config), _template(config)
    check_sources(config.data, config.valid_data)
    if config.quantize == "4bit":
        four_bits()
    note(f"loading {config.model}")
    (denoiser, tokenizer, _), fresh_mask = _open(config)
    longest = config.max_length or min(_MAX_LENGTH, denoiser.max_length)
    if longest > denoiser.max_length:
        raise UserError(f"--max-length {longest}", f"the model was made for {denoiser.max_length} tokens")
    if template is not None:
        tokenizer.chat_template = template
    note(f"reading {config.data}")
    sources = _sources(config, form, tokenizer, longest)
    set_seed(config.seed)
    stored = denoiser.soft_mask
    denoiser = _adapted(resolved, denoiser, fresh_mask)
    denoiser = Denoiser(
        denoiser.backbone, denoiser.mask_id, choose_soft_mask(config, resolved.given, stored, config.model),
        denoiser.shift, denoiser.forbidden.tolist(), denoiser.adapter,
    )  # fmt: skip
    if config.soft_mask and config.k >= denoiser.vocab_size:
        raise UserError(f"--k {config.k}", f"the vocabulary has {denoiser.vocab_size} tokens", "0 mixes all of them.")
    compute = make_fast(config, denoiser, folder)
    generation = generation_of(local_path(config.model))
    stream = stream_seed(config.seed, generation)
    text = all(s.kind == "text" for s in sources)
    learn = config.pad_policy == "learn" and not text
    extra = config.extra_pads if learn else 0
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    rows = config.total_steps * config.batch_size
    valid = valid_rows(sources, config.eval_sequences)
    row = sum(len(r.ids) for r in valid) / len(valid) + extra / 2
    train = Mixture([s.train for s in sources], [s.weight for s in sources], rows, stream, extra)
    return Prepared(
        folder=folder,
        facts=_facts(sources, generation) | _adapter_facts(denoiser),
        tokenizer=tokenizer,
        denoiser=denoiser,
        objective=objective(config.objective, config.times),
        train=train,
        train_rows=sum(len(s.train) for s in sources),
        collate=Collator(pad_id, config.pad_policy, denoiser.max_length),
        valid=_held_out(valid, pad_id, config.objective == "code" and denoiser.shift),
        length=longest + extra + 8,
        stream=stream,
        compute=compute,
        plan={"rows": "text" if text else "responses", "tokens": round(rows * row)},
        estimate=partial(estimate, config, denoiser, row, longest + extra, compute["precision"] == "bf16"),
    )


def _write_merged(folder: Path) -> None:
    """OUT/merged: a checkpoint that needs neither base nor peft."""
    target, beside = folder / _MERGED, folder / f".{_MERGED}.partial"
    if target.exists():
        return
    model = open_base(str(folder), None, None)  # in the precision of the base
    shutil.rmtree(beside, ignore_errors=True)
    try:
        merged(model.denoiser).save(beside)
        model.tokenizer.save_pretrained(beside)
        for file in beside.iterdir():
            flush(file)
        flush(beside)
        check_held(folder)
        os.replace(beside, target)
        flush(folder)
    except (OSError, SafetensorError) as error:
        raise RunFailed(f"cannot write {target}", first_line(error), "Make room and run it again.") from None
    note(f"all weights: {target}")


def finetune(resolved: Resolved[FinetuneConfig]) -> dict[str, Any]:
    """Train as configured and return the result; a finished run's result is returned as it is.

    Raises:
        UserError: bad input. RunFailed: the loss is not finite, or a file could not be written.
        Interrupted: stopped by a signal, with a checkpoint saved.
    """
    config = resolved.config
    folder = open_folder("finetune", config)
    result = folder.result()
    if result is not None:
        note(f"{folder.path} is finished: this is its result")
        if not config.merge or (folder.path / _MERGED).exists():
            return result
    with locked(folder.path):
        if result is None:
            result = run("finetune", config, prepare(resolved))
        if config.merge and is_first():
            _write_merged(folder.path)
    return result
