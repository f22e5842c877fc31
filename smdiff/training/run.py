"""A training run, whatever it trains on: its folder, resuming, stopping on a signal, its result and its picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import PrinterCallback

from smdiff.config import TrainingConfig, as_dict, fingerprint, identity
from smdiff.diffusion.noise import draw_step
from smdiff.diffusion.objective import Objective
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.errors import Interrupted, RunFailed, UserError, first_line
from smdiff.evaluation.results import result
from smdiff.evaluation.text import HeldOut
from smdiff.files import read_json, run_of
from smdiff.models.denoiser import Denoiser
from smdiff.ranks import is_first, lost, ranks
from smdiff.training.callbacks import Average, Meter, Metrics, ProgressLine, StopOnSignal, read_metrics
from smdiff.training.checkpoints import Checkpoints, deliver
from smdiff.training.run_folder import RunFolder
from smdiff.training.speed import bf16_autocast, check_compiler, choose_compute
from smdiff.training.trainer import SoftMaskTrainer, training_arguments
from smdiff.ui.console import note, track
from smdiff.ui.plots import training_curves

_FINAL_DRAWS = 8
_OFF = 0.05


@dataclass(frozen=True)
class Prepared:
    """All that training needs.

    Attributes:
        facts: about the data, in run.json and the result; a folder that was started with others is refused.
        train_rows: different rows; None for a stream.
        length: the longest row that a batch can have, in tokens.
        stream: seed of data order, noise and dropout.
        compute: precision and threads, see `choose_compute`.
        plan: what the run is going to do beyond what all runs do, in numbers.
        estimate: memory and time, from a function that runs one micro-batch, with or without the first pass.
    """

    folder: RunFolder
    facts: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    denoiser: Denoiser
    objective: Objective
    train: torch.utils.data.Dataset
    train_rows: int | None
    collate: Callable[[list[Any]], dict[str, Tensor]]
    valid: HeldOut
    length: int
    stream: int
    compute: dict[str, Any]
    plan: dict[str, Any] = field(default_factory=dict)
    estimate: Callable[[Callable[[bool], None]], dict[str, Any]] = lambda _: {}


def open_folder(command: str, config: TrainingConfig) -> RunFolder:
    """--out, or a folder named after the configuration."""
    values = identity(config)
    out = Path(config.out).expanduser() if config.out else Path("runs") / f"{command}-{fingerprint(values)}"
    return RunFolder(out, values, config.resume)


def stream_seed(seed: int, generation: int) -> int:
    """Seed of data order and noise: a run that continues another sees other rows and other masks."""
    return seed + 1_000_033 * generation


def generation_of(folder: Path | None) -> int:
    """How many runs came before one that continues `folder`: 1 after bare weights, one more after each run."""
    home = None if folder is None else run_of(folder)
    stored = None if home is None else read_json(home / "run.json")
    return 1 + int((stored or {}).get("generation", 0))


def check_trackers(config: TrainingConfig) -> None:
    """Refuse a tracker that transformers does not know or that is not installed."""
    try:
        for tracker in get_reporting_integration_callbacks([] if config.report_to == "none" else [config.report_to]):
            tracker()  # says so if its package is missing
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"--report-to {config.report_to}", str(error).rstrip(".")) from None


def make_fast(config: TrainingConfig, denoiser: Denoiser, folder: RunFolder) -> dict[str, Any]:
    """Apply the options of speed to a model, and choose the run's precision and threads (`choose_compute`).

    Raises:
        UserError: an option that the model or the machine does not have.
    """
    if config.gradient_checkpointing:
        denoiser.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        check_compiler()
        denoiser.compile_blocks()
    if config.liger:
        denoiser.use_liger()
    return choose_compute(config, denoiser, folder.fact("compute"))


def choose_soft_mask(
    config: TrainingConfig, given: frozenset[str], stored: SoftMask | None, source: str
) -> SoftMask | None:
    """Fresh scalars, or those of a soft-masked checkpoint (with its k) where no others were asked for."""
    if not config.soft:
        if stored is not None:
            note(f"the scalars of {source} are dropped: this run is binary, without --soft-mask")
        return None
    if stored is not None and not given & {"k", "w_s", "w_a", "w_b"}:
        return stored
    return SoftMask(config.k or None, config.w_s, config.w_a, config.w_b)


def plan(config: TrainingConfig, prepared: Prepared) -> dict[str, Any]:
    """What the run is going to do, in numbers."""
    parameters = list(prepared.denoiser.parameters())
    return (
        {
            "out": str(prepared.folder.path),
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "vocabulary": prepared.denoiser.vocab_size,
            "train_sequences": prepared.train_rows,
            "valid_sequences": len(prepared.valid),
            "steps": config.total_steps,
            "forward_passes": round(config.total_steps * (1 + (config.p_sm if config.soft else 0))),
            "precision": f"{prepared.compute['precision']} ({prepared.compute['reason']})",
            "threads": torch.get_num_threads(),
        }
        | prepared.plan
        | prepared.estimate(lambda two_pass: _micro_batch(config, prepared, two_pass))
    )


def _micro_batch(config: TrainingConfig, prepared: Prepared, two_pass: bool) -> None:
    """One micro-batch forward and backward, as in training; leaves no gradient."""
    count = config.batch_size // config.accumulation
    rows = list(islice(iter(prepared.train), count))
    batch, denoiser = prepared.collate(rows), prepared.denoiser
    x0, maskable = batch["input_ids"], batch.get("maskable")
    sees: Any = partial(denoiser, valid=batch["valid"]) if "valid" in batch else denoiser  # type: ignore[misc]
    draw = draw_step(
        prepared.objective.noise, seed=0, step=0, rows=count, length=max(prepared.length, x0.shape[1]),
        p_two_pass=float(two_pass), t_min=prepared.objective.times[0], t_max=prepared.objective.times[1],
        maskable=maskable, one_time=prepared.objective.is_mean,
    )  # fmt: skip
    with bf16_autocast("cpu", prepared.compute["precision"] == "bf16"):
        loss = prepared.objective.loss(sees, x0, draw, denoiser.mask_id, denoiser.shift).total
    loss.backward()
    denoiser.zero_grad()


def _claim(config: TrainingConfig, prepared: Prepared) -> None:
    """Take the run's folder, and put the tokenizer there, so that an unfinished run can be sampled from too."""
    trained = sum(p.numel() for p in prepared.denoiser.parameters() if p.requires_grad)
    # Weights, averages and Adam's two moments, for each checkpoint kept and the one being written.
    there = len(Checkpoints(prepared.folder.checkpoints, config.keep).all())
    size = 4 * 4 * trained * max(1, config.keep + 1 - there) + 10_000_000
    prepared.folder.claim(prepared.facts | {"compute": prepared.compute}, size)
    if (prepared.folder.path / "tokenizer_config.json").exists():
        return
    try:
        deliver(prepared.folder.path, lambda p: prepared.tokenizer.save_pretrained(p), last="tokenizer_config.json")
    except OSError as error:
        reason, fix = error.strerror or str(error), "Make room, or choose another folder."
        raise UserError(f"cannot write to --out {prepared.folder.path}", reason, fix) from None


