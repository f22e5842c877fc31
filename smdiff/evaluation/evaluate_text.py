"""`smdiff eval-text`: held-out likelihood, and the texts that models write, in one folder and one result."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from smdiff.config import EvalTextConfig, as_dict, fingerprint, identity
from smdiff.decoding.generate import check
from smdiff.errors import UserError
from smdiff.evaluation import generated, likelihood
from smdiff.evaluation.generated import Arm, Measures
from smdiff.evaluation.judge import Judge
from smdiff.evaluation.likelihood import Part
from smdiff.evaluation.measures import need_mauve
from smdiff.evaluation.results import result
from smdiff.evaluation.store import Store, deliver, interruptible
from smdiff.models.load import Model, load, pinned, weights_digest
from smdiff.ranks import gather
from smdiff.ui.console import note, track

_LONGEST = 1024
_NONE = "none"
# Weights, of all models that stay loaded.
_TOGETHER = 500_000_000
# What may differ between commands that fill one folder: they add to it.
_AXES = (
    "data", "split", "valid_fraction", "text_column", "limit", "draws", "seed", "batch_size", "generate", "judge",
    "features", "mauve_seeds", "mauve_clusters", "scheduler", "steps", "soft_mask", "seeds",
)  # fmt: skip


class _Models:
    """The models of a call, each loaded when something of it is missing; large ones one at a time."""

    def __init__(self, config: EvalTextConfig) -> None:
        self._config, self._loaded = config, dict[str, Model]()

    def __getitem__(self, name: str) -> Model:
        if name not in self._loaded:
            if sum(p.numel() for m in self._loaded.values() for p in m.denoiser.parameters()) > _TOGETHER:
                self._loaded.clear()  # before the next one takes its memory
            note(f"loading {name}")
            config = self._config
            model = self._loaded[name] = load(name, config.tokenizer, config.device, config.precision)
            if model.note:
                note(model.note)
        return self._loaded[name]


class _Evaluation:
    """One command's work."""

    def __init__(self, names: list[str], config: EvalTextConfig, out: Path | None, work: interruptible) -> None:
        self.names, self.config, self.models = names, config, _Models(config)
        self.weights = {name: weights_digest(name) for name in names}
        shared = {k: v for k, v in identity(config).items() if k not in _AXES}
        folder = out or Path("runs") / f"eval-text-{fingerprint(shared | {'models': self.weights})}"
        work.take(folder)
        self.store = Store(folder, shared)
        self.scores = self.store.lines(likelihood.SCORES, names=likelihood.KEY)
        self.parts: list[Part] = []
        for source in config.sources:
            note(f"reading {source}")
            self.parts.append(likelihood.part(names, source, config))
        if "length" not in self.store.facts:
            self.store.record(length=config.length or min(map(self._length, names)))
        self.length = int(self.store.facts["length"])
        for setting in config.settings(False) if config.generate else ():
            check(config.sample_config(setting, self.length))

    def _length(self, name: str) -> int:
        """The length that a model was trained on; of one that could take very long texts, a usual one."""
        run = next(iter(likelihood.lineage(name)))
        return run.get("identity", {}).get("max_length") or min(self.models[name].denoiser.max_length, _LONGEST)

    def about(self, name: str) -> dict[str, Any]:
        """What is known of a model without loading it again."""
        facts = self.store.facts.get("models", {})
        digest = self.weights[name]
        if digest not in facts:
            model = self.models[name]
            end = model.tokenizer.eos_token
            facts[digest] = {
                "causal": model.denoiser.causal,
                "soft_mask": model.denoiser.soft_mask is not None,
                "vocabulary": likelihood.vocabulary_hash(model.tokenizer),
                "end": end,
            }
            self.store.facts["models"] = facts
        found: dict[str, Any] = facts[digest]
        return found

    # Likelihood

    def _key(self, name: str, part: Part) -> str:
        c = self.config
        return fingerprint(
            part.facts() | {"weights": self.weights[name], "length": self.length, "limit": c.limit, "draws": c.draws,
                            "seed": c.seed, "fraction": c.valid_fraction}
        )  # fmt: skip

    def likelihoods(self) -> list[dict[str, Any]]:
        """Rows of held-out likelihood, data by data."""
        missing = [(n, p) for n in self.names for p in self.parts if (self._key(n, p),) not in self.scores.records]
        each = self.config.limit * self.config.draws
        with track("scoring", len(missing) * each) as tracker:
            for done, (name, part) in enumerate(missing):
                key = self._key(name, part)
                likelihood.score(self.models[name], part, self.config, self.length, key, self.scores, tracker.advance)
                tracker.update((done + 1) * each)
        found = []
        for part in self.parts:
            scored = [(name, self.scores.records[self._key(name, part),]) for name in self.names]
            found += likelihood.rows(scored, part.corpus.name)
        return found

    # Generated texts

    def arms(self) -> list[Arm]:
        found = []
        for name in self.names:
            about = self.about(name)
            home, vocabulary = f"{Path(name).name}-{self.weights[name][:8]}", about["vocabulary"]
            for setting, steps, folder in generated.ways(self.config, about["causal"], about["soft_mask"], self.length):
                place = f"{home}/{folder}"
                found.append(Arm.at(self.store, place, name, setting, steps, vocabulary, self.config.generate))
        return found

    def write(self, arms: list[Arm]) -> dict[str, Arm]:
        """Write what is missing. Returns the arms with real texts, by vocabulary."""
        n = self.config.generate * len({a.setting.seed for a in arms if a.setting})
        mine = {name: [a for a in arms if a.model == name] for name in self.names}
        missing = [name for name in self.names if any(len(a.texts()) < a.n for a in mine[name])]
        for name in missing:
            generated.refuse(self.models[name], self.config, mine[name], self.length)
        real: dict[str, Arm] = {}
        alike = len({self.about(name)["vocabulary"] for name in self.names}) == 1
        for name in self.names:
            vocabulary = self.about(name)["vocabulary"]
            if vocabulary not in real:
                place = f"real-{vocabulary[:8]}-{self._real_key(n)}"
                label = "real text" if alike else f"real text for {Path(name).name}"
                real[vocabulary] = arm = Arm.at(self.store, place, label, None, None, vocabulary, n)
                if not arm.samples.records:
                    generated.real_texts(self.parts[0], self.models[name].tokenizer, self.length, arm)
        for name in missing:
            for arm in mine[name]:
                generated.generate(self.models[name], self.config, arm, self.length)
        return real

    def _real_key(self, n: int) -> str:
        return fingerprint(self.parts[0].facts() | {"n": n, "fraction": self.config.valid_fraction})[:8]

    def generated(self, by: Judge | None, features: Judge | None) -> tuple[list[dict[str, Any]], list[str]]:
        """Rows of generated texts, real text first, and what is to be said of them."""
        arms, ends = self.arms(), {}
        real = self.write(arms)
        for name in self.names:
            about = self.about(name)
            ends[about["vocabulary"]] = about["end"]
        if by is not None:
            generated.judge([*real.values(), *arms], by, ends)
        measures = Measures(self.config, by, features, real, ends)
        groups: dict[Any, list[Arm]] = defaultdict(list)
        for arm in arms:
            assert arm.setting is not None
            groups[arm.model, arm.setting.scheduler, arm.steps, arm.setting.soft_mask].append(arm)
        rows = [measures.row([arm]) for arm in real.values()] + [measures.row(group) for group in groups.values()]
        generated.differences(rows)
        return [row | {"data": self.parts[0].corpus.name, "length": self.length} for row in rows], measures.notes


