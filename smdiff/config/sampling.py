"""How texts are written: `smdiff sample`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from smdiff.config.options import REVISION, checked, flag, option
from smdiff.errors import UserError

MODEL, SOFT = "Model", "Soft-masking"
DECODING, RULE, BLOCKS, TEXTS = "Decoding", "Scheduler's own", "Blocks", "Texts"
SCHEDULER_NAMES = (
    "ancestral", "origin", "maskgit_plus", "topk_margin", "entropy", "low_confidence", "threshold", "entropy_bound",
    "remdm-cap", "remdm-rescale", "remdm-conf", "remdm-loop",
)  # fmt: skip
# Those that take as many steps as they need, and those that may take more than there are tokens.
ADAPTIVE = ("threshold", "entropy_bound")
REMASKING = tuple(name for name in SCHEDULER_NAMES if name.startswith("remdm-"))


@dataclass(frozen=True)
class DecodingConfig:
    """How a text comes about, whatever it is for. An option of None takes the scheduler's or the model's own value."""

    scheduler: str = option(
        "ancestral", f"How masks are revealed: {', '.join(SCHEDULER_NAMES)}", DECODING, choices=SCHEDULER_NAMES
    )
    temperature: float | None = option(
        None, "Of the draw, 0 for the likeliest; by default 1 at random orders, 0.1 in Dream's, else 0", DECODING,
        low=0, high=100,
    )  # fmt: skip
    top_p: float | None = option(
        None, "Nucleus, 1 keeps all tokens; by default 0.9, but 1 for low_confidence", DECODING, above=0, high=1
    )
    top_k: int = option(0, "Most tokens kept, after the nucleus; 0 keeps all", DECODING, low=0, high=10_000_000)
    guidance: float = option(
        0.0, "Classifier-free guidance, away from the text without its prompt; doubles the passes", DECODING,
        low=0, high=100,
    )  # fmt: skip

    soft_mask_schedule: str = option(
        "none", "lambda over decoding progress: none, linear or step", SOFT, choices=("none", "linear", "step")
    )
    soft_mask_scale: float | None = option(
        None, "Use this w_s; for a model without scalars, with the paper's start of the other two", SOFT,
        low=0, high=0.999,
    )  # fmt: skip
    soft_mask_k: int | None = option(
        None, "Predictions mixed into a mask, for a model without scalars; by default 3", SOFT, low=1, high=1000
    )

    alg_temp: float | None = option(
        None, "Dream's and LLaDA's orders: above 0, positions are drawn from softmax(score / it)",
        RULE, low=0, high=1000,
    )  # fmt: skip
    threshold: float | None = option(
        None, "threshold: reveal at this confidence; its default is 0.9", RULE, low=0, high=1
    )
    entropy_bound: float | None = option(
        None, "entropy_bound: most nats revealed at once, the largest aside; its default is 0.1", RULE, low=0, high=1e6
    )
    eta: float | None = option(
        None, "remdm-*: cap (0.04; 0.02 from 1,024 steps), share of the largest rate (0.015), rate in the loop (0.02)",
        RULE, low=0, high=1,
    )  # fmt: skip
    t_on: float | None = option(None, "remdm-loop: time at which remasking starts; 0.55", RULE, above=0, high=0.999)
    t_off: float | None = option(None, "remdm-loop: time at which it ends; 0.05", RULE, above=0, high=0.999)
    alpha_on: float | None = option(
        None, "remdm-loop: share of tokens visible meanwhile; 0.9", RULE, above=0, high=0.999
    )

    block_length: int | None = option(
        None, "Fill the new tokens in blocks of so many, one after the other", BLOCKS, low=1, high=131072
    )
    cache: str = option(
        "none", "Keys and values kept over a block's steps: none, prefix (all before it), dual (all but it)", BLOCKS,
        choices=("none", "prefix", "dual"),
    )  # fmt: skip
    cache_refresh: int = option(
        0, "Steps between two passes over everything; 0 makes one at the start of each block", BLOCKS,
        low=0, high=1_000_000,
    )  # fmt: skip

    suppress_eos: int = option(0, "No end-of-text within so many first new tokens", TEXTS, low=0, high=131072)
    batch_size: int = option(16, "Texts written at once; does not change them", TEXTS, low=1, high=100_000)

    revision: str | None = option(None, REVISION, MODEL)
    tokenizer: str | None = option(None, "Folder or hub name, for weights that carry none", MODEL)
    device: str | None = option(None, "cpu, cuda, cuda:1, ...; by default the GPU if there is one", MODEL)
    precision: str = option(
        "auto", "auto: the checkpoint's own on a GPU, fp32 on a CPU", MODEL, choices=("auto", "fp32", "bf16")
    )


@dataclass(frozen=True)
class SampleConfig(DecodingConfig):
    """How texts are written, and which."""

    steps: int | None = option(
        None,
        "Denoising steps; by default 64, or the number of new tokens if that is less",
        DECODING,
        low=1,
        high=1_000_000,
    )
    soft_mask: bool | None = option(
        None, "Feed predictions back into the masks; on by default if the model has the scalars", SOFT
    )
    prompt: str | None = option(None, "Text to continue", TEXTS)
    infill: str | None = option(None, "Text with <mask> or <mask:12> (so many tokens) to fill, anywhere in it", TEXTS)
    prompt_file: str | None = option(
        None, 'JSON lines: {"prompt": ...}, {"infill": ...} or {"messages": [...]}, or a string each', TEXTS
    )
    chat: bool = option(False, "Put prompts into the tokenizer's chat template, as a user's turn", TEXTS)
    num: int = option(1, "Texts, of each prompt if there are prompts", TEXTS, low=1, high=10_000_000)
    length: int | None = option(
        None, "New tokens; by default the training length from nothing, else what is left of it, at most 256", TEXTS,
        low=1, high=131072,
    )  # fmt: skip
    stop: bool = option(True, "End a continuation at its first end-of-text", TEXTS)
    seed: int = option(0, "For a given length and steps, text i depends on the seed and i", TEXTS, low=0, high=2**31)

    def __post_init__(self) -> None:
        """The bounds of single options (made from Python, nobody has checked them yet), and what they cannot say."""
        for f in dataclasses.fields(self):
            if getattr(self, f.name) is not f.default:
                checked(SampleConfig, f.name, getattr(self, f.name), "flag")
        if self.temperature and self.temperature < 1e-3:
            raise UserError(
                f"--temperature {self.temperature:g}", "too small to compute with", "0 takes the likeliest."
            )
        sources = [flag(n) for n in ("prompt", "infill", "prompt_file") if getattr(self, n) is not None]
        if len(sources) > 1:
            raise UserError(" ".join(sources), "more than one says what to write", "Give one of them.")
        if self.chat and self.infill is not None:
            raise UserError("--chat --infill", "a chat is answered, it has no spans", "Use one of them.")
        if self.cache != "none" and self.block_length is None:
            raise UserError(f"--cache {self.cache}", "a cache lives for one block", "Give --block-length.")
        if self.cache != "none" and self.guidance:
            raise UserError(
                f"--cache {self.cache} --guidance {self.guidance:g}",
                "guidance has no cached pass",
                fix="Leave one of them out.",
            )
        if self.cache_refresh and self.cache == "none":
            raise UserError(
                f"--cache-refresh {self.cache_refresh}", "there is no cache", "Give --cache prefix or dual."
            )
        if self.block_length is not None and self.scheduler.startswith("remdm"):
            raise UserError(
                f"--scheduler {self.scheduler} --block-length {self.block_length}",
                "remasking runs on a clock over the whole text, not over blocks or a cache",
                "Leave out one of them.",
            )
        if self.block_length is not None and self.infill is not None:
            raise UserError(
                f"--infill --block-length {self.block_length}",
                "blocks go through a continuation, in order",
                fix="Leave one of them out.",
            )
