"""`transformers.Trainer` with the diffusion objective, noise from (seed, step) alone, and whole checkpoints."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME

from smdiff.config import TrainingConfig
from smdiff.diffusion.noise import draw_step
from smdiff.diffusion.objective import Objective
from smdiff.errors import RunFailed, UserError, first_line
from smdiff.evaluation.text import HeldOut, Mean, elbo
from smdiff.files import write_json
from smdiff.models.denoiser import Denoiser
from smdiff.models.load import apply_averages, restore
from smdiff.models.weights import read_object
from smdiff.ranks import gather, is_first, ranks
from smdiff.training import sharding
from smdiff.training.bad_batches import BadBatches
from smdiff.training.callbacks import Meter
from smdiff.training.checkpoints import PARTIAL, Best, Checkpoints, deliver
from smdiff.training.ema import Ema
from smdiff.training.sharding import Sharded
from smdiff.training.speed import Cost

# A time from which on the average over t is the ELBO's.
_NEARLY_0 = 0.01


class SoftMaskTrainer(Trainer):
    """Trains a `Denoiser` in one pass or two.

    Args:
        denoiser: the model; its three scalars, if any, form an optimiser group of their own.
        config: the run's configuration.
        args: the Trainer's, made by `training_arguments`.
        checkpoints: those of the run.
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
        checkpoints: Checkpoints,
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
        self.objective, self.checkpoints = objective, checkpoints
        sharding.check(self.accelerator)
        self.ema: Ema | None = None
        self.sharded: Sharded | None = None
        self.best = Best(Path(args.output_dir) / "best") if config.deliver_best else None
        if self.best is not None:
            self.best.step, self.best.nll = gather((self.best.step, self.best.nll))[0]  # what all decide by
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the whole batch
        self.tokens_seen = self.forward_passes = 0
        self.cost, self.flops = Cost.of(denoiser.backbone), 0.0
        self.evaluated = -1  # the step of the last look at held-out data
        self.bad_batches = BadBatches(config.skip_bad_batches)
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
        loss = self.objective.loss(sees, x0, draw, self.denoiser.mask_id, self.denoiser.shift).total
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
        return self.bad_batches.see(inputs["input_ids"], loss)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm, looked at before the optimiser's step: no NaN reaches the weights, and so none a checkpoint."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if (bad := self.bad_batches.judge(norm, self.state.global_step + 1, self.accelerator)) is not None:
            saved = self.checkpoints.all()
            self.bad_batches.skip(bad, f"last good checkpoint: {saved[0] if saved else 'none yet'}")
            # AdamW leaves a weight without a gradient as it is, its moments included.
            model.zero_grad(set_to_none=True)
            if self.ema is not None:
                self.ema.pause()
            self.log(bad.record())
        return norm

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
        if self.best is not None and scores["nll"] < self.best.nll:
            with self._averaged():
                self.best.offer(self.state.global_step, scores["nll"], self._whole().save)
        return metrics

    def start_averages(self) -> None:
        """Average from the weights as they are now."""
        if self.config.ema and self.ema is None:
            self.ema = Ema(self.denoiser.backbone, self.config.ema)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averages in place of the weights while the block runs."""
        if self.ema is None:
            yield
            return
        with self.ema.applied():
            self._changed()
            yield
        self._changed()

    # Weights over several processes

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled |= sharding.shard_on_cpu(self.accelerator)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_fsdp_enabled:
            self.sharded = Sharded(self.denoiser)
        return super()._prepare_for_training(*args, **kwargs)

    def _changed(self) -> None:
        if self.sharded is not None:
            self.sharded.changed()

    def _whole(self) -> Denoiser:
        """The model with all its weights, in the first process. All must ask."""
        return self.denoiser if self.sharded is None else self.sharded.whole()

    def _fill(self, read: Callable[[Denoiser], None]) -> None:
        """Let `read` put other weights into the model."""
        whole = self._whole()
        if self.sharded is None or is_first():
            read(whole)
        if self.sharded is not None:
            self.sharded.fill(whole)

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

    def deliver(self, folder: Path) -> int:
        """Write the run's model into `folder`: the best or the last, with averaged weights. Returns its step."""
        step = self.state.global_step
        self.accelerator.wait_for_everyone()
        # Read again: one process keeps the best, all of them go on with it.
        if self.best is not None and (best := Best(self.best.folder)).step is not None:
            step = best.step
            self._fill(partial(restore, folder=best.folder))
            self.ema = None  # what was kept are averages already
        with self._averaged():
            whole = self._whole()
            if is_first():
                deliver(folder, whole.save)
        self.accelerator.wait_for_everyone()
        return step

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what soft-masking needs to be seen: the scalars, their learning rate, the passes made."""
        if "loss" in logs:
            logs["loss"] = self.bad_batches.mean(logs["loss"], self.state.global_step)
            logs |= {"tokens": self.tokens_seen, "forward_passes": self.forward_passes}
            if self.meter is not None:
                logs |= self.meter.interval()
            if self.denoiser.soft_mask is not None and self.optimizer is not None:
                logs |= self.scalars()
                logs["soft_mask_lr"] = self.optimizer.param_groups[-1]["lr"]
        super().log(logs, start_time)

    def scalars(self) -> dict[str, float]:
        """The values of the soft mask. All must ask."""
        soft_mask = self.denoiser.soft_mask if self.sharded is None else self.sharded.soft_mask()
        return {} if soft_mask is None else soft_mask.values()

    # Checkpoints

    def _get_output_dir(self, trial: Any = None) -> str:
        return os.path.join(self.args.output_dir, PARTIAL) if self._saving else self.args.output_dir

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Write a checkpoint aside and move it in place whole; only then are older ones dropped."""
        name = f"checkpoint-{self.state.global_step}"
        self._saving = True
        try:
            if self.args.should_save:
                self.checkpoints.begin()
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.checkpoints.place(name)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise RunFailed(
                f"cannot save {self.args.output_dir}/{name}", self._why_not_saved(error),
                "Earlier checkpoints are whole: make room and run the same command to go on.",
            ) from None  # fmt: skip
        finally:
            self._saving = False
            if self.args.should_save:
                self.checkpoints.clear()
        if self.args.should_save:
            self.checkpoints.rotate()

    def _why_not_saved(self, error: Exception) -> str:
        if "inline_container" in str(error):  # all that torch says of a full disk is a line of its own source
            free = shutil.disk_usage(self.args.output_dir).free
            return f"a file could not be written in full, with {free / 1e6:,.1f} MB free"
        return getattr(error, "strerror", None) or first_line(error)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The model as a run folder: weights, averages, scalars, counters. The tokenizer is in the run's own folder."""
        folder, whole = Path(output_dir or self.args.output_dir), self._whole()
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            whole.save(folder)
            counters = {"tokens": self.tokens_seen, "forward_passes": self.forward_passes, "evaluated": self.evaluated}
            write_json(folder / "counters.json", counters | {"skipped": self.bad_batches.skipped})
        if self.ema is not None:
            with self._averaged():
                whole = self._whole()
                if is_first():
                    self.ema.save(folder / "ema.safetensors", whole.backbone)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Whole weights, however they are spread over processes."""
        self._save(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.sharded is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # Without the sharded copy of the weights that transformers would write too.
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if is_first():
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The weights that `_save` wrote."""
        with _reading(resume_from_checkpoint):
            self._load_counters(Path(resume_from_checkpoint))  # before the Trainer goes by them
            self._fill(partial(restore, folder=Path(resume_from_checkpoint)))

    def _load_counters(self, folder: Path) -> int:
        """What was done until the checkpoint. Returns its step."""
        counters = read_object(folder / "counters.json")
        step = int(TrainerState.load_from_json(str(folder / "trainer_state.json")).global_step)
        if folder.name != f"checkpoint-{step}":
            raise ValueError(f"its trainer_state.json is of step {step}")
        self.tokens_seen, self.forward_passes = int(counters["tokens"]), int(counters["forward_passes"])
        self.evaluated = int(counters.get("evaluated", -1))
        self.bad_batches.skipped = list(counters.get("skipped", []))
        return step

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The optimiser, and what else `_save` wrote."""
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        if (folder / "optimizer_0").is_dir() != (self.sharded is not None):
            kind = "with" if self.sharded is None else "without"
            fix = "Launch it so again, or start another run from the weights."
            raise UserError(f"{folder} was saved {kind} FSDP", "its optimiser's state is in another form", fix)
        with _reading(folder):
            super()._load_optimizer_and_scheduler(checkpoint)
            step = self._load_counters(folder)
            self.start_averages()
            if self.ema is not None:
                with self._averaged():
                    self._fill(partial(apply_averages, folder=folder))
                self.ema.updates = step - len(self.bad_batches.skipped)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_rng_state(checkpoint)


@contextmanager
def _reading(checkpoint: str | Path | None) -> Iterator[None]:
    """A file that is not what a checkpoint holds, told in one line. No code in it runs: they are loaded as weights."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (pickle.UnpicklingError, OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError,
            AttributeError, SafetensorError) as error:  # fmt: skip
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):
            reason = "one of its files holds objects other than tensors and numbers, which are never loaded"
        fix = "Remove that folder to go on from an earlier checkpoint."
        raise UserError(f"cannot go on from {checkpoint}", reason, fix) from None


def training_arguments(config: TrainingConfig, folder: Path, cuda: bool, half: bool) -> TrainingArguments:
    """The Trainer's own arguments for a run in `folder`, in bf16 if `half`."""
    world = ranks()
    sharding.check_launcher(cuda)
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
