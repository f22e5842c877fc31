"""Texts from a model: prompts into batches, batches through the loop, and what each text cost."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from smdiff.config import SampleConfig, flag
from smdiff.data.prompts import NOTHING, Prompt, end_ids, infill, of_text, read_prompts, readable
from smdiff.decoding.blocks import Block, blocks_of
from smdiff.decoding.denoise import Options, Step, denoise
from smdiff.decoding.sampling import Noise
from smdiff.decoding.schedulers import SCHEDULERS, Scheduler
from smdiff.decoding.trajectory import Frame, Recorder
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.errors import UserError
from smdiff.models.denoiser import Denoiser
from smdiff.models.dit import DiT
from smdiff.models.load import Model
from smdiff.ranks import gather, share, turns
from smdiff.ui.console import note, track

_STEPS = 64
_NEW_TOKENS = 256


@dataclass(frozen=True)
class Text:
    """One text and how it was made.

    Attributes:
        index: its number; with `SampleConfig.num` > 1 the texts of one prompt follow one another.
        kind: "prompt", "chat", "infill", or "" for a text from nothing.
        prompt: what was asked; "" if nothing.
        text: what was written; for an infill, the whole text with its spans filled.
        ids: its tokens, special ones among them, which `text` leaves out.
        new_tokens: tokens that were decided, up to the end of the text.
        confidence: the model's mean probability of them when they were revealed.
        nfe: forward passes of the batch that it was written in.
        seconds: wall time of that batch.
    """

    index: int
    kind: str
    prompt: str
    text: str
    ids: list[int]
    new_tokens: int
    confidence: float
    nfe: int
    seconds: float
    soft_mask: bool


@dataclass(frozen=True)
class _Plan:
    """A call, once everything in it is known to fit together."""

    denoiser: Denoiser
    scheduler: Scheduler
    prompts: list[Prompt]
    length: int
    steps: int
    block_length: int | None
    options: Options


def generate(
    model: Model, prompts: str | Sequence[str] | None = None, config: SampleConfig | None = None
) -> list[Text]:
    """Write texts: from nothing, or continuing each of `prompts` (answering them, with `config.chat`).

    Args:
        model: from `smdiff.load`.
        prompts: one or several; None takes what `config` says (its prompt, infill or prompt_file, or nothing).
        config: everything else, as on the command line.

    Raises:
        UserError: what the command line would refuse.
    """
    config = config or SampleConfig()
    if prompts is None:
        return list(write(model, config, progress=None, report=False))
    if (config.prompt, config.infill, config.prompt_file) != (None, None, None):
        raise UserError("prompts are given twice", "as an argument and in the configuration", "Give them once.")
    asked = [of_text(model.tokenizer, p, config.chat) for p in ([prompts] if isinstance(prompts, str) else prompts)]
    return list(write(model, config, asked, progress=None, report=False)) if asked else []


def write(
    model: Model,
    config: SampleConfig,
    prompts: list[Prompt] | None = None,
    watch: Callable[[list[Frame]], None] | None = None,
    indices: Sequence[int] | None = None,
    progress: str | None = "sampling",
    report: bool = True,
) -> Iterator[Text]:
    """The texts of `generate`, each as its batch is done.

    Args:
        prompts: None takes what `config` says.
        indices: numbers of the texts, one a prompt, on which their randomness depends; by default 0, 1, ...
        watch: called with a frame for each text of the batch after each step.
        progress: label of the bar, of tokens; None for no bar.
        report: say on stderr what the model has to say, and in the end what it all cost.
    """
    plan = _plan(model, config, _prompts(model, config) if prompts is None else prompts)
    if model.note and report:
        note(model.note)
    jobs = [(i, plan.prompts[i // config.num]) for i in range(len(plan.prompts) * config.num)]
    if indices is not None:
        jobs = list(zip(indices, plan.prompts, strict=True))
    batches = [jobs[i : i + config.batch_size] for i in range(0, len(jobs), config.batch_size)]
    masks = [sum(_masks(prompt, plan.length, plan.denoiser.mask_id) for _, prompt in batch) for batch in batches]
    done, calls, confidences, tokens, began = 0, 0, 0.0, 0, time.monotonic()
    with track(progress, sum(masks)) if progress else contextlib.nullcontext() as tracker:
        for turn in turns(range(len(batches))):
            number, mine = share(turn)
            written: list[Text] = []
            if mine:
                since, run = time.monotonic(), _Batch(model, plan, config.seed, batches[number])
                for step in run.steps(watch):
                    if tracker is not None:
                        tracker.update(done + run.masks - int(step.masked.sum()), f"{step.nfe} passes")
                written = list(run.texts(config.stop, time.monotonic() - since))
            done += sum(masks[number] for number in turn)
            for texts in gather(written)[: len(turn)]:
                calls += texts[0].nfe
                for text in texts:
                    confidences, tokens = confidences + text.confidence * text.new_tokens, tokens + text.new_tokens
                    yield text
    seconds = time.monotonic() - began
    if not report:
        return
    kind = "soft-masked" if plan.options.soft_mask else "binary"
    note(
        f"{kind}, {config.scheduler}: {len(jobs)} text{'s' * (len(jobs) != 1)}, NFE {calls}"
        + (f" over {len(batches)} batches" if len(batches) > 1 else "")
        + f", {tokens:,} new tokens, {tokens / max(seconds, 1e-9):,.1f} tokens/s, {seconds:.1f} s, "
        f"mean confidence {confidences / max(tokens, 1):.3f}"
    )


class _Batch:
    """Texts that are written together, left-padded to one width."""

    def __init__(self, model: Model, plan: _Plan, seed: int, jobs: list[tuple[int, Prompt]]) -> None:
        self._plan, self._jobs, self._tokenizer = plan, jobs, model.tokenizer
        mask_id, device = plan.denoiser.mask_id, plan.denoiser.device
        rows = [p.ids if p.kind == "infill" else p.ids + [mask_id] * plan.length for _, p in jobs]
        width = max(map(len, rows))
        self._padding = [width - len(row) for row in rows]
        filler = int(mask_id == 0)  # any id but the mask's: nothing attends to it
        self._start = torch.tensor(
            [[filler] * pad + row for pad, row in zip(self._padding, rows, strict=True)], device=device
        )
        self.masks = int((self._start == mask_id).sum())
        self._noise = Noise(seed, [i for i, _ in jobs], self._padding)
        self._last: Step | None = None

    def steps(self, watch: Callable[[list[Frame]], None] | None) -> Iterator[Step]:
        """Run the loop."""
        plan, width = self._plan, self._start.shape[1]
        valid = None
        if any(self._padding):
            padding = torch.tensor(self._padding, device=self._start.device)
            valid = torch.arange(width, device=self._start.device) >= padding[:, None]
        blocks = [Block(0, width, plan.steps)]
        if plan.block_length:
            blocks = blocks_of(width - plan.length, width, plan.block_length, plan.steps)
        recorder = None
        if watch is not None:
            recorder = Recorder(
                self._tokenizer, self._start, plan.denoiser.mask_id, [i for i, _ in self._jobs], self._padding,
                plan.options.soft_mask,
            )  # fmt: skip
        for step in denoise(
            plan.denoiser,
            self._start,
            plan.scheduler,
            plan.steps,
            self._noise,
            plan.options,
            blocks=blocks,
            valid=valid,
        ):
            self._last = step
            if watch is not None and recorder is not None:
                watch(list(recorder.frames(step)))
            yield step

    def texts(self, stop: bool, seconds: float) -> Iterator[Text]:
        """What was written, cut at the first end-of-text if it is a continuation."""
        assert self._last is not None
        ends, soft, nfe = set(self._plan.options.ends), self._plan.options.soft_mask, self._plan.denoiser.nfe
        new = (self._start == self._plan.denoiser.mask_id).cpu()
        ids, confidence = self._last.ids.cpu(), self._last.confidence.cpu()
        for row, (index, prompt) in enumerate(self._jobs):
            columns = new[row].nonzero()[:, 0].tolist()
            kept = columns
            if stop and prompt.kind in ("prompt", "chat"):
                end = next((n for n, c in enumerate(columns) if int(ids[row, c]) in ends), len(columns))
                columns, kept = columns[:end], columns[: end + 1]
            if prompt.kind == "infill":
                columns = list(range(self._padding[row], ids.shape[1]))
            written = ids[row, columns].tolist()
            text = self._tokenizer.decode(written, skip_special_tokens=prompt.kind != "")
            yield Text(
                index,
                prompt.kind,
                prompt.shown,
                text,
                written,
                len(kept),
                float(confidence[row, kept].mean()),
                nfe,
                seconds,
                soft,
            )


# --- from a configuration to a plan ---------------------------------------------------------------------------------


def _prompts(model: Model, config: SampleConfig) -> list[Prompt]:
    mask_id = model.denoiser.mask_id
    if config.prompt_file is not None:
        return read_prompts(Path(config.prompt_file).expanduser(), model.tokenizer, mask_id, config.chat)
    if config.infill is not None:
        return [infill(model.tokenizer, config.infill, mask_id)]
    if config.prompt is not None:
        return [of_text(model.tokenizer, config.prompt, config.chat)]
    if config.chat:
        raise UserError("--chat", "there is nothing to answer", "Give --prompt or --prompt-file.")
    return [NOTHING]


def _plan(model: Model, config: SampleConfig, prompts: list[Prompt]) -> _Plan:
    """Everything that can be refused is refused here, before the first pass."""
    check(config)
    denoiser = with_soft_mask(model.denoiser, config)
    length = _length(denoiser, config, prompts)
    positions = max(_masks(p, length, denoiser.mask_id) for p in prompts)
    if config.block_length is not None and any(p.kind == "infill" for p in prompts):
        raise UserError(
            f"--block-length {config.block_length}", "a text with spans is filled all at once", fix="Leave it out."
        )
    steps = _steps(config, positions)
    ends = end_ids(model.tokenizer, getattr(denoiser.backbone.config, "eos_token_id", None))
    if config.suppress_eos and not ends:
        raise UserError(
            f"--suppress-eos {config.suppress_eos}", "the tokenizer has no end-of-text", fix="Leave it out."
        )
    if config.guidance and not any(p.ids for p in prompts):
        raise UserError(
            f"--guidance {config.guidance:g}",
            "there is no prompt to be guided by",
            fix="Give a --prompt, or leave it out.",
        )
    options = Options(
        soft_mask=denoiser.soft_mask is not None and config.soft_mask is not False,
        soft_mask_schedule=config.soft_mask_schedule,
        cache=config.cache,
        refresh=config.cache_refresh,
        guidance=config.guidance,
        ends=tuple(ends),
        stop=config.stop and all(p.kind in ("prompt", "chat") for p in prompts),
        suppress_ends=config.suppress_eos,
    )
    return _Plan(denoiser, _scheduler(config), prompts, length, steps, config.block_length, options)


def check(config: SampleConfig) -> None:
    """Refuse what can be refused without the model, which may take minutes to load.

    Raises:
        UserError: options that the scheduler does not have or that do not fit together, or an unreadable prompt file.
    """
    _scheduler(config)
    if config.steps is not None and SCHEDULERS[config.scheduler].adaptive:
        raise UserError(
            f"--steps {config.steps} has no effect", f"{config.scheduler} takes as many steps as it needs",
            f"Set {flag(config.scheduler)} instead.",
        )  # fmt: skip
    if config.prompt_file is not None:
        readable(Path(config.prompt_file).expanduser())


def with_soft_mask(denoiser: Denoiser, config: SampleConfig) -> Denoiser:
    """The denoiser with the scalars that the configuration asks for.

    Raises:
        UserError: it has none, or the options do not fit together.
    """
    if denoiser.causal:
        why = "it writes from left to right and fills no masks"
        raise UserError("this model is autoregressive", why, "It is there to compare with: smdiff eval-text.")
    scalars, scale = denoiser.soft_mask, config.soft_mask_scale
    on = config.soft_mask if config.soft_mask is not None else (scalars is not None or scale is not None)
    if config.soft_mask_k is not None and (scalars is not None or scale is None):
        raise UserError(
            f"--soft-mask-k {config.soft_mask_k}",
            "it goes with --soft-mask-scale, on a model without scalars",
            fix="Leave it out.",
        )
    if not on:
        given = "--soft-mask-scale" if scale is not None else "--soft-mask-schedule"
        if scale is not None or config.soft_mask_schedule != "none":
            raise UserError(
                f"{given} has no effect", "soft-masking is off", fix="Leave it out, or turn it on with --soft-mask."
            )
        return denoiser
    if scale is None:
        if scalars is None:
            raise UserError(
                "--soft-mask", "this model has no soft-mask scalars",
                "Train them (smdiff pretrain --soft-mask --init MODEL), or try --soft-mask-scale 0.3 untrained.",
            )  # fmt: skip
        return denoiser
    if scalars is None:
        return denoiser.with_soft_mask(SoftMask(config.soft_mask_k or 3, w_s=scale))
    rest = {name: value for name, value in scalars.values().items() if name != "w_s"}
    return denoiser.with_soft_mask(SoftMask(scalars.k, w_s=scale, **rest))


def _masks(prompt: Prompt, length: int, mask_id: int) -> int:
    """New tokens of a prompt."""
    return prompt.ids.count(mask_id) + (0 if prompt.kind == "infill" else length)


def _length(denoiser: Denoiser, config: SampleConfig, prompts: list[Prompt]) -> int:
    """New tokens after each prompt."""
    infills = [p for p in prompts if p.kind == "infill"]
    if len(infills) == len(prompts) and config.length is not None:
        raise UserError(
            f"--length {config.length} has no effect", "the spans say how many tokens to write", fix="Leave it out."
        )
    most, longest = denoiser.max_length, max(len(p.ids) for p in prompts)
    if longest > most or (longest == most and len(infills) < len(prompts)):
        raise UserError(f"a prompt has {longest} tokens", f"the model's length is {most}", "Shorten it.")
    if len(infills) == len(prompts):
        return 0
    # A text from nothing is as long as those of the training; only a DiT's configuration tells how long they were.
    whole = not longest and isinstance(denoiser.backbone, DiT)
    length = config.length or (most if whole else min(most - longest, _NEW_TOKENS))
    if longest + length > most:
        why = f"with the longest prompt's {longest} that is" if longest else "that is"
        raise UserError(f"--length {length}", f"{why} more than the model's {most}", f"At most {most - longest}.")
    return length


def _steps(config: SampleConfig, positions: int) -> int:
    """Steps over all blocks; refuses numbers that make no sense."""
    blocks = 1
    if config.block_length is not None:
        blocks, rest = divmod(positions, config.block_length)
        if rest or not blocks:
            raise UserError(
                f"--block-length {config.block_length}",
                f"{positions} new tokens do not divide into such blocks",
                "Set --length to a multiple of it.",
            )
    if SCHEDULERS[config.scheduler].adaptive:
        if config.steps is not None:
            raise UserError(
                f"--steps {config.steps} has no effect", f"{config.scheduler} takes as many steps as it needs",
                f"Set {flag(config.scheduler)} instead.",
            )  # fmt: skip
        return blocks
    steps = config.steps or max(min(_STEPS, positions), blocks)
    if steps > positions and not SCHEDULERS[config.scheduler].remasks:
        raise UserError(
            f"--steps {steps}", f"there are only {positions} tokens to write",
            f"At most {positions}; the remdm schedulers take more.",
        )  # fmt: skip
    if steps < blocks:
        raise UserError(
            f"--steps {steps}",
            f"{blocks} blocks need a step each",
            fix=f"Give at least {blocks}, or a larger --block-length.",
        )
    return steps


def _scheduler(config: SampleConfig) -> Scheduler:
    """The scheduler with its own options; those of others are refused."""
    kinds = {name: {f.name for f in dataclasses.fields(kind)} for name, kind in SCHEDULERS.items()}
    own = {name for fields in kinds.values() for name in fields} & {f.name for f in dataclasses.fields(config)}
    given = {name: getattr(config, name) for name in own if getattr(config, name) is not None}
    for name in given:
        if name not in kinds[config.scheduler]:
            belongs = ", ".join(kind for kind, fields in kinds.items() if name in fields)
            raise UserError(
                f"{flag(name)} has no effect with --scheduler {config.scheduler}",
                f"it is for {belongs}",
                fix="Leave it out, or take that scheduler.",
            )
    try:
        return SCHEDULERS[config.scheduler](**given)
    except ValueError as error:
        raise UserError(
            f"--scheduler {config.scheduler}", str(error), fix="Change its options, or leave them out."
        ) from None
