"""Results of several commands in one table: one flat row a measurement, and what keeps rows from being compared."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smdiff.errors import UserError, some
from smdiff.evaluation.results import SCHEMA
from smdiff.evaluation.statistics import Z
from smdiff.files import read_json, write_whole

KINDS = {"eval-code": "eval-code", "eval-text": "eval-text", "pretrain": "training", "finetune": "training"}

TEXTS = "generated texts"

# The columns of the CSV, and the keys of a row that has them; pass_at_2 and so on come after pass_at_1.
# `low` and `high` bound the 95 % interval of pass_at_1, or of the perplexity.
COLUMNS = (
    "command", "model", "data", "data_sha256", "split", "tasks", "sequences", "length", "prompt_style",
    "extraction", "scheduler", "soft_mask", "steps", "budget", "nfe", "passes", "exact", "seeds", "samples", "n",
    "pass_at_1", "perplexity", "generative_perplexity", "low", "high", "judge", "entropy", "entropy_error",
    "distinct_1", "distinct_2", "distinct_3", "mauve", "mauve_spread", "mauve_clusters", "nats", "standard_error",
    "bits_per_byte", "difference_to", "difference", "difference_low", "difference_high", "better", "worse", "equal",
    "verdict", "compile_failures", "timeouts", "empty", "runner_faults", "forward_passes", "new_tokens",
    "tokens_per_second", "seconds", "source",
)  # fmt: skip
_LARGEST = 10**18
_NEEDED = {"command", "model", "data", "source"}
_TEXT = {"data_sha256", "split", "scheduler", "judge", "prompt_style", "extraction", "budget"}
_TEXT |= {"difference_to", "verdict"}

# What rows of the same data must share to be comparable, as a note calls it.
_SHARED = {
    "data_sha256": "versions of the data",
    "split": "parts of the data",
    "tasks": "numbers of tasks",
    "sequences": "numbers of sequences",
    "length": "lengths",
    "judge": "judges",
    "prompt_style": "prompt styles",
    "extraction": "ways to extract the answer",
}


def _bound(nats: float | None, error: float | None) -> dict[str, Any]:
    """Perplexity from nats a token, with the interval where there is a standard error."""

    def perplexity(x: float | None) -> float | None:
        return None if x is None or x >= 700 else math.exp(x)

    known = nats is not None and error is not None
    low, high = (nats - Z * error, nats + Z * error) if known else (None, None)  # type: ignore[operator]
    return {
        "perplexity": perplexity(nats), "low": perplexity(low), "high": perplexity(high), "nats": nats,
        "standard_error": error,
    }  # fmt: skip


def _difference(entry: dict[str, Any], value: str, to: str) -> dict[str, Any]:
    """The columns of a paired difference, if there is one; `value` is its key, `to` what it is against by default."""
    if (found := entry.get("difference")) is None:
        return {}
    low, high = found["interval"]
    named = {"difference_to": found.get("against", to), "difference": found[value]}
    counts = {key: found[key] for key in ("better", "worse", "equal") if key in found}
    return named | {"difference_low": low, "difference_high": high, "verdict": found["verdict"]} | counts


def _code_rows(result: dict[str, Any]) -> Iterable[dict[str, Any]]:
    shared = {"prompt_style": result["prompt"]["style"], "extraction": result["extraction"]}
    for entry in result["results"]:
        key = entry["benchmark"]
        low, high = entry["interval"]
        yield (
            {f"pass_at_{k}": value for k, value in entry["pass_at_k"].items()}
            | entry
            | shared
            | {name: entry[name] for name in ("steps", "soft_mask", "nfe", "pass_at_1")}  # a row is nothing without
            | {"model": result["model"], "data": key, "data_sha256": result["benchmarks"][key]["sha256"]}
            | {"low": low, "high": high}
            | _difference(entry, "value", "binary")
        )


def _text_rows(result: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Held-out likelihoods, then generated texts."""
    parts = {
        part["name"]: {"data_sha256": part["sha256"], "split": part["split"], "length": part["length"]}
        for part in result["data"]
    }
    entries = result["results"]
    for entry in entries:
        yield (
            entry
            | parts[entry["data"]]
            | {"model": entry["model"], "passes": entry["passes"], "seeds": [result["config"]["seed"]]}
            | _difference(entry, "nats", entries[0]["model"])
            | _bound(entry["nats"], entry["standard_error"])
        )
    by = (result.get("judge") or {}).get("model")
    for entry in result.get("generated") or []:
        low, high = entry.get("interval") or (None, None)
        more = {"entropy": entry["entropy"], "low": low, "high": high, "judge": by}
        yield entry | parts[entry["data"]] | more | _difference(entry, "nats", "binary")


