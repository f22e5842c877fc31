"""Pictures of scores: what models reach, against the number of forward passes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smdiff.files import write_whole
from smdiff.ui.console import tails

# Of a row: the figure, its axis, its scale, whether the axis starts at 0; those of generated texts after pass@1.
_CURVES = {
    "pass_at_1": ("pass@1, %", 100.0, True),
    "generative_perplexity": ("generative perplexity", 1.0, False),
    "mauve": ("MAUVE", 1.0, True),
    "entropy": ("unigram entropy, nats", 1.0, False),
    "distinct_2": ("distinct bigrams, %", 100.0, False),
}
_PERPLEXITY = "perplexity"
_SETTING = ("data_sha256", "prompt_style", "extraction", "tasks", "length")
Rows = list[dict[str, Any]]


def _ends(row: dict[str, Any], metric: str) -> tuple[float | None, float | None]:
    """The interval of a figure: 95 %, or for MAUVE its spread over k-means."""
    spread = {"mauve": row.get("mauve_spread"), "entropy": row.get("entropy_error")}.get(metric)
    if metric in ("mauve", "entropy"):
        wide = 0.0 if spread is None else spread * (1.96 if metric == "entropy" else 1.0)
        return row[metric] - wide, row[metric] + wide
    return (row.get("low"), row.get("high")) if metric != "distinct_2" else (None, None)


def _error_bars(rows: Rows, metric: str, scale: float) -> list[list[float]]:
    """Distances from the values of `metric` to the ends of their intervals, 0 where there are none."""

    def distance(row: dict[str, Any], end: int) -> float:
        value = _ends(row, metric)[end]
        return 0.0 if value is None else max(0.0, (-1, 1)[end] * (value - row[metric])) * scale

    return [[distance(row, end) for row in rows] for end in (0, 1)]


def _told_apart(rows: Rows) -> set[str]:
    """Models that several files measured at the same steps, or not in the same way: one line cannot join the files."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        key = (row["data"], row["model"], row.get("soft_mask"), row.get("scheduler"))
        groups.setdefault(key, []).append(row)

    def joins(group: Rows) -> bool:
        settings = {tuple(row.get(key) for key in _SETTING) for row in group}
        return len({row.get("steps") for row in group}) == len(group) and len(settings) == 1

    return {key[1] for key, group in groups.items() if not joins(group)}


def _ticks(values: Iterable[float]) -> list[float]:
    """Those of `values` that have room for a label on a logarithmic axis."""
    kept: list[float] = []
    for value in sorted(set(values)):
        if not kept or value > kept[-1] * 1.25:
            kept.append(value)
    return kept


