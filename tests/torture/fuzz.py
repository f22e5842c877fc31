"""Broken and hostile input to everything that reads a file, a template or a command line: one line, never a traceback.

python tests/torture/fuzz.py --cases 2000 [--target NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from smdiff.cli import main
from smdiff.config import (
    EvalCodeConfig,
    EvalTextConfig,
    FinetuneConfig,
    PretrainConfig,
    SampleConfig,
    flag,
    resolve,
    value_type,
)  # fmt: skip
from smdiff.data.corpora import load_corpus
from smdiff.data.prompts import infill, read_prompts
from smdiff.data.sft import Format, load_sources
from smdiff.data.tokenizers import bytes_tokenizer
from smdiff.errors import UserError
from smdiff.evaluation.code.benchmarks import load_benchmark
from smdiff.evaluation.code.evaluate import _given
from smdiff.evaluation.store import Lines
from smdiff.models.load import load, read_soft_mask
from smdiff.training.checkpoints import MANIFEST, flaw, seal
from tests.torture.evaluations import World

# A case that computes longer hangs. (A process may wait long for a processor.)
HANG_SECONDS = 60
_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"


class Target(NamedTuple):
    """What is fuzzed: how cases are drawn, and what is done with one in an empty folder of its own.

    Attributes:
        prepare: called once with a folder; makes what a case needs.
    """

    cases: Callable[[Any], st.SearchStrategy]
    do: Callable[[Any, Any, Path], object]
    prepare: Callable[[Path], Any] = lambda folder: None


# --- values ----------------------------------------------------------------------------------------------------------

# Stand for a number of thousands of digits, and for brackets without end; a file gets what they stand for.
HUGE, DEEP = "@huge@", "@deep@"
_TEXT = st.text(st.characters(exclude_categories=[]), max_size=12)
_NUMBERS = st.one_of(
    st.integers(-3, 300), st.integers(), st.sampled_from([2**31, 2**63, -(2**64), 10**400]), st.floats()
)
_PLAIN = st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXT, st.just(HUGE))
VALUES = st.recursive(
    _PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=6
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value of which some parts are removed or replaced."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = value
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 4)) == 0:
                if draw(st.integers(0, 3)) == 0:
                    del place[key]
                else:
                    place[key] = draw(VALUES)
                break
            place = inner
    return value


@st.composite
def spoilt(draw: st.DrawFn, raw: bytes) -> bytes:
    """Bytes of which some are others, or missing, or too many."""
    data = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.integers(0, 3))
        if kind == 0 and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + draw(st.integers(1, 9))]
        else:
            data[at:at] = draw(st.binary(max_size=9) | st.sampled_from([b"\0", b"\xff\xfe", b'"', b"}", b"[" * 50]))
    return bytes(data)


def json_files(*examples: Any) -> st.SearchStrategy:
    """Files that should hold a JSON value like one of `examples`."""
    shaped = st.sampled_from(examples).flatmap(changed).map(json.dumps).map(str.encode)
    raw = st.sampled_from(examples).map(json.dumps).map(str.encode).flatmap(spoilt)
    return st.one_of(shaped, shaped, raw, VALUES.map(json.dumps).map(str.encode), st.just(DEEP.encode()))


def json_lines(*examples: Any) -> st.SearchStrategy:
    """Files that should hold such values, a line each."""
    line = st.sampled_from(examples).flatmap(lambda e: st.just(e) | changed(e)).map(json.dumps).map(str.encode)
    some = st.lists(line, min_size=1, max_size=4).map(b"\n".join).map(lambda raw: raw + b"\n")
    return st.one_of(some, some, some.flatmap(spoilt), st.just(DEEP.encode() + b"\n"))


# --- what is done with a case ---------------------------------------------------------------------------------------


def command(arguments: list[str]) -> int:
    """A command line. All that may come of it is an exit code, and one line where that is not 0."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    err.flush()
    said = err.buffer.getvalue().decode()
    assert code in (0, 2), said
    assert "Traceback" not in said, said
    if code:
        lines = [line for line in said.splitlines() if line.startswith("smdiff: ")]
        assert len(lines) == 1, said
    return code


def _put(folder: Path, name: str, raw: bytes) -> Path:
    path = folder / name
    raw = raw.replace(json.dumps(HUGE).encode(), b"9" * 5000).replace(DEEP.encode(), b"[" * 100_000)
    path.write_bytes(raw)
    return path


def _toml_value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(value)
    if isinstance(value, int):
        return hex(value) if value >= 0 else str(max(value, -(10**300)))
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    return "1979-05-27T07:32:00Z"


