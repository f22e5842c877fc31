"""Wall time of grading the canonical solutions of HumanEval+ and MBPP+: ours against evalplus 0.3.1.

    python benchmarks/grading.py        # about eleven minutes on two cores

Each measurement is a fresh process, from its first import to its verdicts, with as many workers as the other's. Cold:
the expected results are computed first. Warm: they come from a cache. The tools take turns.

evalplus's process ends later than its verdicts: a thread of it sleeps for 20 s at a time. Two times are shown, and
the ratio is taken of the earlier, when its results file is there.

What no grader can avoid is the programs' own running time, which is shown as the floor: the CPU time of the canonical
solutions on all inputs, called in one plain process that has the inputs in memory and keeps no results, divided by the
workers. evalplus's time over it is the most that any grader could be faster by, the ceiling.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

DATA = Path(__file__).resolve().parents[1].parent / "shared/data/code_eval"
AIM = 3.0
SETS = {  # ours: evalplus's name, file, variable
    "humaneval+": ("humaneval", "HumanEvalPlus", "HUMANEVAL_OVERRIDE_PATH"),
    "mbpp+": ("mbpp", "MbppPlus", "MBPP_OVERRIDE_PATH"),
}


def grade(name: str, file: str, workers: int) -> None:
    """Ours: grade the canonical solutions, print what passed. In a fresh process."""
    from smdiff.evaluation.code.benchmarks import load_benchmark
    from smdiff.evaluation.code.grading import Grader, cached_references
    from smdiff.evaluation.code.runner import choose

    benchmark = load_benchmark(name, [file])
    with Grader(choose(), workers) as grader:
        references = cached_references(grader, benchmark)
        jobs = ((i, task, task.canonical, references[i]) for i, task in benchmark.tasks.items())
        failed = [i for i, verdict in grader.grade(jobs) if not verdict.passed]
    print(json.dumps({"tasks": len(benchmark.tasks), "failed": failed}))


def plain(name: str, file: str) -> None:
    """Print the CPU seconds of the canonical solutions themselves. In a fresh process."""
    from smdiff.evaluation.code.benchmarks import load_benchmark

    benchmark = load_benchmark(name, [file])
    gc.freeze()  # the inputs are no burden on the programs
    seconds = 0.0
    for task in benchmark.tasks.values():
        names: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            began = time.process_time()
            exec(task.canonical, names)
            function = names[task.entry_point]
            for given in (*task.base, *task.plus):
                function(*given)
            seconds += time.process_time() - began
    print(json.dumps(seconds))


def said(*arguments: str, environment: dict[str, str]) -> Any:
    """What this file prints last when it is run with these arguments."""
    command = [sys.executable, __file__, *arguments]
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def ours(name: str, file: Path, workers: int, environment: dict[str, str]) -> dict[str, Any]:
    began = time.perf_counter()
    found = said("--grade", name, str(file), str(workers), environment=environment)
    seconds = time.perf_counter() - began
    return found | {"seconds": seconds, "exit": seconds}


def evalplus(name: str, file: Path, workers: int, environment: dict[str, str]) -> dict[str, Any]:
    samples, results = file.with_suffix(".samples.jsonl"), file.with_suffix(".samples_eval_results.json")
    rows = map(json.loads, file.read_text().splitlines())
    lines = [{"task_id": r["task_id"], "solution": r["prompt"] + r["canonical_solution"]} for r in rows]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results.unlink(missing_ok=True)  # or it would only read them
    arguments = ["--dataset", SETS[name][0], "--samples", str(samples), "--parallel", str(workers)]
    began = time.perf_counter()
    log, seconds = file.with_suffix(".log"), 0.0
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "evalplus.evaluate", *arguments]
        process = subprocess.Popen(command, env=environment, cwd=file.parent, stdout=stream, stderr=stream)
        while process.poll() is None:
            if not seconds and results.exists():
                seconds = time.perf_counter() - began
            time.sleep(0.02)
    until_exit = time.perf_counter() - began
    if process.returncode or not seconds:
        raise SystemExit(f"FAILED: evalplus ended with {process.returncode}: {log.read_text()[-2000:]}")
    found = json.loads(results.read_text())["eval"]
    failed = [i for i, [r] in found.items() if (r["base_status"], r["plus_status"]) != ("pass", "pass")]
    return {"tasks": len(found), "failed": failed, "seconds": seconds, "exit": until_exit}


def main() -> None:
    if sys.argv[1:2] == ["--grade"]:
        return grade(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    if sys.argv[1:2] == ["--plain"]:
        return plain(sys.argv[2], sys.argv[3])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the packed HumanEvalPlus and MbppPlus")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured, floors = measure(a, Path(folder))
    report(a, measured, floors)


Measured = dict[tuple[str, str, str], dict[str, Any]]  # by state, benchmark and tool


def measure(a: argparse.Namespace, folder: Path) -> tuple[Measured, dict[str, float]]:
    """What the tools did, and the floor of each benchmark."""
    caches = {"XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    environment = os.environ | caches
    files = {}
    for name, (_, stem, variable) in SETS.items():
        packed = a.data / f"{stem}.jsonl.gz"
        if not packed.exists():
            raise SystemExit(f"no {packed}: give the folder of {stem}.jsonl.gz with --data")
        files[name] = folder / f"{stem}.jsonl"
        files[name].write_bytes(gzip.decompress(packed.read_bytes()))
        environment[variable] = str(files[name])
    floors = {n: said("--plain", n, str(f), environment=environment) / a.workers for n, f in files.items()}
    measured = {}
    for state in ("cold", "warm"):
        for name, file in files.items():
            for tool, run in (("ours", ours), ("evalplus", evalplus)):
                found = measured[state, name, tool] = run(name, file, a.workers, environment)
                print(f"{state} {name} {tool}: {found['seconds']:.1f} s, failed: {found['failed']}", flush=True)
    return measured, floors


def report(a: argparse.Namespace, measured: Measured, floors: dict[str, float]) -> None:
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    headings = ("", "ours, s", "evalplus, s", "until it ends", "ratio", "floor, s", "ours passed", "evalplus passed")
    table = Table(*headings, title=f"canonical solutions, {a.workers} workers, load {load}")
    ratios, ceilings = {}, {}
    for state in ("cold", "warm"):
        total = dict.fromkeys(("ours", "evalplus", "exit", "floor"), 0.0)
        for name in SETS:
            mine, other = (measured[state, name, tool] for tool in ("ours", "evalplus"))
            row = {"ours": mine["seconds"], "evalplus": other["seconds"], "exit": other["exit"]}
            row["floor"] = floors[name]
            total = {key: total[key] + value for key, value in row.items()}
            passed = [f"{x['tasks'] - len(x['failed'])} of {x['tasks']}" for x in (mine, other)]
            table.add_row(f"{name} {state}", *cells(row), *passed)
        ratios[state] = total["evalplus"] / total["ours"]
        ceilings[state] = total["evalplus"] / total["floor"]
        table.add_row(f"both {state}", *cells(total), end_section=True)
    Console(width=110).print(table)
    ratio, ceiling = ratios["warm"], ceilings["warm"]
    line = f"warm, we are {ratio:.2f} times as fast as evalplus; the ceiling is {ceiling:.2f}"
    if ratio < AIM:
        sys.exit(f"FAILED: {line}; it should be {AIM:g}")
    print(line)


def cells(row: dict[str, float]) -> list[str]:
    ratio = row["evalplus"] / row["ours"]
    seconds = [f"{row[key]:.1f}" for key in ("ours", "evalplus", "exit")]
    return [*seconds, f"{ratio:.1f}", f"{row['floor']:.1f}"]


if __name__ == "__main__":
    main()