def _style(index: int, filled: bool, scheduler: int = 0) -> dict[str, Any]:
    """Colour of a model, marker of a scheduler; hollow without soft-masking."""
    colour = f"C{index % 10}"
    return {
        "color": colour, "marker": "osD^vpXP<>h8"[(index // 10 + scheduler) % 12], "markersize": 5, "capsize": 2,
        "elinewidth": 1,
        "markerfacecolor": colour if filled else "white",
    }  # fmt: skip


class _Names:
    """What models are called in the picture, and their colours."""

    def __init__(self, rows: Rows) -> None:
        self._models, self._sources = (tails(row[key] for row in rows) for key in ("model", "source"))
        self.data = tails(row["data"] for row in rows)
        self._apart = _told_apart([row for row in rows if (row.get("nfe") or 0) > 0])
        self._schedulers = list(dict.fromkeys(r["scheduler"] for r in rows if r.get("scheduler") not in (None, "ar")))
        self._colours = {label: i for i, label in enumerate(dict.fromkeys(self(row) for row in rows))}

    def __call__(self, row: dict[str, Any]) -> str:
        return self._models[row["model"]] + (f" ({self.source(row)})" if row["model"] in self._apart else "")

    def source(self, row: dict[str, Any]) -> str:
        return self._sources[row["source"]]

    def colour(self, row: dict[str, Any]) -> int:
        return self._colours[self(row)]

    def scheduler(self, row: dict[str, Any]) -> int:
        return self._schedulers.index(row["scheduler"]) if row.get("scheduler") in self._schedulers else 0

    def line(self, row: dict[str, Any]) -> str:
        """The label of a line: model, scheduler if there are several, and kind."""
        if row.get("scheduler") == "ar":
            return f"{self(row)}, left to right"
        scheduler = f", {row['scheduler']}" if len(self._schedulers) > 1 and row.get("scheduler") else ""
        return f"{self(row)}{scheduler}, {'soft-masked' if row['soft_mask'] else 'binary'}"

    def bounds(self, rows: Rows) -> list[str]:
        """A label for each perplexity."""
        passes = {1: "one pass", 2: "two passes"}
        labels = [f"{self(row)}, {'exact' if row.get('exact') else passes[row['passes']]}" for row in rows]
        if len(set(labels)) < len(labels):
            labels = [f"{label} ({self.source(row)})" for label, row in zip(labels, rows, strict=True)]
        return [textwrap.fill(label, 36) for label in labels]


def _curves(axis: Any, rows: Rows, metric: str, names: _Names) -> None:
    """A line for each model and way of decoding over the forward passes; real text is a level."""
    label, scale, from_zero = _CURVES[metric]
    real = [row for row in rows if not row.get("nfe")]
    rows = [row for row in rows if row.get("nfe")]
    lines: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: row["nfe"]):
        lines.setdefault(names.line(row), []).append(row)
    # Side by side, so that the bars of the same number of passes can be told apart.
    step = min(0.06, 0.4 / max(1, len(lines)))
    for i, (line, points) in enumerate(sorted(lines.items(), key=lambda line: names.colour(line[1][0]))):
        shift, soft = 2 ** (step * (i - (len(lines) - 1) / 2)), bool(points[0]["soft_mask"])
        axis.errorbar(
            [row["nfe"] * shift for row in points], [scale * row[metric] for row in points],
            yerr=_error_bars(points, metric, scale), linestyle="-" if soft else "--", label=line,
            **_style(names.colour(points[0]), soft, names.scheduler(points[0])),
        )  # fmt: skip
    for row in real:
        axis.axhline(scale * row[metric], color="black", linestyle=":", linewidth=1, label=row["model"])
    if metric == "generative_perplexity":
        axis.set_yscale("log")
        for place in ("major", "minor"):
            getattr(axis.yaxis, f"set_{place}_formatter")("{x:g}")
    ticks = _ticks(row["nfe"] for row in rows)
    axis.set_xscale("log", base=2)
    axis.set_xlim(ticks[0] / 1.4, max(row["nfe"] for row in rows) * 1.4)
    axis.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axis.xaxis.minorticks_off()
    if from_zero:
        axis.set_ylim(bottom=0)
    tasks = {row.get("tasks") for row in rows}
    size = f" ({tasks.pop()} tasks)" if len(tasks) == 1 and None not in tasks else ""
    heading = f"{names.data[rows[0]['data']]}{size}" if metric == "pass_at_1" else "written from nothing"
    axis.set(xlabel="forward passes a text (NFE)", ylabel=label, title=heading)


def _perplexities(axis: Any, rows: Rows, names: _Names) -> None:
    for place, row in enumerate(rows):
        bar = _error_bars([row], _PERPLEXITY, 1)
        axis.errorbar(row[_PERPLEXITY], place, xerr=bar, **_style(names.colour(row), row["passes"] == 2))
    axis.set_yticks(range(len(rows)), names.bounds(rows), fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.margins(x=0.1)
    exact = {bool(row.get("exact")) for row in rows}
    label = "perplexity, upper bound" + (" unless exact" if len(exact) == 2 else "")
    heading = textwrap.fill(f"{names.data[rows[0]['data']]} ({rows[0]['command']})", 45)
    axis.set(xlabel="perplexity" if exact == {True} else label, title=heading)


def _panels(rows: Rows) -> dict[tuple[str, str, str], Rows]:
    """Rows by command, data and metric."""
    found: dict[tuple[str, str, str], Rows] = {}
    texts: dict[tuple[str, str], Rows] = {}
    for row in rows:
        if row.get("pass_at_1") is not None and (row.get("nfe") or 0) > 0:
            found.setdefault((row["command"], row["data"], "pass_at_1"), []).append(row)
        elif row.get(_PERPLEXITY) is not None:
            found.setdefault((row["command"], row["data"], _PERPLEXITY), []).append(row)
        elif row.get("entropy") is not None:
            texts.setdefault((row["command"], row["data"]), []).append(row)
    for key, group in texts.items():
        for metric in list(_CURVES)[1:]:
            having = [row for row in group if row.get(metric) is not None]
            if any(row.get("nfe") for row in having):
                found[(*key, metric)] = having
    return found


def score_plot(rows: Rows, path: Path, title: str) -> bool:
    """Draw measurements, as smdiff.evaluation.report.rows_of gives them, into a PNG at `path`.

    A panel a benchmark has pass@1 against the number of forward passes, a line for each model with and without
    soft-masking; so have the panels of generated texts, one a metric. A panel a command and its data has perplexities.
    Bars are 95 % intervals, of MAUVE its spread over k-means.

    Returns:
        False if there is nothing to draw; then there is no file either.
    """
    panels = _panels(rows)
    if not panels:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = _Names(list({id(row): row for panel in panels.values() for row in panel}.values()))
    across = 2 if len(panels) == 4 else min(3, len(panels))
    down = math.ceil(len(panels) / across)
    dotted = [names.bounds(panel) for (_, _, metric), panel in panels.items() if metric == _PERPLEXITY]
    lengths = [1.5 + sum(0.25 + 0.14 * label.count("\n") for label in labels) for labels in dotted]
    width, height = max(6.5, 5.2 * across), max([3.8, *lengths])
    figure, axes = plt.subplots(down, across, squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axis, ((_, _, metric), panel) in zip(axes.flat, panels.items(), strict=False):
        if metric == _PERPLEXITY:
            _perplexities(axis, panel, names)
        else:
            _curves(axis, panel, metric, names)
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3, linewidth=0.5)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    shown: dict[str, Any] = {}
    for axis in axes.flat[: len(panels)]:
        shown |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    columns = 1
    if shown:
        # A character of a label is about 0.075 inches wide, what stands before it about 7 characters.
        columns = max(1, min(len(shown), int(width / (0.075 * (7 + max(map(len, shown)))))))
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns, fontsize=8)
    figure.set_size_inches(width, height * down + 0.18 * math.ceil(len(shown) / columns))
    try:
        write_whole(path, lambda p: figure.savefig(p, format="png", dpi=120))
    finally:
        plt.close(figure)
    return True
