"""How models are scored on text: `smdiff eval-text`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from smdiff.config.options import flag, option
from smdiff.config.sampling import DECODING, TEXTS, DecodingConfig
from smdiff.config.sweep import SweepConfig, parts
from smdiff.errors import UserError

# As in smdiff.data.text_sets, which help screens do not wait for.
TEXT_SET_NAMES = ("wikitext-2", "wikitext-103", "ptb", "lm1b", "lambada", "ag_news", "pubmed", "arxiv")
DATA, LIKELIHOOD, GENERATED = "Data", "Likelihood", "Generated texts"


@dataclass(frozen=True)
class EvalTextConfig(SweepConfig):
    """How models are scored on text: the likelihood of held-out text, and the quality of their own."""

    data: str = option(
        "python-stdlib", "What to score on, comma-separated: as in smdiff pretrain, or a set of zero-shot perplexity "
        f"({', '.join(TEXT_SET_NAMES)}), from the hub or as NAME=FILE", DATA,
    )  # fmt: skip
    split: str = option(
        "auto",
        "auto: the held-out part of built-in data and of data that a model was trained on, else all; or say which",
        DATA,
        choices=("auto", "held-out", "all"),
    )
    valid_fraction: float = option(0.05, "Share that is held out, as in training", DATA, above=0, high=0.5)
    text_column: str = option("text", "Column with the text, in jsonl, parquet and hub data", DATA)
    length: int | None = option(
        None, "Tokens in a sequence and in a text; by default the training length, at most 1024", DATA,
        low=2, high=131072,
    )  # fmt: skip
    limit: int = option(512, "Sequences scored, at most; spread evenly over the data", LIKELIHOOD,
                        low=1, high=100_000_000)  # fmt: skip
    draws: int = option(8, "Masks drawn for each sequence, stratified over the masked share", LIKELIHOOD,
                        low=1, high=100_000)  # fmt: skip
    seed: int = option(0, "Seed of the masks, which all models share", LIKELIHOOD, low=0, high=2**31)
    generate: int = option(
        0, "Texts from nothing that each model writes in each way of decoding, of each seed", GENERATED,
        low=0, high=1_000_000,
    )  # fmt: skip
    judge: str = option(
        "gpt2-large", "Causal model of the generative perplexity: a folder, hub name or run of --objective ar; or none",
        GENERATED,
    )  # fmt: skip
    features: str | None = option(
        None, "Causal model whose last hidden states MAUVE compares; by default the judge", GENERATED
    )
    mauve_seeds: int = option(5, "k-means runs over which MAUVE is averaged; 0 leaves it out", GENERATED,
                              low=0, high=1000)  # fmt: skip
    mauve_clusters: int | None = option(
        None, "Clusters of k-means; by default a tenth of the texts (mauve-text)", GENERATED, low=2, high=100_000
    )
    scheduler: str = option("ancestral", "How masks are revealed, comma-separated: as in smdiff sample", DECODING)
    batch_size: int = option(32, "Sequences or texts at once; does not change the result", TEXTS, low=1, high=100_000)

    @property
    def sources(self) -> list[str]:
        """The data, one by one."""
        return parts(self.data, "--data")

    def check(self, given: frozenset[str]) -> None:
        """Refuse what can be refused before any model is there.

        Args:
            given: the options that somebody set.

        Raises:
            UserError: an option that has no effect, or that cannot be read.
        """
        names = {f.name for f in dataclasses.fields(DecodingConfig)} | {"steps", "soft_mask", "seeds"}
        names |= {"judge", "features", "mauve_seeds", "mauve_clusters"}
        names -= {"batch_size", "tokenizer", "device", "precision"}
        if not self.generate and (idle := sorted(given & names)):
            raise UserError(f"{flag(idle[0])} has no effect", "no texts are written", "Give --generate N.")
        _ = self.sources
        for setting in self.settings(False):
            if self.length is not None:
                self.sample_config(setting, self.length)
        if self.judge == "none" and self.features is None and self.mauve_seeds and "mauve_seeds" in given:
            raise UserError("--judge none", "MAUVE needs features", "Give --features, or --mauve-seeds 0.")
