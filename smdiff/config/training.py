"""What a training run is: `smdiff pretrain` and `smdiff finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from smdiff.config.options import REVISION, option
from smdiff.errors import UserError

DATA, MODEL, ADAPTER, SOFT, OBJECTIVE, OPTIM, SPEED, RUN = (
    "Data", "Model", "Adapter", "Soft-masking", "Objective", "Optimisation", "Speed", "Run",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingConfig:
    """What both kinds of training share: soft-masking, noise, optimiser, the run's folder."""

    presets: ClassVar[str]
    eval_draws: ClassVar[int] = 1

    revision: str | None = option(None, REVISION, MODEL)
    p_sm: float = option(0.8, "Probability that a step makes two passes", SOFT, low=0, high=1)
    k: int = option(3, "Predictions mixed into a mask; 0 mixes the whole vocabulary", SOFT, low=0, high=1000)
    w_s: float = option(0.3, "Start of the scale", SOFT, low=0, high=0.999)
    w_a: float = option(6.66, "Start of the steepness, per nat", SOFT, above=0, high=100)
    w_b: float = option(-0.75, "Start of the centre, nats of negative entropy", SOFT, low=-100, high=-1e-3)
    soft_mask_lr: float = option(0.05, "Learning rate of the three scalars", SOFT, above=0, high=10)
    budget: str = option(
        "iso-update",
        "iso-update: --steps steps; iso-compute: as many forward passes as --steps binary steps",
        SOFT,
        choices=("iso-update", "iso-compute"),
    )

    antithetic: bool = option(True, "Spread the times of a batch evenly over the range", OBJECTIVE)

    steps: int = option(1000, "Optimiser steps", OPTIM, low=1, high=100_000_000)
    batch_size: int = option(32, "Sequences in a step, over all processes", OPTIM, low=1, high=1_000_000)
    accumulation: int = option(1, "Micro-batches a step", OPTIM, low=1, high=100_000)
    lr: float = option(2e-3, "Learning rate of the network", OPTIM, above=0, high=10)
    schedule: str = option(
        "constant", "Learning rate after the warm-up", OPTIM, choices=("constant", "linear", "cosine")
    )
    warmup: float = option(50, "Steps of linear warm-up; below 1 a share of the steps", OPTIM, low=0, high=10_000_000)
    weight_decay: float = option(0.0, "AdamW's weight decay (never on the scalars)", OPTIM, low=0, high=10)
    clip: float = option(1.0, "Largest gradient norm; 0 does not clip", OPTIM, low=0, high=1e6)
    ema: float = option(0.999, "Decay of the averaged weights, which are the result; 0 turns it off", OPTIM,
                        low=0, high=0.999999)  # fmt: skip
    seed: int = option(0, "Seed of weights, data order and noise", OPTIM, low=0, high=2**31)

    precision: str = option(
        "auto", "auto: bf16 on a GPU that has it, and on a CPU where a short check finds it faster; else fp32", SPEED,
        choices=("auto", "fp32", "bf16"), alias="--dtype",
    )  # fmt: skip
    compile: bool = option(False, "Compile the network's blocks with torch.compile", SPEED)
    gradient_checkpointing: bool = option(False, "Recompute activations: less memory, a third more time", SPEED)
    liger: bool = option(False, "The output layer and its loss in liger-kernel's fused kernel (CUDA)", SPEED)
    threads: int | None = option(
        None, "CPU threads; by default PyTorch's number, within the CPUs that the process may use", SPEED,
        low=1, high=4096, run_only=True,
    )  # fmt: skip

    out: str | None = option(
        None, "Folder of the run; by default runs/, the command and a hash of the options", RUN, run_only=True
    )
    resume: str = option(
        "auto", "auto: continue what --out holds; never: refuse a folder in use", RUN, choices=("auto", "never"),
        run_only=True,
    )  # fmt: skip
    log_every: int = option(10, "Steps between two lines of metrics.jsonl", RUN, low=1, high=10**9, run_only=True)
    eval_every: int = option(250, "Steps between two looks at held-out data; 0: only the end", RUN, low=0, high=10**9,
                             run_only=True)  # fmt: skip
    eval_sequences: int = option(128, "Held-out sequences that training looks at", RUN, low=1, high=10**7)
    save_every: int = option(250, "Steps between two checkpoints", RUN, low=1, high=10**9, run_only=True)
    keep: int = option(2, "Checkpoints kept", RUN, low=1, high=10**6, run_only=True)
    skip_bad_batches: int = option(
        0, "Steps with a loss or gradient that is not finite to leave out before stopping", RUN, low=0, high=10**6,
        run_only=True,
    )  # fmt: skip
    report_to: str = option("none", "Trackers that transformers knows (wandb, tensorboard, ...)", RUN, run_only=True)

    def __post_init__(self) -> None:
        """What the bounds of single options cannot say."""
        if self.times[0] > self.times[1]:
            raise UserError(
                f"--t-min {self.times[0]:g} --t-max {self.times[1]:g}",
                "the smallest time is above the largest",
                fix="Lower --t-min or raise --t-max.",
            )
        if self.batch_size % self.accumulation:
            raise UserError(
                f"--batch-size {self.batch_size} --accumulation {self.accumulation}",
                "the batch does not divide into that many micro-batches",
                fix="Give a multiple.",
            )

    @property
    def soft(self) -> bool:
        """Whether the run trains with soft-masking."""
        raise NotImplementedError

    @property
    def times(self) -> tuple[float, float]:
        """The smallest and the largest training time."""
        raise NotImplementedError

    @property
    def deliver_best(self) -> bool:
        """Whether the weights with the lowest held-out loss are the result, rather than the last."""
        return False

    @property
    def total_steps(self) -> int:
        """Optimiser steps after the budget: equal forward passes mean 1 / (1 + p_sm) of the steps."""
        if self.soft and self.budget == "iso-compute":
            return max(1, round(self.steps / (1 + self.p_sm)))
        return self.steps