def _summary(
    command: str,
    config: TrainingConfig,
    prepared: Prepared,
    trainer: SoftMaskTrainer,
    metrics: Metrics,
    meter: Meter,
    step: int,
) -> dict[str, Any]:
    """The run's result: what was done, the held-out bound, the scalars."""
    tokens, seconds = trainer.tokens_seen, metrics.seconds
    soft_mask, scalars = prepared.denoiser.soft_mask, trainer.scalars()
    low, high = prepared.objective.times
    summary = result(
        command,
        as_dict(config),
        model=str(prepared.folder.path),
        **prepared.facts,
        train={
            "steps": trainer.state.global_step,
            "delivered_step": step,
            "tokens": tokens,
            "forward_passes": trainer.forward_passes,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds if seconds else None,
            "skipped": trainer.bad_batches.skipped,
        }
        | meter.total()
        | {"peak_flops": meter.peak, "peak_flops_source": meter.source},
        compute=prepared.compute,
        valid={"sequences": len(prepared.valid), "draws": _FINAL_DRAWS, "times": [low, high]}
        | trainer.score(draws=_FINAL_DRAWS),
        soft_mask=None if soft_mask is None else {"k": soft_mask.k, **scalars},
        notes=[],
    )
    if skipped := trainer.bad_batches.skipped:
        summary["notes"].append(f"{len(skipped)} steps were left out, as their loss or gradient was not finite")
    if soft_mask is not None and (w_s := scalars["w_s"]) < _OFF:
        summary["notes"].append(
            f"soft-masking stayed off: w_s ended at {w_s:.4f}, so the model is binary in effect; "
            "train longer, or start with --w-s 0.3 --soft-mask-lr 0.05"
        )
    return summary


