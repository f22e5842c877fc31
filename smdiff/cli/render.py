"""Results as a person reads them, or as one JSON document."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.table import Table

from smdiff.errors import RunFailed, said, some
from smdiff.files import check_writable, dumps, whole
from smdiff.ranks import is_first
from smdiff.ui.console import err, note, out, set_quiet, tails
from smdiff.ui.trajectory import LiveView, history_line, write_html

if TYPE_CHECKING:
    from smdiff.decoding.generate import Text
    from smdiff.decoding.trajectory import Frame


def setup(quiet: bool) -> None:
    """Silence the libraries below: what the user needs to know, smdiff says itself."""
    set_quiet(quiet)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # what transformers shows while it reads a GGUF file
    warnings.filterwarnings("ignore")
    with err.status("loading libraries") if err.is_terminal and not quiet else contextlib.nullcontext():
        import datasets
        import transformers

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(logging.CRITICAL)
        transformers.utils.logging.disable_progress_bar()
    for library in ("accelerate", "huggingface_hub"):  # which sets its own level when it is imported
        logging.getLogger(library).setLevel(logging.ERROR)


def _json(value: Any) -> None:
    if is_first():
        print(dumps(value))


def _pairs(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def training_plan(plan: dict[str, Any], json: bool) -> None:
    """What a run would do."""
    if json:
        return _json(plan)
    _pairs("plan", [(k.replace("_", " "), f"{v:,}" if isinstance(v, int) else str(v)) for k, v in plan.items()])


def _number(value: float | None, form: str) -> str:
    """A figure, or a dash where there is none (JSON's null)."""
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def _perplexity(value: float | None) -> str:
    """Of any size in at most nine characters."""
    return _number(value, ".2f" if value is None or value < 1e4 else ".2e")


def training_result(result: dict[str, Any], json: bool) -> None:
    """What a run did."""
    if json:
        return _json(result)
    train, valid, soft = result["train"], result["valid"], result["soft_mask"]
    speed = train["tokens_per_second"]
    low, high = valid["times"]
    sign = "=" if result["config"].get("objective") == "ar" else "<="
    bound = f"{sign} {_number(valid['perplexity'], '.3f')} perplexity, " if low < 0.01 and high == 1 else ""
    nats = f"{_number(valid['nll'], '.4f')} +- {_number(valid['standard_error'], '.4f')} nats/token"
    over = "" if bound else f", masked shares {low:g} to {high:g}"
    rows = [
        ("steps", f"{train['steps']:,} ({train['forward_passes']:,} forward passes)"),
        ("tokens", f"{train['tokens']:,} in {train['seconds']:,.0f} s" + (f", {speed:,.0f} a second" if speed else "")),
        ("held out", f"{bound}{nats} ({valid['sequences']} sequences{', two passes' if soft else ''}{over})"),
    ]
    if "mfu" in train:
        share = f"{train['mfu']:.1%} of the peak of {train['peak_flops'] / 1e12:.3g} TFLOP/s"
        memory = f"{train['peak_memory'] / 1e9:.1f} GB at most"
        rows.append(
            ("machine", f"{result['compute']['precision']}, MFU {share} ({train['peak_flops_source']}), {memory}")
        )
    if train["delivered_step"] != train["steps"]:
        rows.append(("delivered", f"the weights of step {train['delivered_step']:,}, the lowest held-out loss"))
    if soft:
        rows.append(("same, one pass", f"{_number(valid['nll_one_pass'], '.4f')} nats/token"))
        rows.append(
            ("soft mask", f"w_s {soft['w_s']:.3f}, w_a {soft['w_a']:.3f}, w_b {soft['w_b']:.3f}, k {soft['k']}")
        )
    weights = "adapter_model" if result["config"].get("adapter", "none") != "none" else "model"
    rows.append(("files", f"{result['model']}: {weights}.safetensors, result.json, metrics.jsonl, curves.png"))
    _pairs(f"{result['command']} {result['model']}", rows)
    for remark in result["notes"]:
        out.print(f"note: {remark}", markup=False)


class Viewer:
    """Where the steps of a text go: the terminal, an html file, a file of JSON lines."""

    def __init__(self, show: str | None, to: Path, history: Path | None, title: str) -> None:
        self.on = show is not None or history is not None
        self._html, self._title = to if show == "html" else None, title
        self._frames: list[Frame] = []
        self._live = LiveView() if show == "live" else None
        self._history_path = history
        self._history: TextIO | None = None
        self._open = contextlib.ExitStack()
        for option, path in (("--show-to", self._html), ("--history", history)):
            if path is not None:
                check_writable(option, path)

    def __enter__(self) -> Viewer:
        return self

    def watch(self, frames: list[Frame]) -> None:
        """One more step of a batch."""
        if self._live is not None:
            self._live.show(frames)
        if self._history_path is not None:
            with _told("--history", self._history_path):
                if self._history is None:  # not before there is something to write
                    beside = self._open.enter_context(whole(self._history_path))
                    self._history = self._open.enter_context(beside.open("w", encoding="utf-8"))
                self._history.writelines(dumps(history_line(frame), None) + "\n" for frame in frames)
        if self._html is not None:
            self._frames += frames

    def settle(self) -> None:
        """The batch is done and its texts are about to be printed."""
        if self._live is not None:
            self._live.settle()

    def __exit__(self, *error: Any) -> None:
        self.settle()
        with _told("--history", self._history_path):
            self._open.__exit__(*error)
        if self._html is not None and self._frames and error[0] is None:
            with _told("--show-to", self._html):
                write_html(self._html, self._frames, self._title)
            note(f"steps: {self._html}")


@contextlib.contextmanager
def _told(option: str, path: Path | None) -> Iterator[None]:
    """What goes wrong with a file of the steps, as one line."""
    try:
        yield
    except OSError as error:
        fix = "Make room, or choose another folder, and run the same command again."
        raise RunFailed(f"cannot write {option} {path}", said(error), fix) from None


def samples(texts: Iterable[Text], json: bool, viewer: Viewer) -> None:
    """Texts as they come."""
    for text in texts:
        if not is_first():
            continue
        viewer.settle()
        if json:
            print(dumps(dataclasses.asdict(text), None), flush=True)
        else:
            note(f"--- text {text.index}, {text.nfe} forward passes")
            print(text.prompt * (text.kind == "prompt") + text.text, flush=True)


def text_scores(result: dict[str, Any], json: bool) -> None:
    """Perplexities and paired differences, and what the models' own texts are worth."""
    if json:
        return _json(result)
    for data in result["data"]:
        out.print(_likelihoods(result, data))
    if result["generated"]:
        out.print(_generated(result))
    for remark in result["notes"]:
        out.print(f"note: {remark}", markup=False, soft_wrap=True)
    texts = ", and the texts" if result["generated"] else ""
    out.print(f"files: {result['out']}: result.json, result.csv, result.png{texts}", markup=False)


def _likelihoods(result: dict[str, Any], data: dict[str, Any]) -> Table:
    rows = [row for row in result["results"] if row["data"] == data["name"]]
    part = "" if data["split"] == "all" else "held-out part of "
    exact = all(row["exact"] for row in rows)
    masks = "" if exact else f", {result['config']['draws']} masks each"
    bound = "" if exact else "PPL <= is an upper bound (negative ELBO). "
    size = f"{data['sequences']} sequences of {data['length']}{masks}"
    table = Table(
        title=f"{part}{data['name']}: {size}",
        title_justify="left",
        caption=f"{bound}Differences: same sequences and masks, 95 % interval.",
        caption_justify="left",
    )
    table.add_column("model", overflow="fold")
    for name in ("passes", "PPL", "nats/token", "bits/byte", "minus the first model's bound"):
        table.add_column(name, justify="right", no_wrap=name != "minus the first model's bound")
    for row in rows:
        table.add_row(
            row["model"],
            str(row["passes"]),
            f"{'=' if row['exact'] else '<='} {_number(row['perplexity'], '.3f')}",
            f"{row['nats']:.4f} +- {_number(row['standard_error'], '.4f')}",
            f"{row['bits_per_byte']:.4f}",
            _nats(row.get("difference")),
        )
    return table


def _nats(difference: dict[str, Any] | None) -> str:
    """A difference in nats a token, with its interval and what it allows to say."""
    if difference is None:
        return "-"
    low, high = difference["interval"]
    return f"{difference['nats']:+.4f} [{low:+.4f}, {high:+.4f}] {difference['verdict']}"


def _generated(result: dict[str, Any]) -> Table:
    judge, features = ((result[key] or {}).get("model") for key in ("judge", "features"))
    said = [f"gen. PPL under {judge}"] * bool(judge) + [f"MAUVE on features of {features}"] * bool(features)
    several = len({row["scheduler"] for row in result["generated"]} - {None, "ar"}) > 1
    table = Table(
        title=f"texts from nothing, {result['generated'][0]['length']} tokens" + "".join(f", {s}" for s in said),
        title_justify="left",
        caption="Brackets: 95 % interval; MAUVE: mean and spread over k-means. Entropy in nats: low is repetition.",
        caption_justify="left",
    )
    kinds, short = {True: "soft-masked", False: "binary"}, tails(row["model"] for row in result["generated"])
    rows = []
    for row in result["generated"]:
        low, high = row.get("interval") or (None, None)
        interval = "" if low is None else f" [{_perplexity(low)}, {_perplexity(high)}]"
        spread = "" if row.get("mauve_spread") is None else f" ± {_number(row['mauve_spread'], '.3f')}"
        line = "\n" if interval else " "  # with an interval rows have several lines anyway
        rows.append((
            short[row["model"]],
            *([row["scheduler"] or "-"] * several),
            "AR" if row["scheduler"] == "ar" else kinds.get(row["soft_mask"], "-"),
            _number(row["nfe"], ".0f") + (f"{line}({row['budget']})" if "/" in (row["budget"] or "") else ""),
            f"{row['n']:,}",
            _perplexity(row.get("generative_perplexity")) + interval,
            _number(row["entropy"], ".3f"),
            _number(row["distinct_2"], ".3f"),
            _number(row.get("mauve"), ".3f") + spread,
            _number(row["tokens_per_second"], ",.0f"),
        ))  # fmt: skip
    names = ["model", *(["scheduler"] * several), "kind", "NFE", "n", "gen. PPL", "entropy", "distinct-2", "MAUVE",
             "tokens/s"]  # fmt: skip
    for name, cells in zip(names, zip(*rows, strict=True), strict=True):
        wraps = name in ("model", "scheduler", "gen. PPL", "MAUVE")  # where a terminal is narrow
        words = () if name == "model" else [word for cell in cells for word in cell.split()]
        table.add_column(
            name, justify="left" if name in ("model", "scheduler", "kind") else "right", no_wrap=not wraps,
            overflow="fold", min_width=max(map(len, words), default=None),
        )  # fmt: skip
    for cells in rows:
        table.add_row(*cells)
    return table


def _share(value: float | None) -> str:
    return _number(None if value is None else 100 * value, ".1f")


def code_scores(result: dict[str, Any], json: bool) -> None:
    """Pass rates by benchmark, steps and soft-masking."""
    if json:
        return _json(result)
    runner = result["runner"]
    table = Table(
        title=f"{result['model']}, prompts {result['prompt']['style']}, walls: {runner.get('isolation', 'none ran')}",
        title_justify="left",
        caption="Percentages; brackets: 95 % interval over tasks. Differences: same tasks. NFE: forward passes a text. "
        "Seconds: of writing. Broken: does not compile, slow: out of time, empty: no program.",
        caption_justify="left",
    )
    ks = sorted({int(k) for row in result["results"] for k in row["pass_at_k"]} - {1})
    names = ["benchmark", "soft", "NFE", "pass@1", *(f"pass@{k}" for k in ks), "minus binary", "n", "tokens/s",
             "seconds", "broken/slow/empty"]  # fmt: skip
    for name in names:
        table.add_column(name, justify="left" if name == "benchmark" else "right", no_wrap=True)
    for row in result["results"]:
        low, high = row["interval"]
        change = "-"
        if difference := row.get("difference"):
            down, up = difference["interval"]
            change = f"{100 * difference['value']:+.1f} [{100 * down:+.1f}, {100 * up:+.1f}]"
        table.add_row(
            row["benchmark"],
            {True: "yes", False: "no"}.get(row["soft_mask"], "-"),
            _number(row["nfe"], ".0f") + (f" ({row['budget']})" if row["budget"] and "/" in row["budget"] else ""),
            f"{_share(row['pass_at_1'])} [{_share(low)}, {_share(high)}]",
            *(_share(row["pass_at_k"].get(str(k))) for k in ks),
            change,
            f"{row['n']}",
            _number(row["tokens_per_second"], ".1f"),
            _number(row["seconds"], ".0f"),
            " / ".join(_share(row[name]) for name in ("compile_failures", "timeouts", "empty")),
        )
    out.print(table)
    for remark in result["notes"]:
        out.print(f"note: {remark}", markup=False, soft_wrap=True)
    out.print(f"files: {result['out']}: result.json, result.csv, result.png, and the samples", markup=False)


def self_tests(result: dict[str, Any], json: bool) -> None:
    """Whether the grader can be believed; ends the command with 1 if not."""
    if json:
        _json(result)
    else:
        table = Table(title=f"self-test, walls: {result['runner']['isolation']}", title_justify="left")
        for name in ("benchmark", "canonical passed", "stubs passed", "corrupted passed"):
            table.add_column(name, justify="left" if name == "benchmark" else "right", no_wrap=True)
        for row in result["results"]:
            counts = [f"{row[kind]}/{row['graded']}" for kind in ("canonical", "stub", "corrupted")]
            table.add_row(row["name"], *counts)
        out.print(table)
    if result["failures"]:
        raise RunFailed("the self-test failed", some(result["failures"]), "Scores from this machine mean nothing.")