@dataclass(frozen=True)
class PretrainConfig(TrainingConfig):
    """Everything that decides a pretraining run. The defaults are those of the preset `tiny`'s recipe."""

    presets: ClassVar[str] = "pretrain"

    data: str = option(
        "python-stdlib",
        "python-stdlib, python-docs, markov[:SEED], a file or folder (text, jsonl, parquet, .gz), or a hub dataset",
        DATA,
    )
    valid_data: str | None = option(None, "Held-out data; without it a part of --data is held out by document", DATA)
    valid_fraction: float = option(0.05, "Share of the documents that is held out", DATA, above=0, high=0.5)
    text_column: str = option("text", "Column with the text, in jsonl, parquet and hub data", DATA)
    streaming: bool = option(False, "Stream a hub dataset instead of downloading it", DATA)
    tokenizer: str | None = option(
        None, "bytes, bpe:N (trained on the data, N ids), a folder or a hub name; with --init the run's own", DATA
    )
    length: int = option(128, "Tokens in a sequence", DATA, low=2, high=131072)

    preset: str = option("tiny", "Starting values: tiny, small (the paper's 169M DiT) or medium", MODEL)
    init: str | None = option(None, "Start from a run folder, or from a checkpoint in MDLM's layout", MODEL)
    hidden_size: int = option(128, "Width", MODEL, low=8, high=65536)
    layers: int = option(4, "Blocks", MODEL, low=1, high=1000)
    heads: int = option(4, "Attention heads", MODEL, low=1, high=1024)
    cond_dim: int = option(32, "Width of the conditioning vector", MODEL, low=1, high=65536)
    dropout: float = option(0.0, "Dropout of both residual branches", MODEL, low=0, high=0.9)

    soft_mask: bool = option(False, "Train with soft-masking (two passes with probability --p-sm)", SOFT)
    objective: str = option(
        "elbo", "elbo: masked diffusion's negative ELBO; ar: the same network left to right, to compare with",
        OBJECTIVE, choices=("elbo", "ar"),
    )  # fmt: skip
    noise: str = option("log-linear", "Noise schedule", OBJECTIVE, choices=("log-linear", "cosine", "polynomial"))
    t_min: float = option(1e-3, "Smallest training time", OBJECTIVE, above=0, high=1)
    t_max: float = option(1.0, "Largest training time", OBJECTIVE, above=0, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % (2 * self.heads):
            raise UserError(
                f"--hidden-size {self.hidden_size} --heads {self.heads}",
                "the width must be a multiple of twice the heads (rotary positions)",
                fix="Change one of them.",
            )
        if self.objective == "ar" and self.soft_mask:
            raise UserError("--objective ar --soft-mask", "an autoregressive model has no masks", "Leave one out.")

    @property
    def soft(self) -> bool:
        return self.soft_mask

    @property
    def times(self) -> tuple[float, float]:
        return self.t_min, self.t_max


# Times of the two objectives (method of arXiv 2510.17206, sections 4.1 and 4.2).
_TIMES = {"elbo": (1e-3, 1.0), "code": (0.2, 0.8)}


@dataclass(frozen=True)
class FinetuneConfig(TrainingConfig):
    """Everything that decides a finetuning run."""

    presets: ClassVar[str] = "finetune"
    eval_draws: ClassVar[int] = 8

    data: str | None = option(
        None, "File, folder, hub name (owner/name or owner/name/configuration), or a mixture a:0.7,b:0.3", DATA
    )
    format: str = option(
        "auto", "What rows are: chat (messages), prompt (and response), text; auto goes by the columns", DATA,
        choices=("auto", "chat", "prompt", "text"),
    )  # fmt: skip
    messages_column: str = option("messages", "Column with the messages of a chat", DATA)
    prompt_column: str | None = option(None, "Column with the prompt; several, a,b, are joined", DATA)
    response_column: str | None = option(None, "Column with the response", DATA)
    text_column: str = option("text", "Column with the text", DATA)
    chat: bool | None = option(
        None, "Put prompts and responses into the chat template; on if the tokenizer has one", DATA
    )
    chat_template: str | None = option(None, "File with a chat template (Jinja), for a tokenizer without one", DATA)
    skip_bad_rows: bool = option(False, "Leave out rows without a response instead of refusing the data", DATA)
    max_length: int | None = option(
        None, "Longest row, in tokens; longer ones are left out, text is cut into rows of it; 1024 if the model allows",
        DATA, low=2, high=131072,
    )  # fmt: skip
    pad_policy: str = option(
        "learn",
        "learn: padding is part of the response, so that the model learns to end; ignore: nobody sees it",
        DATA,
        choices=("learn", "ignore"),
    )
    extra_pads: int = option(50, "learn: up to so many pads more after the longest row of a batch, drawn", DATA,
                             low=0, high=131072)  # fmt: skip
    valid_data: str | None = option(None, "Held-out data; without it a part of each source is held out by row", DATA)
    valid_fraction: float = option(0.05, "Share of the rows that is held out", DATA, above=0, high=0.5)
    tokenizer: str | None = option(None, "Folder or hub name, for weights that carry none", DATA)

    preset: str | None = option(None, "Starting values: dream-sm or dream-coder-sm, the paper's recipes", MODEL)
    model: str | None = option(
        None, "Dream, LLaDA, a run or MDLM weights, or any causal model (folder, .gguf file or hub name)", MODEL
    )
    shift: bool | None = option(
        None, "For a causal model: keep its logits shifted, so that an output predicts the next position; on", MODEL
    )
    mask_token: str | None = option(
        None, "For a causal model: the token that becomes the mask; by default an unused id, or a new one", MODEL
    )
    quantize: str = option("none", "4bit: base weights in four bits (bitsandbytes)", MODEL, choices=("none", "4bit"))
    attn: str = option("sdpa", "How a transformers model computes attention", SPEED,
                       choices=("sdpa", "eager", "flash_attention_2"))  # fmt: skip

    adapter: str = option("dora", "dora or lora: train an adapter; none: all weights", ADAPTER,
                          choices=("dora", "lora", "none"))  # fmt: skip
    rank: int = option(16, "Rank", ADAPTER, low=1, high=65536)
    alpha: int = option(16, "Scale: the update is multiplied by alpha / rank", ADAPTER, low=1, high=1_000_000)
    adapter_dropout: float = option(0.0, "Dropout of the adapter's input", ADAPTER, low=0, high=0.9)
    targets: str | None = option(
        None, "Names of the layers it goes on, comma-separated; by default attention's q, k, v and o", ADAPTER
    )
    merge: bool = option(False, "Also write OUT/merged: all weights, with the adapter in them", ADAPTER, run_only=True)

    soft_mask: bool = option(True, "Train with soft-masking (two passes with probability --p-sm)", SOFT)
    objective: str = option(
        "elbo", "elbo: negative ELBO, a time a row; code: a time a micro-batch, mean cross-entropy / t", OBJECTIVE,
        choices=("elbo", "code"),
    )  # fmt: skip
    t_min: float | None = option(None, "Smallest training time; elbo 0.001, code 0.2", OBJECTIVE, above=0, high=1)
    t_max: float | None = option(None, "Largest training time; elbo 1, code 0.8", OBJECTIVE, above=0, high=1)

    batch_size: int = option(8, "Sequences in a step, over all processes", OPTIM, low=1, high=1_000_000)
    lr: float = option(1e-4, "Learning rate of the adapter or the weights", OPTIM, above=0, high=10)
    schedule: str = option("cosine", "Learning rate after the warm-up", OPTIM, choices=("constant", "linear", "cosine"))
    warmup: float = option(0.03, "Steps of linear warm-up; below 1 a share of the steps", OPTIM, low=0, high=10_000_000)
    ema: float = option(0.0, "Decay of averaged weights, which are the result then; 0 turns it off", OPTIM,
                        low=0, high=0.999999)  # fmt: skip
    best: bool = option(True, "Deliver the weights with the lowest held-out loss rather than the last", RUN)

    def __post_init__(self) -> None:
        for name in ("model", "data"):
            if not getattr(self, name):
                raise UserError(f"smdiff finetune needs --{name}", fix="Or a --preset that has one.")
        super().__post_init__()

    @property
    def soft(self) -> bool:
        return self.soft_mask

    @property
    def times(self) -> tuple[float, float]:
        low, high = _TIMES[self.objective]
        return low if self.t_min is None else self.t_min, high if self.t_max is None else self.t_max

    @property
    def deliver_best(self) -> bool:
        return self.best