def run(command: str, config: TrainingConfig, prepared: Prepared) -> dict[str, Any]:
    """Train what was prepared and return the result.

    Raises:
        UserError: the folder cannot be used. RunFailed: the loss is not finite, or a file could not be written.
        Interrupted: stopped by a signal, with a checkpoint saved.
    """
    cuda, half = torch.cuda.is_available(), prepared.compute["precision"] == "bf16"
    arguments = training_arguments(config, prepared.folder.checkpoints, cuda, half)
    if config.precision == "auto" and not cuda and half:
        note(f"training in bf16: {prepared.compute['reason']}")
    if is_first():
        _claim(config, prepared)
    average, metrics, meter, stop = Average(), Metrics(prepared.folder.metrics), Meter(half), StopOnSignal()
    checkpoints = Checkpoints(prepared.folder.checkpoints, config.keep)
    # One process looks for all: on a shared file system two might see different files.
    latest = broadcast_object_list([checkpoints.resume() if is_first() else None])[0]
    if latest is not None:
        note(f"continuing from {latest}")
    done_steps = int(latest.name.split("-")[1]) if latest else 0
    with stop, track("training", config.total_steps, done_steps) as tracker:
        progress = ProgressLine(tracker, meter)
        trainer = SoftMaskTrainer(
            prepared.denoiser,
            config,
            arguments,
            checkpoints=checkpoints,
            objective=prepared.objective,
            train_dataset=prepared.train,
            collate=prepared.collate,
            valid=prepared.valid,
            tokenizer=prepared.tokenizer,
            length=prepared.length,
            stream=prepared.stream,
            callbacks=[average, meter, metrics, progress, stop],
        )
        trainer.remove_callback(PrinterCallback)
        average.trainer = meter.trainer = trainer
        trainer.meter = meter
        try:
            trainer.train(resume_from_checkpoint=None if latest is None else str(latest))
            if stop.stopped and trainer.state.global_step < config.total_steps:
                raise Interrupted(
                    f"stopped at step {trainer.state.global_step} of {config.total_steps}",
                    f"saved in {prepared.folder.checkpoints}",
                    "Run the same command to go on.",
                )
            if config.deliver_best and trainer.evaluated != trainer.state.global_step:
                trainer.evaluate()
            step = trainer.deliver(prepared.folder.path)
        except (MemoryError, RuntimeError, OSError, SafetensorError) as error:
            raise _explained(error, config, prepared, trainer) from error
        finally:
            if is_first():
                _draw_curves(config, prepared)
        summary = _summary(command, config, prepared, trainer, metrics, meter, step)
    if is_first():
        prepared.folder.finish(summary)
    return summary


def _explained(error: Exception, config: TrainingConfig, prepared: Prepared, trainer: SoftMaskTrainer) -> Exception:
    """What went wrong as the user should read it: out of memory, or a file that cannot be written; else as it is."""
    step = trainer.state.global_step + 1
    if ranks() > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
        return lost(f"Run the same command to go on from the last checkpoint in {prepared.folder.checkpoints}.")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return RunFailed(
            f"out of memory at step {step}",
            f"a micro-batch is {config.batch_size // config.accumulation} sequences of up to {prepared.length}",
            "Raise --accumulation, or lower --batch-size or the length.",
        )
    if isinstance(error, OSError | SafetensorError) and not isinstance(error, BrokenPipeError):
        reason = getattr(error, "strerror", None) or first_line(error)
        where = getattr(error, "filename", None)
        go_on = "Make room, or mend what it is, and run the same command to go on from the last checkpoint."
        return RunFailed(
            f"stopped at step {step} of {prepared.folder.path}", f"{reason} ({where})" if where else reason, go_on
        )
    return error


def _draw_curves(config: TrainingConfig, prepared: Prepared) -> None:
    """The run's picture. A failure is told and stops nothing: the run is worth more than its picture."""
    soft_mask = prepared.denoiser.soft_mask
    kind = "binary" if soft_mask is None else f"soft-masked, k {soft_mask.k or 'all'}, p_sm {config.p_sm:g}"
    path = prepared.folder.path
    try:
        if records := read_metrics(prepared.folder.metrics):
            training_curves(records, path / "curves.png", f"{path}: {kind}")
    except (OSError, ValueError) as error:
        note(f"no curves.png: {error}")