def _toml(_: Any) -> st.SearchStrategy:
    names = sorted(f.name for c in (PretrainConfig, FinetuneConfig) for f in dataclasses.fields(c))
    usual = st.sampled_from(["tiny", "small", "dream-sm", "none", "auto", "elbo", "", "both", "inf"])
    line = st.tuples(st.sampled_from(names) | _TEXT.map(json.dumps), VALUES | usual).map(
        lambda pair: f"{pair[0]} = {_toml_value(pair[1])}\n".encode("utf-8", "surrogatepass")
    )
    some = st.lists(line, max_size=4).map(b"".join)
    return st.one_of(
        some, some, some.flatmap(spoilt), st.sampled_from([b"a = " + DEEP.encode(), b"a = " + b"9" * 5000])
    )


def _config(_: Any, raw: bytes, folder: Path) -> None:
    path = _put(folder, "run.toml", raw)
    for config in (PretrainConfig, FinetuneConfig):
        with contextlib.suppress(UserError):
            resolve(config, {}, path)


def _results(folder: Path) -> list[Any]:
    """Real results: of code, of text, and of training."""
    from tests.evaluation.test_report import code_result

    world, out = World.made(folder), folder / "out"
    assert main([*world.eval_text(out), "--limit", "2"]) == 0
    train = ["pretrain", "--data", str(folder / "text.txt"), "--tokenizer", "bytes", "--length", "16", "--quiet"]
    small = ["--hidden-size", "16", "--layers", "1", "--heads", "2", "--cond-dim", "8", "--batch-size", "4"]
    assert main([*train, *small, "--steps", "2", "--eval-sequences", "2", "--out", str(folder / "run")]) == 0
    written = (folder / name / "result.json" for name in ("out", "run"))
    return [code_result(), *(json.loads(path.read_text()) for path in written)]


def _report(_: Any, case: tuple[bytes, bool], folder: Path) -> None:
    raw, drawn = case
    path = _put(folder, "result.json", raw)
    command(["report", str(path), "--csv", str(folder / "x.csv")] + ["--plot", str(folder / "x.png")] * drawn)


_SAMPLES = (
    {"task_id": "HumanEval/0", "completion": "    return 1\n"},
    {"task_id": "HumanEval/1", "solution": "def f(): pass\n", "sample": 0},
)


def _samples(benchmark: Any, raw: bytes, folder: Path) -> None:
    path = _put(folder, "samples.jsonl", raw)
    with contextlib.suppress(UserError):
        _given(path, benchmark, True, None)
    with contextlib.suppress(UserError):
        lines = Lines(path)
        lines.add([{"task_id": "x", "sample": 0}])
        assert lines.records.keys() == Lines(path).records.keys()


_CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
_ROWS = (
    _CHAT, {"prompt": "a", "response": "b"}, {"instruction": "a", "input": "", "output": "b"}, {"text": "some text"},
)  # fmt: skip


def _chat_tokenizer(folder: Path) -> Any:
    os.environ["HF_DATASETS_CACHE"] = str(folder)
    import datasets

    datasets.config.HF_DATASETS_CACHE = folder
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _rows(tokenizer: Any, case: tuple[bytes, str], folder: Path) -> None:
    raw, suffix = case
    path = _put(folder, f"rows{suffix}", raw)
    for read in (
        lambda: load_sources(str(path), tokenizer, Format(skip_bad=True), max_length=64),
        lambda: load_corpus(str(path)),
    ):
        with contextlib.suppress(UserError):
            read()


_SOFT = {"k": 3, "w_s": 0.3, "raw": {"raw_scale": 0.1, "raw_steepness": 0.2, "raw_centre": 0.3}}
_FULL = {"k": None, "raw": {**_SOFT["raw"], "raw_temperature": 0.5}}  # type: ignore[dict-item]
_PAPER = {
    "transparency_alg": "mixinputs_with_topk", "mixinputs_k": 3, "mixture_temp": 1.0, "transparency_scale": 0.1,
    "transparency_steepness": 6.0, "transparency_centre": -0.5,
}  # fmt: skip


def _soft_mask(_: Any, case: tuple[str, bytes], folder: Path) -> None:
    _put(folder, *case)
    with contextlib.suppress(UserError):
        found = read_soft_mask(folder)
        assert found is None or all(-1e30 < v < 1e30 for v in found.values().values())


