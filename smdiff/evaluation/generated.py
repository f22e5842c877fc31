"""Texts that models write from nothing, and what they are worth: each stage goes on where it was left."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from smdiff.config import EvalTextConfig
from smdiff.config.sweep import Setting
from smdiff.data.prompts import NOTHING
from smdiff.decoding.autoregressive import continue_from_start
from smdiff.decoding.generate import with_soft_mask, write
from smdiff.evaluation.judge import Judge
from smdiff.evaluation.likelihood import Part
from smdiff.evaluation.measures import Mauve, distinct, mauve, unigram_entropy
from smdiff.evaluation.store import Lines, Store, batches
from smdiff.evaluation.text import Mean, verdict
from smdiff.models.load import Model
from smdiff.ranks import gather, is_first, share, turns
from smdiff.ui.console import track

_NGRAMS = (1, 2, 3)
AR = "ar"


@dataclass
class Arm:
    """One model and one way of decoding.

    Attributes:
        setting: None for real text.
        vocabulary: a hash of the tokenizer's, which real texts to compare with share.
        n: texts wanted.
        samples: by index.
        judged: by judge and index.
    """

    model: str
    setting: Setting | None
    steps: int | None
    vocabulary: str
    n: int
    samples: Lines
    judged: Lines

    @classmethod
    def at(
        cls, store: Store, place: str, model: str, setting: Setting | None, steps: int | None, vocabulary: str, n: int
    ) -> Arm:
        samples = store.lines(place, "samples.jsonl", names=("index",))
        judged = store.lines(place, "judged.jsonl", names=("judge", "index"))
        return cls(model, setting, steps, vocabulary, n, samples, judged)

    def texts(self) -> list[dict[str, Any]]:
        """Those that are there."""
        return [self.samples.records[i,] for i in range(self.n) if (i,) in self.samples.records]


def ways(config: EvalTextConfig, causal: bool, has_scalars: bool, length: int) -> list[tuple[Setting, int | None, str]]:
    """The ways of decoding of a model: setting, steps, and the name of its folder."""
    if causal:
        seeds = dict.fromkeys(s.seed for s in config.settings(False))
        return [(Setting(AR, None, False, seed), length, f"{AR}-seed{seed}") for seed in seeds]
    found = []
    can = has_scalars or config.soft_mask_scale is not None
    for s in config.settings(has_scalars):
        if s.soft_mask and not can and config.soft_mask == "both":
            continue  # the model beside it may have scalars
        steps = None if s.budget is None else config.steps_of(s.budget, length, s.scheduler)
        kind = "soft-masked" if s.soft_mask else "binary"
        found.append((s, steps, f"{s.scheduler}-{kind}-{steps or 'free'}-seed{s.seed}"))
    return found


def refuse(model: Model, config: EvalTextConfig, arms: list[Arm], length: int) -> None:
    """All that a model can refuse, before the first text.

    Raises:
        UserError: no soft-mask scalars, and the like.
    """
    for arm in arms:
        if arm.setting is not None and arm.setting.scheduler != AR:
            with_soft_mask(model.denoiser, config.sample_config(arm.setting, length))


def generate(model: Model, config: EvalTextConfig, arm: Arm, length: int) -> None:
    """Write the texts of an arm that are missing. Text i depends on the seed and i."""
    assert arm.setting is not None
    missing = [i for i in range(arm.n) if (i,) not in arm.samples.records]
    if not missing:
        return
    written = _autoregressive if arm.setting.scheduler == AR else _denoised
    label = f"{arm.model}, {_way(arm.setting, arm.steps)}, tokens of {len(missing)} texts:"
    for batch in batches(written(model, config, arm.setting, length, missing, label), config.batch_size):
        arm.samples.add(batch)


def _way(setting: Setting, steps: int | None) -> str:
    if setting.scheduler == AR:
        return "left to right"
    kind = "soft-masked" if setting.soft_mask else "binary"
    return f"{setting.scheduler}, {kind}" + (f", {steps} steps" if steps else "")


def _denoised(
    model: Model, config: EvalTextConfig, setting: Setting, length: int, missing: list[int], label: str
) -> Iterator[dict[str, Any]]:
    since = time.monotonic()
    prompts = [NOTHING] * len(missing)
    for text in write(
        model, config.sample_config(setting, length), prompts, indices=missing, progress=label, report=False
    ):
        now = time.monotonic()  # the texts of a batch come together: the first one carries its time
        yield _record(text.index, text.text, text.ids, text.nfe, now - since)
        since = now


def _autoregressive(
    model: Model, config: EvalTextConfig, setting: Setting, length: int, missing: list[int], label: str
) -> Iterator[dict[str, Any]]:
    temperature = 1.0 if config.temperature is None else config.temperature
    top_p = 0.9 if config.top_p is None else config.top_p
    batches = [missing[start : start + config.batch_size] for start in range(0, len(missing), config.batch_size)]
    done = 0
    with track(label, len(missing) * length) as tracker:
        for turn in turns(batches):
            since, (mine, _) = time.monotonic(), share(turn)
            ids = continue_from_start(
                model.denoiser, length, setting.seed, mine, temperature, top_p, tracker.advance
            ).tolist()
            written = [row for found in gather(ids)[: len(turn)] for row in found]
            done += len(written)
            tracker.update(done * length)
            seconds = time.monotonic() - since  # of all that are written together: the first one carries it
            for index, row in zip((i for rows in turn for i in rows), written, strict=True):
                yield _record(index, model.tokenizer.decode(row), row, length, seconds)
                seconds = 0.0


def _record(index: int, text: str, ids: list[int], nfe: int, seconds: float) -> dict[str, Any]:
    return {"index": index, "text": text, "ids": ids, "nfe": nfe, "seconds": seconds}


def real_texts(of: Part, tokenizer: PreTrainedTokenizerBase, length: int, arm: Arm) -> None:
    """Sequences of the data as texts, to compare with; as many as wanted if there are so many."""
    x0 = of.sequences(tokenizer, length, arm.n).tolist()
    # Whole or not at all: nobody could tell later whether some are missing.
    arm.samples.rewrite([{"index": i, "text": tokenizer.decode(ids), "ids": ids} for i, ids in enumerate(x0)])


def judge(arms: list[Arm], by: Judge, ends: dict[str, str]) -> None:
    """-log p of the texts that have none yet.

    Args:
        ends: how each vocabulary writes its end-of-text, for which the judge reads its own.
    """
    name = by.facts["weights"]
    left = {id(arm): [t for t in arm.texts() if (name, t["index"]) not in arm.judged.records] for arm in arms}
    with track("judging", sum(map(len, left.values()))) as tracker:
        for arm in arms:
            texts = left[id(arm)]
            for start in range(0, len(texts), 256):  # so much is lost at most
                some = texts[start : start + 256]
                total, count = by.nll(_as_read(some, arm, by, ends), tracker.advance)
                arm.judged.add(
                    {"judge": name, "index": t["index"], "nll": value, "tokens": tokens}
                    for t, value, tokens in zip(some, total.tolist(), count.tolist(), strict=True)
                )


def _as_read(texts: list[dict[str, Any]], arm: Arm, by: Judge, ends: dict[str, str]) -> list[str]:
    end = ends[arm.vocabulary]
    return [t["text"].replace(end, by.end) if end else t["text"] for t in texts]


class Measures:
    """Rows of the table of generated texts.

    Args:
        by: the judge of generative perplexity, or None.
        features: the model whose features MAUVE compares, or None.
        real: the arms with real texts, by vocabulary.
        ends: as in `judge`.

    Attributes:
        notes: what the table cannot say.
    """

    def __init__(
        self, config: EvalTextConfig, by: Judge | None, features: Judge | None, real: dict[str, Arm],
        ends: dict[str, str],
    ) -> None:  # fmt: skip
        self._config, self._by, self._features, self._real, self._ends = config, by, features, real, ends
        self.notes: list[str] = []

    def row(self, arms: list[Arm]) -> dict[str, Any]:
        """One way of decoding over its seeds; or real text."""
        first = arms[0]
        texts = [(arm, t) for arm in arms for t in arm.texts()]
        ids = [t["ids"] for _, t in texts]
        seconds = sum(t.get("seconds", 0.0) for _, t in texts)
        setting = first.setting
        row: dict[str, Any] = {
            "model": first.model,
            "scheduler": None if setting is None else setting.scheduler,
            "steps": first.steps,
            "budget": None if setting is None else setting.budget,
            "soft_mask": None if setting is None or setting.scheduler == AR else setting.soft_mask,
            "seeds": [arm.setting.seed for arm in arms if arm.setting is not None],
            "n": len(texts),
            "nfe": None if setting is None else fmean(t["nfe"] for _, t in texts),
            "entropy": fmean(map(unigram_entropy, ids)),
            "entropy_error": Mean.of(torch.tensor([unigram_entropy(x) for x in ids])).standard_error,
            **{f"distinct_{k}": fmean(distinct(x, k) for x in ids) for k in _NGRAMS},
            "tokens_per_second": sum(map(len, ids)) / seconds if seconds else None,
            "seconds": seconds or None,
        }
        return row | self._perplexity(texts) | self._mauve(arms)

    def _perplexity(self, texts: list[tuple[Arm, dict[str, Any]]]) -> dict[str, Any]:
        if self._by is None:
            return {}
        name = self._by.facts["weights"]
        found = [arm.judged.records[name, t["index"]] for arm, t in texts]
        scored = [(r["nll"] / r["tokens"], r["tokens"]) for r in found if r["tokens"]]
        if silent := len(found) - len(scored):
            self.notes.append(f"{texts[0][0].model}: {silent} texts have no token for the judge to score")
        if not scored:
            return {"generative_perplexity": None}
        mean = Mean.of(torch.tensor([x for x, _ in scored]), torch.tensor([float(w) for _, w in scored]))
        low, high = mean.interval
        return {
            "generative_perplexity": mean.perplexity,
            "interval": [math.exp(min(low, 700)), math.exp(min(high, 700))],
            "judged_tokens": sum(w for _, w in scored),
            "judged_nats": mean.mean,
            "judged_error": mean.standard_error,
        }

    def _mauve(self, arms: list[Arm]) -> dict[str, Any]:
        if self._features is None or not self._config.mauve_seeds or arms[0].setting is None:
            return {}
        by, real = self._features, self._real[arms[0].vocabulary]
        mine = [x for arm in arms for x in _as_read(arm.texts(), arm, by, self._ends)]
        compared = _as_read(real.texts(), real, by, self._ends)
        with track(f"features for MAUVE: {arms[0].model}", len(mine) + len(compared)) as tracker:
            theirs, ours = (by.features(some, tracker.advance) for some in (compared, mine))
        if not is_first():  # k-means takes long, and who does not tell the result needs none
            return {}
        found: Mauve = mauve(ours, theirs, self._config.mauve_seeds, self._config.mauve_clusters)
        if found.note and found.note not in self.notes:
            self.notes.append(found.note)
        return {"mauve": found.mean, "mauve_spread": found.spread, "mauve_clusters": found.clusters,
                "mauve_real": len(theirs)}  # fmt: skip


def differences(rows: list[dict[str, Any]]) -> None:
    """Give every soft-masked row its generative perplexity against the binary row of the same model and steps."""

    def place(row: dict[str, Any], soft: bool) -> tuple[Any, ...]:
        return row["model"], row["scheduler"], row["steps"], soft

    known = {place(row, row["soft_mask"]): row for row in rows if row.get("judged_nats") is not None}
    for row in rows:
        base = known.get(place(row, False)) if row["soft_mask"] else None
        if base is None or row.get("judged_nats") is None:
            continue
        error = math.hypot(row["judged_error"], base["judged_error"])  # the texts are different ones
        change = Mean(row["judged_nats"] - base["judged_nats"], error, row["n"])
        row["difference"] = {
            "against": "binary", "nats": change.mean, "standard_error": error, "interval": change.interval,
            "perplexity_ratio": change.perplexity, "verdict": verdict(change),
        }  # fmt: skip