def _training_rows(result: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The held-out bound of a run; of a soft-masked one also that of its first pass, without a standard error."""
    config, train, valid = result["config"], result["train"], result["valid"]
    soft = result["soft_mask"] is not None
    row = {
        "model": result["model"],
        "data": result["corpus"]["name"],
        "data_sha256": result["corpus"]["sha256"],
        "split": "held-out",
        "sequences": valid["sequences"],
        "length": config.get("length") or config.get("max_length"),
        "exact": config.get("objective") == "ar",
        "soft_mask": soft,
        "seeds": [config["seed"]],
        **{key: train[key] for key in ("steps", "forward_passes", "tokens_per_second", "seconds")},
    }
    passes = [(1, valid["nll_one_pass"], None)] if soft else []
    for count, nats, error in [*passes, (1 + soft, valid["nll"], valid["standard_error"])]:
        measured = row | {"passes": count} | _bound(nats, error)
        low, high = valid.get("times", (0, 1))
        if low > 0.01 or high < 1:  # a mean over some masked shares bounds no perplexity
            measured |= {"perplexity": None, "low": None, "high": None}
        yield measured


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """The columns that a row has, each of its type or unknown."""
    row = {key: row[key] for key in columns([row]) if key in row or key in _NEEDED}
    for key, value in row.items():
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise TypeError(f"{key} is a number of {len(str(abs(value)))} digits")
        kind = list if key == "seeds" else str if key in _TEXT | _NEEDED else int | float
        if not isinstance(value, kind) and (value is not None or key in _NEEDED):
            raise TypeError(f"{key} is {value!r}")
    return row


_ROWS = {"eval-code": _code_rows, "eval-text": _text_rows, "training": _training_rows}


def kind(row: dict[str, Any]) -> str:
    """The table that a row belongs into."""
    return TEXTS if "entropy" in row else KINDS[row["command"]]


def _pass_at(row: dict[str, Any]) -> list[str]:
    """The pass@k of a row, k > 1, in the order of k."""
    found = [key for key in row if re.fullmatch(r"pass_at_[0-9]{1,9}", key)]
    return sorted(set(found) - {"pass_at_1"}, key=lambda key: int(key.removeprefix("pass_at_")))


def columns(rows: Iterable[dict[str, Any]]) -> list[str]:
    """COLUMNS with the pass@k that the rows have."""
    at = COLUMNS.index("pass_at_1") + 1
    return [*COLUMNS[:at], *_pass_at({key: None for row in rows for key in row}), *COLUMNS[at:]]


def rows_of(result: dict[str, Any], source: str) -> list[dict[str, Any]]:
    """The measurements of one result, flat: a subset of the `columns`, and nothing that is not known.

    Args:
        source: the file, as messages and rows name it.

    Raises:
        UserError: it is no result of smdiff, one of another schema, or an incomplete one.
    """
    command = result.get("command")
    if "schema" not in result or not isinstance(command, str) or command not in KINDS:
        raise UserError(
            f"{source} is no result that smdiff can report",
            f"it is one of {command!r}" if "schema" in result and command else "",
            f"Results of {', '.join(KINDS)} can be reported.",
        )
    if result["schema"] != SCHEMA:
        why = f"this smdiff reads schema {SCHEMA}"
        raise UserError(f"{source} has schema {result['schema']!r}", why, "Make it again with this smdiff.")
    try:
        rows = [row | {"command": command, "source": source} for row in _ROWS[KINDS[command]](result)]
        return [_checked(row) for row in rows]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        fix = "Leave it out, or make it again."
        raise UserError(f"{source} is not a whole result of {command}", reason, fix) from None


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    """The result files that `paths` stand for, each once."""
    seen: set[Path] = set()
    for path in paths:
        files = [path]
        if path.is_dir():
            own = path / "result.json"
            files = [own] if own.is_file() else sorted(path.rglob("result.json"))
            if not files:
                raise UserError(
                    f"no result.json in {path} or below it", fix="Give the folder of a run or an evaluation."
                )
        for file in files:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def _setting(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in _SHARED)


def _order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By kind; by data, model and how it was measured, as they came; steps ascending, binary before soft-masked."""
    kinds = ["eval-code", "eval-text", TEXTS, "training"]
    data, models = ([row[key] for row in rows] for key in ("data", "model"))
    settings = [_setting(row) for row in rows]

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        table = kind(row)
        first = kinds.index(table), data.index(row["data"]), models.index(row["model"]), settings.index(_setting(row))
        return (*first, row["steps"] or 0, bool(row["soft_mask"])) if table == "eval-code" else first

    return sorted(rows, key=place)


def _apart(rows: list[dict[str, Any]]) -> Iterable[str]:
    """One note for everything that rows of the same data should share and do not."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((kind(row), row["data"]), []).append(row)
    for (table, data), group in groups.items():
        for key, name in _SHARED.items():
            files: dict[str, list[str]] = {}
            for row in group:
                value = row.get(key)
                shown = "unknown" if value is None else str(value)[:8] if key == "data_sha256" else str(value)
                files.setdefault(shown, []).append(row["source"])
            if len(files) > 1:
                values = ", ".join(f"{value} ({some(list(dict.fromkeys(of)))})" for value, of in files.items())
                yield f"{data} ({table}): {len(files)} {name}, not comparable: {values}"


def _other_tokenizers(rows: list[dict[str, Any]], source: str) -> Iterable[str]:
    """eval-text gives no difference between models of different tokenizers."""
    rows = [row for row in rows if kind(row) == "eval-text"]
    if any("difference" not in row and row["model"] != rows[0]["model"] for row in rows):
        yield f"{source}: models of different tokenizers, only bits per byte compare"


def gather(paths: Iterable[Path]) -> dict[str, Any]:
    """The rows of all result files that `paths` name, or that lie in or below the folders among them.

    Returns:
        files; results, the rows; notes, first on what keeps rows from being compared, then the results' own.

    Raises:
        UserError: a path is no file, or its file no result of smdiff.
    """
    files: list[str] = []
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    own: dict[str, list[str]] = {}
    for file in _files(paths):
        source = str(file)
        try:
            result = read_json(file)
        except UserError as error:
            raise UserError(error.what, error.why, "Give result.json files of smdiff, or their folders.") from None
        if result is None:
            raise UserError(f"no such file: {source}", fix="Give result files, or folders that hold them.")
        found = rows_of(result, source)
        files.append(source)
        rows += found
        if result["command"] == "eval-text":
            notes += _other_tokenizers(found, source)
        if not found:
            notes.append(f"{source}: no measurements")
        remarks = result.get("notes")
        for remark in remarks if isinstance(remarks, list) else []:
            own.setdefault(str(remark), []).append(source)
    notes = [*_apart(rows), *notes, *(f"{some(sources)}: {remark}" for remark, sources in own.items())]
    return {"files": files, "results": _order(rows), "notes": notes}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line a row, all columns whatever the kinds of the rows; a list is its items with spaces between them."""

    def cell(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return " ".join(map(str, value)) if isinstance(value, list) else value

    def write(to: Path) -> None:
        with to.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            writer = csv.DictWriter(stream, columns(rows), lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)

    write_whole(path, write)
