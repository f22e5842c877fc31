"""`smdiff report`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from smdiff.cli.options import Json, Quiet
from smdiff.errors import RunFailed, UserError, said
from smdiff.files import check_writable


def _check(option: str, path: Path, inputs: list[str]) -> None:
    """Refuse a file that cannot be written, or that is one of the results."""
    check_writable(option, path)
    if path.resolve() in {Path(file).resolve() for file in inputs}:
        raise UserError(f"{option} {path}", "it is one of the results to report", "Choose another file.")


def _write(option: str, path: Path, write: Callable[[], Any]) -> Any:
    try:
        return write()
    except OSError as error:
        fix = "Make room, or choose another folder, and run the same command again."
        raise RunFailed(f"cannot write {option} {path}", said(error), fix) from None


def _figure(row: dict[str, Any], key: str, form: str, scale: float = 1) -> str:
    """A figure of a row, or a dash where there is none."""
    value = row.get(key)
    return "-" if value is None or not math.isfinite(value) else format(scale * value, form)


def _between(row: dict[str, Any], low: str, high: str, form: str, scale: float = 1) -> str:
    ends = [_figure(row, key, form, scale) for key in (low, high)]
    return "" if ends == ["-", "-"] else f" [{', '.join(ends)}]"


def _change(row: dict[str, Any], form: str, scale: float = 1) -> str:
    """A paired difference with its interval and verdict."""
    if row.get("difference") is None:
        return "-"
    interval = _between(row, "difference_low", "difference_high", form, scale)
    return f"{_figure(row, 'difference', form, scale)}{interval} {row.get('verdict') or ''}".rstrip()


def _bound(row: dict[str, Any]) -> dict[str, str]:
    bound = _figure(row, "perplexity", ".3f") + _between(row, "low", "high", ".3f")
    passes = "exact" if row.get("exact") else _figure(row, "passes", ".0f")
    return {"passes": passes, "PPL <=": bound}


def _code_cells(row: dict[str, Any], pass_at: list[str]) -> dict[str, str]:
    return {
        "model": row["model"],
        "benchmark": row["data"],
        "soft": {True: "yes", False: "no", None: "-"}[row["soft_mask"]],
        "NFE": _figure(row, "nfe", ".0f") + (f" ({row['budget']})" if row.get("budget") else ""),
        "pass@1, %": _figure(row, "pass_at_1", ".1f", 100) + _between(row, "low", "high", ".1f", 100),
        **{key.replace("pass_at_", "pass@"): _figure(row, key, ".1f", 100) for key in pass_at},
        "minus binary": _change(row, "+.1f", 100),
        "texts": f"{_figure(row, 'tasks', '.0f')} x {max(1, len(row.get('seeds') or [])) * (row.get('samples') or 1)}",
    }


def _text_cells(row: dict[str, Any], _: list[str]) -> dict[str, str]:
    return {
        "model": row["model"],
        "data": row["data"],
        **_bound(row),
        "bits/byte": _figure(row, "bits_per_byte", ".4f"),
        "nats minus first model's": _change(row, "+.4f"),
    }


def _generated_cells(row: dict[str, Any], _: list[str]) -> dict[str, str]:
    kinds = {True: "soft-masked", False: "binary", None: "-"}
    return {
        "model": row["model"],
        "scheduler": row.get("scheduler") or "-",
        "kind": kinds.get(row.get("soft_mask"), "-"),
        "NFE": _figure(row, "nfe", ".0f"),
        "n": _figure(row, "n", ",.0f"),
        "gen. PPL": _figure(row, "generative_perplexity", ".2f") + _between(row, "low", "high", ".2f"),
        "entropy": _figure(row, "entropy", ".3f"),
        "distinct-2": _figure(row, "distinct_2", ".3f"),
        "MAUVE": _figure(row, "mauve", ".3f"),
    }


def _training_cells(row: dict[str, Any], _: list[str]) -> dict[str, str]:
    return {
        "model": row["model"],
        "data": row["data"],
        "by": row["command"],
        "steps": _figure(row, "steps", ",.0f"),
        "forward passes": _figure(row, "forward_passes", ",.0f"),
        **_bound(row),
        "nats/token": _figure(row, "nats", ".4f"),
    }


_TABLES: dict[str, tuple[Callable[[dict[str, Any], list[str]], dict[str, str]], str]] = {
    "eval-code": (
        _code_cells,
        "Brackets: 95 % interval. texts: tasks x samples of each. Differences: same tasks, same steps.",
    ),
    "eval-text": (
        _text_cells,
        "PPL is an upper bound (negative ELBO) unless exact. Brackets: 95 % interval. Differences: same sequences, "
        "same masks.",
    ),
    "generated texts": (
        _generated_cells,
        "gen. PPL under the judge, brackets: 95 % interval; entropy in nats. Low entropy and few distinct bigrams are "
        "repetition.",
    ),
    "training": (
        _training_cells,
        "PPL of the held-out part is an upper bound (negative ELBO) unless exact. Brackets: 95 % interval.",
    ),
}


def _tables(found: dict[str, Any]) -> None:
    """One table a kind of result, then the notes."""
    from rich.markup import escape
    from rich.table import Table

    from smdiff.evaluation.report import COLUMNS, columns, kind
    from smdiff.ui.console import out

    for name, (cells, caption) in _TABLES.items():
        rows = [row for row in found["results"] if kind(row) == name]
        if not rows:
            continue
        pass_at = [name for name in columns(rows) if name not in COLUMNS]
        measured = [(row["model"], row["data"]) for row in rows]
        files = {(*pair, row["source"]) for pair, row in zip(measured, rows, strict=True)}
        several = len(files) > len(set(measured))
        lines = [cells(row, pass_at) | ({"file": row["source"]} if several else {}) for row in rows]
        table = Table(title=name, title_justify="left", caption=caption, caption_justify="left")
        for column in lines[0]:
            long = column in ("model", "data", "file")
            left = long or column in ("benchmark", "scheduler", "kind")
            table.add_column(column, justify="left" if left else "right", no_wrap=not long, overflow="fold")
        for line in lines:
            table.add_row(*map(escape, line.values()))
        out.print(table)
    for remark in found["notes"]:
        out.print(f"note: {remark}", markup=False, soft_wrap=True)


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT...",
            help="Result files of eval-code, eval-text, pretrain and finetune, or folders: the result.json in one, or "
            "all of them below it.",
            show_default=False,
        ),
    ],
    csv: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--csv", help="Also write this CSV file, one line a measurement.", rich_help_panel="Output"),
    ] = None,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--plot",
            help="Also draw this PNG file: pass@1 against forward passes, perplexities, with 95 % intervals.",
            rich_help_panel="Output",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Results side by side: tables, one CSV, one picture, and what keeps them from being compared."""
    from smdiff.evaluation.report import gather, write_csv
    from smdiff.ui.console import note, set_quiet

    set_quiet(quiet)
    if plot is not None and plot.suffix.lower() != ".png":
        raise UserError(f"--plot {plot}", "the name of a picture ends in .png", f"Write --plot {plot}.png.")
    found = gather(results)
    for option, path in (("--csv", csv), ("--plot", plot)):
        if path is not None:
            _check(option, path, found["files"])
    if json:
        from smdiff.evaluation.results import SCHEMA
        from smdiff.files import dumps

        print(dumps({"schema": SCHEMA, "command": "report", **found}))
    else:
        _tables(found)
    rows = found["results"]
    if csv is not None:
        _write("--csv", csv, lambda: write_csv(csv, rows))
    if plot is not None:
        from smdiff.ui.scores import score_plot

        files = len(found["files"])
        title = found["files"][0] if files == 1 else f"{files} results"
        if not _write("--plot", plot, lambda: score_plot(rows, plot, f"{title}, 95 % intervals")):
            note(f"no {plot}: there is nothing to draw")