def _models(folder: Path) -> Path:
    """A run, and a transformers model of two shards."""
    from transformers import AutoModelForCausalLM

    from tests.conftest import small_causal

    world = World.made(folder)
    tokenizer = bytes_tokenizer()
    shards = small_causal("llama", len(tokenizer), is_causal=False, mask_token_id=257, shifted_logits=True)
    AutoModelForCausalLM.from_config(shards).save_pretrained(world.folder / "shards", max_shard_size="30KB")
    tokenizer.save_pretrained(world.folder / "shards")
    return folder


def _weights(folder: Path) -> st.SearchStrategy:
    weights, config = folder / "one" / "model.safetensors", folder / "one" / "config.json"
    head = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    raw = weights.read_bytes()

    def with_head(changed_head: bytes) -> bytes:
        return changed_head + raw[head:]

    def with_size(size: int) -> bytes:
        return size.to_bytes(8, "little") + raw[8:]

    names = json.loads(raw[8:head])
    heads = changed(names).map(json.dumps).map(str.encode).map(lambda h: len(h).to_bytes(8, "little") + h)
    broken = st.one_of(spoilt(raw[:head]).map(with_head), heads.map(with_head), spoilt(raw),
                       st.integers(0, 2**64 - 1).map(with_size))  # fmt: skip
    files = broken.map(lambda raw: ("model.safetensors", raw))
    return files | json_files(json.loads(config.read_text())).map(lambda raw: ("config.json", raw))


def _linked(source: Path, folder: Path, case: tuple[str, bytes]) -> Path:
    """The files of a model with one of them replaced."""
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / case[0]).unlink(missing_ok=True)
    _put(folder, *case)
    return folder


def _open(folder: Path) -> None:
    """The model of a folder, ready to sample from, or one line."""
    with contextlib.suppress(UserError):
        load(str(folder), device="cpu")


def _index(folder: Path) -> st.SearchStrategy:
    index = folder / "shards" / "model.safetensors.index.json"
    stored = json.loads(index.read_text())
    out = st.sampled_from(["../one/model.safetensors", "/etc/hostname", "", ".", "..", "config.json"])

    def led_out(key: str) -> st.SearchStrategy:
        return out.map(lambda to: stored | {"weight_map": stored["weight_map"] | {key: to}})

    wrong = st.sampled_from(sorted(stored["weight_map"])).flatmap(led_out).map(json.dumps).map(str.encode)
    indices = (json_files(stored) | wrong).map(lambda raw: (index.name, raw))
    config = json.loads((folder / "shards" / "config.json").read_text())
    return indices | json_files(config).map(lambda raw: ("config.json", raw))


def _sealed(folder: Path) -> Path:
    """A checkpoint's folder with its manifest."""
    whole = folder / "checkpoint"
    (whole / "part").mkdir(parents=True)
    _put(whole, "model.safetensors", bytes(range(100)))
    _put(whole / "part", "state.json", b"{}")
    seal(whole)
    return whole


def _manifest(sealed: Path, case: tuple[str, bytes], folder: Path) -> None:
    copied = Path(shutil.copytree(sealed, folder / "copy"))
    _put(copied, *case)
    said = flaw(copied)
    whole = sealed / case[0]
    if case[0] != MANIFEST and not (whole.exists() and whole.read_bytes() == (copied / case[0]).read_bytes()):
        assert said, "a changed file is taken for whole"


def _in_checkpoint(sealed: Path) -> st.SearchStrategy:
    names = ("model.safetensors", "part/state.json", "extra.json", MANIFEST)
    stored = {name: (sealed / name).read_bytes() if (sealed / name).exists() else b"{}" for name in names}
    files = st.sampled_from(names).flatmap(lambda n: st.tuples(st.just(n), spoilt(stored[n])))
    return files | st.tuples(st.just(MANIFEST), json_files(json.loads(stored[MANIFEST])))


_INFILL = st.lists(
    st.one_of(
        st.sampled_from(["<mask>", "<mask:3>", "<mask:0>", "<mask:99999999999>", "<mask:", "<|mask|>", ">"]), _TEXT
    ),
    max_size=6,
).map("".join)


def _infill(tokenizer: Any, case: tuple[str, bytes], folder: Path) -> None:
    with contextlib.suppress(UserError):
        infill(tokenizer, case[0], tokenizer.mask_token_id)
    with contextlib.suppress(UserError):
        read_prompts(_put(folder, "prompts.jsonl", case[1]), tokenizer, tokenizer.mask_token_id, False)


_COMMANDS: dict[str, tuple[type, list[str]]] = {
    "pretrain": (PretrainConfig, ["--data", "/nowhere/data.txt", "--dry-run"]),
    "finetune": (FinetuneConfig, ["--data", "/nowhere/data.jsonl", "--model", "/nowhere/model", "--dry-run"]),
    "sample": (SampleConfig, ["/nowhere/model"]),
    "eval-code": (EvalCodeConfig, ["/nowhere/model"]),
    "eval-text": (EvalTextConfig, ["/nowhere/model", "--data", "/nowhere/data.txt"]),
}