def evaluate(models: list[str], config: EvalTextConfig, out: Path | None = None) -> dict[str, Any]:
    """Score `models` and return the result; it is in the folder too, with a CSV and a picture.

    Args:
        out: folder; by default one under runs/ named after the models and what all texts share.

    Raises:
        UserError: a model, the judge or the data cannot be used. RunFailed: a file could not be written.
        Interrupted: stopped by a signal, with all scores and texts so far saved.
    """
    if config.revision is not None and len(models) > 1:
        why = "there are several models"
        raise UserError(f"--revision {config.revision}", why, "Write owner/model@revision for each.")
    names = list(dict.fromkeys(pinned(model, config.revision) for model in models))
    by, features = _judges(config)
    with interruptible() as held:
        work = _Evaluation(names, config, out, held)
        for name in names if config.generate else ():
            work.about(name)
        gather(None)  # all have read what is there before the first of them writes
        work.store.save()
        rows = work.likelihoods()
        texts, remarks = work.generated(by, features) if config.generate else ([], [])
        found = result(
            "eval-text",
            as_dict(config),
            models={name: work.weights[name] for name in names},
            data=[part.facts() | {"length": work.length, "sequences": _size(rows, part)} for part in work.parts],
            judge=None if by is None else by.facts,
            features=None if features is None else features.facts,
            results=rows,
            generated=texts,
            notes=[*_notes(rows), *_own_judges(work, by), *remarks],
        )
        return deliver(found, work.store.path, f"{', '.join(Path(n).name for n in names)}, 95 % intervals")


def _size(rows: list[dict[str, Any]], part: Part) -> int:
    """Sequences that were scored."""
    return next(int(row["sequences"]) for row in rows if row["data"] == part.corpus.name)


def _judges(config: EvalTextConfig) -> tuple[Judge | None, Judge | None]:
    """The judge and the model of the features, before anything else is done: both may be missing."""
    if not config.generate:
        return None, None
    by = None if config.judge == _NONE else _judge("--judge", config.judge, config.device)
    if not config.mauve_seeds or (by is None and config.features is None):
        return by, None
    need_mauve()
    if config.generate < 2:
        fix = "Write more, or leave MAUVE out with --mauve-seeds 0."
        raise UserError(f"--generate {config.generate}", "MAUVE compares sets of texts", fix)
    if config.features in (None, config.judge):
        return by, by
    assert config.features is not None
    return by, _judge("--features", config.features, config.device)


def _judge(option: str, name: str, device: str | None) -> Judge:
    try:
        return Judge(name, device)
    except UserError as error:
        if "cannot judge" in error.what:
            raise UserError(f"{option} {name}", error.why, error.fix) from None
        files, path = "config.json, model.safetensors and its tokenizer", Path(name)
        fix = f"Fill a folder {path.name} with {files} and give its path, or another causal model's."
        if path.exists():
            fix = "Give a causal model: a folder, a .gguf file, or a run of --objective ar."
        raise UserError(f"{option} {name}", error.why, fix) from None


def _own_judges(work: _Evaluation, by: Judge | None) -> list[str]:
    own = [name for name in work.names if by is not None and work.weights[name] == by.facts["weights"]]
    return [f"{name} is judged by itself: its generative perplexity does not compare" for name in own]


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    notes = []
    if not all(row["exact"] for row in rows):
        exact = ", but those of autoregressive models are exact" if any(row["exact"] for row in rows) else ""
        notes.append(f"perplexities are upper bounds, from the negative ELBO{exact}")
    if len({row["vocabulary"] for row in rows}) > 1:
        notes.append("the models have different tokenizers: of their likelihoods only bits/byte compares")
    return notes
