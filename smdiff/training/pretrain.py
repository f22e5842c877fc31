"""`smdiff pretrain`: from a configuration to a trained model in a run folder."""

from __future__ import annotations

import errno
import itertools
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint, set_seed

from smdiff.config import PretrainConfig, Resolved, as_dict, fingerprint, identity
from smdiff.data.corpora import Corpus, load_corpus, texts
from smdiff.data.packing import Shuffled, Streamed, pack, sequences
from smdiff.data.tokenizers import load_tokenizer, make_tokenizer
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.errors import Interrupted, RunFailed, UserError
from smdiff.evaluation.results import result
from smdiff.files import read_json
from smdiff.models.denoiser import Denoiser
from smdiff.models.dit import DiT, DiTConfig
from smdiff.models.load import Checkpoint, load_strictly, read_checkpoint, read_tokenizer
from smdiff.training.callbacks import Average, Metrics, ProgressLine, StopOnSignal, read_metrics
from smdiff.training.run_folder import RunFolder
from smdiff.training.trainer import SoftMaskTrainer, training_arguments
from smdiff.ui.console import note, track
from smdiff.ui.plots import training_curves

# What a shape option of the configuration is called in the model's.
_SHAPE = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "cond_dim": "cond_dim",
}
_FINAL_DRAWS = 8
# A tokenizer is trained on this many documents at most, so that a stream has an end.
_TOKENIZER_DOCUMENTS = 100_000
_OFF = 0.05


def out_folder(config: PretrainConfig) -> Path:
    """--out, or a folder named after the configuration."""
    return Path(config.out).expanduser() if config.out else Path("runs") / f"pretrain-{fingerprint(identity(config))}"


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


def _soft_mask(resolved: Resolved[PretrainConfig], init: Checkpoint | None) -> SoftMask | None:
    """Fresh scalars, or those of a soft-masked checkpoint (with its k) where no others were asked for."""
    config = resolved.config
    stored = None if init is None else init.soft_mask
    if not config.soft_mask:
        if init is not None and stored is not None:
            note(f"without --soft-mask the scalars of {init.source} are dropped: the run is binary")
        return None
    if stored is not None and not resolved.given & {"k", "w_s", "w_a", "w_b"}:
        return stored
    return SoftMask(config.k or None, config.w_s, config.w_a, config.w_b)


def _check_trackers(config: PretrainConfig) -> None:
    """Refuse a tracker that transformers does not know or that is not installed."""
    try:
        for tracker in get_reporting_integration_callbacks([] if config.report_to == "none" else [config.report_to]):
            tracker()  # says so if its package is missing
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"--report-to {config.report_to}", str(error).rstrip(".")) from None


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


@dataclass(frozen=True)
class Prepared:
    """All that training needs."""

    folder: RunFolder
    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    denoiser: Denoiser
    train: torch.utils.data.Dataset
    train_sequences: int | None
    valid: torch.Tensor
    generation: int


def _generation(init: Checkpoint | None) -> int:
    """How many runs came before: 0 from scratch, 1 after bare weights, one more after each run."""
    if init is None:
        return 0
    stored = None if init.folder is None else read_json(init.folder / "run.json")
    return 1 + int((stored or {}).get("generation", 0))


def stream_seed(seed: int, generation: int) -> int:
    """Seed of data order and noise: a run that continues another sees other rows and other masks."""
    return seed + 1_000_033 * generation


def prepare(resolved: Resolved[PretrainConfig]) -> Prepared:
    """Load data and model, and look at the run's folder. Writes nothing.

    Raises:
        UserError: anything wrong with the input.
    """
    config = resolved.config
    folder = RunFolder(out_folder(config), identity(config), config.resume)
    _check_trackers(config)
    init = None
    if config.init is not None:
        init = read_checkpoint(config.init, config.heads if "heads" in resolved.explicit else None)
        if init.note:
            note(init.note)
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
    denoiser = Denoiser(backbone, tokenizer.mask_token_id, _soft_mask(resolved, init))
    generation = _generation(init)
    stream = stream_seed(config.seed, generation)
    train: torch.utils.data.Dataset
    if isinstance(packed, datasets.Dataset):
        train = Shuffled(packed, config.total_steps * config.batch_size, stream)
    else:
        train = Streamed(packed, stream)
    count = len(packed) if isinstance(packed, datasets.Dataset) else None
    return Prepared(folder, corpus, tokenizer, denoiser, train, count, valid, generation)


def _claim(config: PretrainConfig, prepared: Prepared) -> None:
    """Take the run's folder, and put the tokenizer there, so that an unfinished run can be sampled from too."""
    parameters = sum(p.numel() for p in prepared.denoiser.parameters())
    # Weights, averages and Adam's two moments, for each checkpoint kept and the one being written.
    there = len(list(prepared.folder.checkpoints.glob("checkpoint-*")))
    size = 4 * 4 * parameters * max(1, config.keep + 1 - there) + 10_000_000
    corpus = {"name": prepared.corpus.name, "sha256": prepared.corpus.sha256}
    prepared.folder.claim({"corpus": corpus, "generation": prepared.generation}, size)
    try:
        prepared.tokenizer.save_pretrained(prepared.folder.path)
    except OSError as error:
        raise UserError(f"cannot write to --out {prepared.folder.path}", error.strerror or str(error)) from None


