"""`transformers.Trainer` with the diffusion objective, noise from (seed, step) alone, and whole checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from smdiff.config import TrainingConfig
from smdiff.diffusion.noise import draw_step
from smdiff.diffusion.objective import Objective
from smdiff.errors import RunFailed, UserError, first_line
from smdiff.evaluation.text import HeldOut, Mean, elbo
from smdiff.files import read_json, write_json
from smdiff.models.denoiser import Denoiser
from smdiff.models.load import restore
from smdiff.models.weights import read_object
from smdiff.ranks import ranks
from smdiff.training.callbacks import Meter
from smdiff.training.ema import Ema
from smdiff.training.speed import Cost

# A time from which on the average over t is the ELBO's.
_NEARLY_0 = 0.01
_PARTIAL = ".partial"


class SoftMaskTrainer(Trainer):
    """Trains a `Denoiser` in one pass or two.

    Args:
        denoiser: the model; its three scalars, if any, form an optimiser group of their own.
        config: the run's configuration.
        args: the Trainer's, made by `training_arguments`.
        objective: what is minimised.
        train_dataset: rows in training order.
        collate: rows as a batch of input_ids (B, L), and for responses maskable (B, L) and maybe valid (B, L).
        valid: held-out sequences.
        tokenizer: saved beside the weights.
        length: the longest row that a batch can have, in tokens.
        stream: seed of data order, noise and dropout.
    """

    optimizer: torch.optim.Optimizer | None
    control: TrainerControl

    def __init__(
        self,
        denoiser: Denoiser,
        config: TrainingConfig,
        args: TrainingArguments,
        *,
        objective: Objective,
        train_dataset: torch.utils.data.Dataset,
        collate: Callable[[list[Any]], dict[str, Tensor]],
        valid: HeldOut,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        stream: int,
        callbacks: list[Any],
    ) -> None:
        super().__init__(
            model=denoiser,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=valid,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.denoiser, self.config, self.valid, self.length, self.stream = denoiser, config, valid, length, stream
        self.objective = objective
        self.ema = Ema(denoiser.backbone, config.ema) if config.ema else None
        self.best = Best(Path(args.output_dir) / "best") if config.deliver_best else None
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the whole batch
        self.tokens_seen = self.forward_passes = 0
        self.cost, self.flops = Cost.of(denoiser.backbone), 0.0
        self.evaluated = -1  # the step of the last look at held-out data
        self.meter: Meter | None = None
        self._micro_batch = (-1, 0)
        self._saving = False

    # The objective

    def _part(self, rows: int) -> tuple[int, slice]:
        """Which micro-batch of the step this is, and which rows of the global batch it holds."""
        step, index = self._micro_batch
        index = index + 1 if step == self.state.global_step else 0
        self._micro_batch = (self.state.global_step, index)
        start = (index * self.args.world_size + self.args.process_index) * rows
        return index, slice(start, start + rows)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Tokens that may be masked, in all micro-batches of the step on all processes."""
        count = sum(int(b["maskable"].sum()) if "maskable" in b else b["input_ids"].numel() for b in batch_samples)
        items = torch.tensor(count, device=device)
        return self.accelerator.gather(items).sum() if self.args.world_size > 1 else items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """This micro-batch's share of the global batch's loss, in nats a token."""
        x0, c = inputs["input_ids"], self.config
        index, part = self._part(len(x0))
        draw = draw_step(
            self.objective.noise,
            seed=self.stream,
            step=self.state.global_step,
            rows=c.batch_size,
            length=self.length,
            part=part,
            p_two_pass=c.p_sm if self.denoiser.soft_mask is not None else 0.0,
            t_min=self.objective.times[0],
            t_max=self.objective.times[1],
            antithetic=c.antithetic,
            device=x0.device,
            maskable=inputs.get("maskable"),
            one_time=self.objective.is_mean,
        )
        # Dropout, too, depends on (seed, step) and the place in the batch alone.
        torch.manual_seed(((self.stream * 1_000_003 + self.state.global_step) * 4099 + part.start) % 2**63)
        sees = partial(model, valid=inputs["valid"]) if "valid" in inputs else model
        loss = self.objective.loss(sees, x0, draw, self.denoiser.mask_id, self.denoiser.shift).total()
        self.tokens_seen += x0.numel() * self.args.world_size
        self.forward_passes += (1 + draw.two_pass) * (index == 0)
        predicted = x0.numel() if self.objective.is_causal else int(draw.masked.sum())
        self.flops += self.cost.step(x0.numel(), predicted, x0.shape[1], draw.two_pass)
        if self.objective.is_mean:
            return loss / c.accumulation
        # DDP averages over processes; the whole batch's sum needs that undone.
        return loss / num_items_in_batch * self.args.world_size

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._check_finite("loss", loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._check_finite("gradient norm", torch.as_tensor(norm))
        return norm

    def _check_finite(self, what: str, value: Tensor) -> None:
        """Stop before a NaN reaches the weights, and so before it reaches a checkpoint."""
        if torch.isfinite(value):
            return
        saved = sorted(Path(self.args.output_dir).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        raise RunFailed(
            f"the {what} is {float(value)} at step {self.state.global_step + 1}",
            f"last good checkpoint: {saved[-1] if saved else 'none yet'}",
            "Lower --lr or --clip, or use --precision fp32, in a new --out with --init.",
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW in two groups: the backbone, and the three scalars without weight decay (paper, section 3.3)."""
        if self.optimizer is None:
            named = [(n, p) for n, p in (model or self.model).named_parameters() if p.requires_grad]
            groups = [
                {"params": [p for n, p in named if "soft_mask." not in n], "weight_decay": self.config.weight_decay}
            ]
            if scalars := [p for n, p in named if "soft_mask." in n]:
                groups.append({"params": scalars, "weight_decay": 0.0, "lr": self.config.soft_mask_lr})
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    # Held-out data and the log

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The loss of the held-out sequences under the averaged weights; the best so far is kept."""
        scores = self.score(draws=self.config.eval_draws)
        self.evaluated = self.state.global_step
        self.log({f"valid_{k}": v for k, v in scores.items()})
        metrics = {"eval_loss": scores["nll"]}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.best is not None and self.args.should_save:
            self.best.offer(self.state.global_step, scores["nll"], self._write_result)
        return metrics

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.ema is None else self.ema.applied()

    def score(self, draws: int) -> dict[str, float]:
        """Held-out loss (nats a token) over a grid of t and its standard error; both passes for a soft-masked model.

        It is the negative ELBO where the objective's times are all of (0, 1].
        """
        low, high = self.objective.times
        times = (0.0 if low <= _NEARLY_0 else low, high)
        with self._averaged(), self.compute_loss_context_manager():
            found = elbo(
                self.denoiser, self.valid, draws=draws, batch_size=max(1, self.args.train_batch_size), times=times
            )
        # A token counts as much as any other, as in training, however long its response is.
        tokens = None if self.valid.maskable is None else self.valid.maskable.sum(1)
        bound = Mean.of(found.bound, tokens)
        scores = {"nll": bound.mean, "standard_error": bound.standard_error, "perplexity": bound.perplexity}
        if found.two_pass is not None:
            scores["nll_one_pass"] = Mean.of(found.one_pass, tokens).mean
        return scores

    def _write_result(self, folder: Path) -> None:
        """The model as it would be delivered now."""
        with self._averaged():
            self.denoiser.save(folder)

    def deliver(self, folder: Path) -> int:
        """Write the run's model into `folder`: the best or the last, with averaged weights. Returns its step."""
        step = self.state.global_step
        self.accelerator.wait_for_everyone()
        # Read again: one process keeps the best, all of them go on with it.
        if self.best is not None and (best := Best(self.best.folder)).step is not None:
            step = best.step
            restore(self.denoiser, best.folder)
            self.ema = None  # what was kept are averages already
        if self.args.should_save:
            staging = folder / ".final"
            shutil.rmtree(staging, ignore_errors=True)
            self._write_result(staging)
            for file in staging.iterdir():
                os.replace(file, folder / file.name)
            staging.rmdir()
        self.accelerator.wait_for_everyone()
        return step

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what soft-masking needs to be seen: the scalars, their learning rate, the passes made."""
        if "loss" in logs:
            logs |= {"tokens": self.tokens_seen, "forward_passes": self.forward_passes}
            if self.meter is not None:
                logs |= self.meter.interval()
            if self.denoiser.soft_mask is not None and self.optimizer is not None:
                logs |= self.denoiser.soft_mask.values()
                logs["soft_mask_lr"] = self.optimizer.param_groups[-1]["lr"]
        super().log(logs, start_time)

    # Checkpoints

    def _get_output_dir(self, trial: Any = None) -> str:
        return os.path.join(self.args.output_dir, _PARTIAL) if self._saving else self.args.output_dir

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Write a checkpoint aside and move it in place whole; only then are older ones dropped."""
        partial = Path(self.args.output_dir) / _PARTIAL
        name = f"checkpoint-{self.state.global_step}"
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save and not (Path(self.args.output_dir) / name).exists():
                os.replace(partial / name, Path(self.args.output_dir) / name)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise RunFailed(
                f"cannot save {self.args.output_dir}/{name}", reason,
                "Earlier checkpoints are whole: make room and run the same command to go on.",
            ) from None  # fmt: skip
        finally:
            self._saving = False
            if self.args.should_save:
                shutil.rmtree(partial, ignore_errors=True)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=self.args.output_dir, save_total_limit=self.args.save_total_limit, use_mtime=True
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The model as a run folder: weights, averages, scalars, counters. The tokenizer is in the run's own folder."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.denoiser.save(folder)
        if self.ema is not None:
            self.ema.save(folder / "ema.safetensors")
        counters = {"tokens": self.tokens_seen, "forward_passes": self.forward_passes}
        (folder / "counters.json").write_text(json.dumps(counters))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The inverse of `_save`."""
        folder = Path(resume_from_checkpoint)
        restore(self.denoiser, folder)
        if self.ema is not None:
            step = int(read_object(folder / "trainer_state.json")["global_step"])
            self.ema.load(folder / "ema.safetensors", updates=step)
        counters = read_object(folder / "counters.json")
        self.tokens_seen, self.forward_passes = counters["tokens"], counters["forward_passes"]


class Best:
    """The weights with the lowest held-out loss so far, in a folder of their own.

    Attributes:
        step: when they were found; None before the first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.exists() and (self._beside / "best.json").exists():  # stopped between the last two steps of offer
            os.replace(self._beside, folder)
        stored = read_json(folder / "best.json") or {}
        self.step: int | None = stored.get("step")
        self.nll = float(stored.get("nll", "inf"))

    @property
    def _beside(self) -> Path:
        return self.folder.with_name(_PARTIAL + "-best")

    def offer(self, step: int, nll: float, write: Callable[[Path], None]) -> None:
        """Keep the weights that `write` writes if their loss is the lowest."""
        if not nll < self.nll:
            return
        beside = self._beside
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            write(beside)
            write_json(beside / "best.json", {"step": step, "nll": nll})
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(beside, self.folder)
        except (OSError, SafetensorError) as error:
            raise RunFailed(f"cannot save {self.folder}", first_line(error), "Make room and run it again.") from None
        self.step, self.nll = step, nll


def training_arguments(config: TrainingConfig, folder: Path, cuda: bool, half: bool) -> TrainingArguments:
    """The Trainer's own arguments for a run in `folder`, in bf16 if `half`."""
    world = ranks()
    if config.batch_size % (world * config.accumulation):
        raise UserError(
            f"--batch-size {config.batch_size} --accumulation {config.accumulation}",
            f"the batch does not divide over {world} processes",
        )
    kinds = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.total_steps,
        per_device_train_batch_size=config.batch_size // (world * config.accumulation),
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.lr,
        lr_scheduler_type=kinds[config.schedule],
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        optim="adamw_torch_fused",
        bf16=half,
        use_cpu=not cuda,
        seed=config.seed,
        train_sampling_strategy="sequential",  # the dataset is in training order already
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if config.eval_every else "no",
        eval_steps=config.eval_every or None,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=config.keep,
        report_to=config.report_to,
        disable_tqdm=True,
        ddp_find_unused_parameters=config.soft,
    )
    # One process drives one device: without a launcher transformers would split each batch over all GPUs by itself.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