def _arguments(_: Any) -> st.SearchStrategy:
    """Command lines of all options with plausible and odd values. What is named last wins, and is not there."""
    odd = _TEXT.map(lambda t: t.replace("\0", "")) | _NUMBERS.map(lambda n: str(n) if abs(n) < 1e300 else "9" * 500)
    odd |= st.sampled_from(["", "-1", "nan", "inf", "1e400", "0x10", "1/0", "1/3", ",", "1,2", "../..", "\udc80", "~"])

    def option(config: type, field: dataclasses.Field) -> st.SearchStrategy:
        kind, name, rule = value_type(config, field.name), flag(field.name), field.metadata
        if kind is bool:
            return st.sampled_from([[name], [name.replace("--", "--no-", 1)]])
        low, high = rule["low"] or 0, rule["high"] or 100
        plausible = {
            int: st.integers(int(low), int(high)), float: st.floats(low, high),
            str: st.sampled_from(rule["choices"] or [str(field.default or "x"), "1/4,1/1", "a.jsonl:0.5,b.jsonl:0.5"]),
        }[kind].map(str)  # fmt: skip
        return st.tuples(st.just(name), plausible | plausible | odd).map(list)

    def line(name: str) -> st.SearchStrategy:
        config, last = _COMMANDS[name]
        run = [f for f in dataclasses.fields(config) if f.name not in ("out", "prompt_file", "report_to")]
        some = st.lists(st.one_of([option(config, f) for f in run]), max_size=5)
        extra = st.lists(st.sampled_from(["--quiet", "--json", "--nonsense", "--", "x"]), max_size=1)
        return st.tuples(some, extra).map(lambda t: [name, *(a for o in t[0] for a in o), *t[1], *last])

    return st.sampled_from(sorted(_COMMANDS)).flatmap(line) | st.lists(odd, min_size=1, max_size=4)


def _line(_: Any, arguments: list[str], folder: Path) -> None:
    command(arguments)


TARGETS = {
    "config": Target(_toml, _config),
    "report": Target(lambda results: st.tuples(json_files(*results), st.integers(0, 15).map(lambda n: n == 7)),
                     _report, _results),
    "samples": Target(lambda _: json_lines(*_SAMPLES), _samples, lambda _: load_benchmark("humaneval")),
    "rows": Target(lambda _: st.tuples(json_lines(*_ROWS), st.sampled_from([".jsonl", ".json", ".txt", ".jsonl.gz"])),
                   _rows, _chat_tokenizer),
    "soft_mask": Target(
        lambda _: st.tuples(st.just("soft_mask.json"), json_files(_SOFT, _FULL))
        | st.tuples(st.just("transparency_config.json"), json_files(_PAPER)), _soft_mask),
    "weights": Target(_weights, lambda models, case, folder: _open(_linked(models / "one", folder, case)), _models),
    "index": Target(_index, lambda models, case, folder: _open(_linked(models / "shards", folder, case)), _models),
    "manifest": Target(_in_checkpoint, _manifest, _sealed),
    "infill": Target(lambda _: st.tuples(_INFILL, json_lines({"prompt": "a"}, {"infill": "a<mask>"}, _CHAT)), _infill,
                     _chat_tokenizer),
    "command": Target(_arguments, _line),
}  # fmt: skip


# --- the runner ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _no_hang() -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError(f"it hangs: more than {HANG_SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fuzz(name: str, cases: int, folder: Path) -> int:
    """Draw `cases` cases of a target, the same ones each time; the first that fails is raised, made small."""
    target, done = TARGETS[name], 0
    made = target.prepare(folder)

    @settings(
        max_examples=cases, deadline=None, derandomize=True, database=None, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(target.cases(made))
    def one(case: Any) -> None:
        nonlocal done
        done += 1
        with tempfile.TemporaryDirectory(dir=folder) as own, _no_hang():
            target.do(made, case, Path(own))

    one()
    return done


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--target", choices=sorted(TARGETS), action="append")
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    failed = 0
    for name in asked.target or TARGETS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                said = f"{fuzz(name, asked.cases, Path(folder))} cases, no traceback, no hang"
            except Exception as error:
                import traceback

                traceback.print_exc(limit=-12)
                failed, said = failed + 1, f"FAILED: {type(error).__name__}"
        print(f"{name}: {said}, {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(_main())