def plan(config: PretrainConfig, prepared: Prepared) -> dict[str, Any]:
    """What the run is going to do, in numbers."""
    passes = 1 + (config.p_sm if config.soft_mask else 0)
    return {
        "out": str(prepared.folder.path),
        "parameters": sum(p.numel() for p in prepared.denoiser.parameters()),
        "vocabulary": prepared.denoiser.vocab_size,
        "train_sequences": prepared.train_sequences,
        "valid_sequences": len(prepared.valid),
        "length": config.length,
        "steps": config.total_steps,
        "tokens": config.total_steps * config.batch_size * config.length,
        "forward_passes": round(config.total_steps * passes),
    }


def _summary(config: PretrainConfig, prepared: Prepared, trainer: SoftMaskTrainer, metrics: Metrics) -> dict[str, Any]:
    """The run's result: what was done, the held-out bound, the scalars."""
    tokens, seconds = trainer.tokens_seen, metrics.seconds
    soft_mask = prepared.denoiser.soft_mask
    summary = result(
        "pretrain",
        as_dict(config),
        model=str(prepared.folder.path),
        corpus={"name": prepared.corpus.name, "sha256": prepared.corpus.sha256},
        train={
            "steps": trainer.state.global_step,
            "tokens": tokens,
            "forward_passes": trainer.forward_passes,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds if seconds else None,
        },
        valid={"sequences": len(prepared.valid), "length": config.length, "draws": _FINAL_DRAWS}
        | trainer.score(draws=_FINAL_DRAWS),
        soft_mask=None if soft_mask is None else {"k": soft_mask.k, **soft_mask.values()},
        notes=[],
    )
    if soft_mask is not None and (w_s := soft_mask.values()["w_s"]) < _OFF:
        summary["notes"].append(
            f"soft-masking stayed off: w_s ended at {w_s:.4f}, so the model is binary in effect; "
            "train longer, or start with --w-s 0.3 --soft-mask-lr 0.05"
        )
    return summary


def _save_model(prepared: Prepared, trainer: SoftMaskTrainer) -> None:
    """The model that the run delivers: the averaged weights."""
    with trainer.ema.applied() if trainer.ema is not None else nullcontext():
        staging = prepared.folder.path / ".final"
        prepared.denoiser.save(staging)
        for file in staging.iterdir():
            os.replace(file, prepared.folder.path / file.name)
        staging.rmdir()


def pretrain(resolved: Resolved[PretrainConfig]) -> dict[str, Any]:
    """Train as configured and return the result; a finished run's result is returned as it is.

    Raises:
        UserError: bad input. RunFailed: the loss is not finite, or a file could not be written.
        Interrupted: stopped by a signal, with a checkpoint saved.
    """
    config = resolved.config
    folder = RunFolder(out_folder(config), identity(config), config.resume)
    if (done := folder.result()) is not None:
        note(f"{folder.path} is finished: this is its result")
        return done
    prepared = prepare(resolved)
    _claim(config, prepared)
    cuda = torch.cuda.is_available()
    average, metrics, stop = Average(), Metrics(prepared.folder.metrics), StopOnSignal()
    latest = None
    if prepared.folder.checkpoints.is_dir():
        latest = get_last_checkpoint(prepared.folder.checkpoints)
        if latest is not None:
            note(f"continuing from {latest}")
    done_steps = int(latest.rsplit("-", 1)[1]) if latest else 0
    with stop, track("training", config.total_steps, done_steps) as tracker:
        trainer = SoftMaskTrainer(
            prepared.denoiser,
            config,
            training_arguments(config, prepared.folder.checkpoints, cuda),
            prepared.train,
            prepared.valid,
            prepared.tokenizer,
            stream_seed(config.seed, prepared.generation),
            callbacks=[average, metrics, ProgressLine(tracker, config.batch_size * config.length), stop],
        )
        trainer.remove_callback(PrinterCallback)
        average.ema = trainer.ema
        try:
            trainer.train(resume_from_checkpoint=latest)
            if stop.stopped and trainer.state.global_step < config.total_steps:
                raise Interrupted(
                    f"stopped at step {trainer.state.global_step} of {config.total_steps}",
                    f"saved in {prepared.folder.checkpoints}",
                    "Run the same command to go on.",
                )
            _save_model(prepared, trainer)
        except (MemoryError, RuntimeError, OSError, SafetensorError) as error:
            raise _explained(error, config, prepared, trainer) from error
        finally:
            _draw_curves(config, prepared)
        summary = _summary(config, prepared, trainer, metrics)
    prepared.folder.finish(summary)
    return summary


def _explained(error: Exception, config: PretrainConfig, prepared: Prepared, trainer: SoftMaskTrainer) -> Exception:
    """What went wrong as the user should read it: out of memory, or a file that cannot be written; else as it is."""
    step = trainer.state.global_step + 1
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return RunFailed(
            f"out of memory at step {step}",
            f"a micro-batch is {config.batch_size // config.accumulation} sequences of {config.length}",
            "Raise --accumulation, or lower --batch-size or --length.",
        )
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
    if full or isinstance(error, SafetensorError):
        reason = getattr(error, "strerror", None) or str(error)
        go_on = "Make room and run the same command to go on from the last checkpoint."
        return RunFailed(f"cannot write to {prepared.folder.path} at step {step}", reason, go_on)
    return error


def _draw_curves(config: PretrainConfig, prepared: Prepared) -> None:
    """The run's picture. A failure is told and stops nothing: the run is worth more than its picture."""
    kind = f"soft-masked, k {config.k}, p_sm {config.p_sm:g}" if config.soft_mask else "binary"
    path = prepared.folder.path
    try:
        if records := read_metrics(prepared.folder.metrics):
            training_curves(records, path / "curves.png", f"{path}: {kind}, {config.data}")
    except (OSError, ValueError) as error:
        note(f"no curves.png: {error}")
