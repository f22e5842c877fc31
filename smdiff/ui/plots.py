"""Pictures of a run."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smdiff.files import write_whole


def _smoothed(values: list[float], share: float = 0.05) -> list[float]:
    """Centred moving average over `share` of the points."""
    half = int(len(values) * share) // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(w) / len(w) for w in windows]


def training_curves(records: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw loss, the three scalars and the learning rates of metrics.jsonl `records` into a PNG at `path`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    train = [r for r in records if r.get("loss") is not None]
    valid = [r for r in records if r.get("valid_nll") is not None]
    soft = any("w_s" in r for r in train)
    figure, axes = plt.subplots(1, 3 if soft else 2, figsize=(15 if soft else 10, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    steps = [r["step"] for r in train]
    loss = [r["loss"] for r in train]
    axes[0].plot(steps, loss, color="tab:blue", alpha=0.2, linewidth=0.8)
    axes[0].plot(steps, _smoothed(loss), color="tab:blue", label="training loss (smoothed)")
    if valid:
        x = [r["step"] for r in valid]
        axes[0].plot(x, [r["valid_nll"] for r in valid], "o-", color="tab:orange", markersize=3, label="held out")
        if any("valid_nll_one_pass" in r for r in valid):
            y = [r["valid_nll_one_pass"] for r in valid]
            axes[0].plot(x, y, "o:", color="tab:orange", alpha=0.6, markersize=3, label="held out, one pass")
    if loss:
        # The 1/t weight makes single steps jump: the axis follows the bulk of the curve, not its peaks.
        shown = [r["valid_nll"] for r in valid] + sorted(loss)[: max(1, int(0.97 * len(loss)))]
        margin = 0.05 * (max(shown) - min(shown)) + 1e-3
        axes[0].set_ylim(min(shown) - margin, max(shown) + margin)
    axes[0].set(xlabel="step", ylabel="negative ELBO, nats / token")
    axes[0].legend(fontsize=8)
    if soft:
        for name, label in (("w_s", "$w_s$ scale"), ("w_a", "$w_a$ steepness"), ("w_b", "$w_b$ centre")):
            axes[1].plot(steps, [r[name] for r in train], label=label)
        axes[1].axhline(0, color="black", linewidth=0.5)
        axes[1].set(xlabel="step", ylabel="soft-mask scalars")
        axes[1].legend(fontsize=8)
    axes[-1].plot(steps, [r["learning_rate"] for r in train], label="network")
    if soft:
        axes[-1].plot(steps, [r["soft_mask_lr"] for r in train], label="three scalars")
    axes[-1].set(xlabel="step", ylabel="learning rate", yscale="log")
    axes[-1].legend(fontsize=8)
    try:
        write_whole(path, lambda p: figure.savefig(p, format="png", dpi=120))
    finally:
        plt.close(figure)


def _tails(paths: Iterable[str]) -> dict[str, str]:
    """The last parts of each of `paths`, as many as it takes to tell them apart."""
    names = set(paths)
    for kept in range(1, 1 + max((len(Path(n).parts) for n in names), default=0)):
        tails = {name: "/".join(Path(name).parts[-kept:]) for name in names}
        if len(set(tails.values())) == len(names):
            return tails
    return {name: name for name in names}


def _error_bars(rows: list[dict[str, Any]], key: str, scale: float) -> list[list[float]]:
    """Distances from the values of `key` to `low` and `high`, 0 where there are none."""

    def distance(row: dict[str, Any], end: str, sign: int) -> float:
        return 0.0 if row.get(end) is None else max(0.0, sign * (row[end] - row[key])) * scale

    return [[distance(row, end, sign) for row in rows] for end, sign in (("low", -1), ("high", 1))]


_SETTING = ("data_sha256", "prompt_style", "extraction", "tasks", "length")


def _told_apart(rows: list[dict[str, Any]]) -> set[str]:
    """Models that several files measured at the same steps, or not in the same way: one line cannot join the files."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["model"], row["soft_mask"]), []).append(row)

    def joins(group: list[dict[str, Any]]) -> bool:
        settings = {tuple(row.get(key) for key in _SETTING) for row in group}
        return len({row["steps"] for row in group}) == len(group) and len(settings) == 1

    return {model for (_, model, _), group in groups.items() if not joins(group)}


def _ticks(values: Iterable[float]) -> list[float]:
    """Those of `values` that have room for a label on a logarithmic axis."""
    kept: list[float] = []
    for value in sorted(set(values)):
        if not kept or value > kept[-1] * 1.25:
            kept.append(value)
    return kept


def _style(index: int, filled: bool) -> dict[str, Any]:
    """Colour and marker of a model; hollow without soft-masking."""
    colour = f"C{index % 10}"
    return {
        "color": colour, "marker": "osD^"[index // 10 % 4], "markersize": 5, "capsize": 2, "elinewidth": 1,
        "markerfacecolor": colour if filled else "white",
    }  # fmt: skip


def score_plot(rows: list[dict[str, Any]], path: Path, title: str) -> bool:
    """Draw measurements, as smdiff.evaluation.report.rows_of gives them, into a PNG at `path`.

    A panel a benchmark has pass@1 against the number of forward passes, a line for each model with and without
    soft-masking; a panel a command and its data has perplexity bounds. Bars are 95 % intervals.

    Returns:
        False if there is nothing to draw; then there is no file either.
    """
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        code = row.get("pass_at_1") is not None and (row.get("nfe") or 0) > 0
        if code or row.get("perplexity") is not None:
            panels.setdefault((row["command"], row["data"]), []).append(row)
    if not panels:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = [row for panel in panels.values() for row in panel]
    names, sources, data = (_tails(row[key] for row in drawn) for key in ("model", "source", "data"))
    apart = _told_apart([row for row in drawn if row["command"] == "eval-code"])

    def name(row: dict[str, Any]) -> str:
        return names[row["model"]] + (f" ({sources[row['source']]})" if row["model"] in apart else "")

    colours = {label: i for i, label in enumerate(dict.fromkeys(name(row) for row in drawn))}

    def curves(axis: Any, rows: list[dict[str, Any]]) -> None:
        lines: dict[tuple[str, bool], list[dict[str, Any]]] = {}
        for row in sorted(rows, key=lambda row: row["nfe"]):
            lines.setdefault((name(row), bool(row["soft_mask"])), []).append(row)
        # Side by side, so that the bars of the same number of passes can be told apart.
        step = min(0.06, 0.4 / len(lines))
        for i, ((label, soft), points) in enumerate(sorted(lines.items(), key=lambda line: colours[line[0][0]])):
            shift = 2 ** (step * (i - (len(lines) - 1) / 2))
            axis.errorbar(
                [row["nfe"] * shift for row in points], [100 * row["pass_at_1"] for row in points],
                yerr=_error_bars(points, "pass_at_1", 100), linestyle="-" if soft else "--",
                label=f"{label}, {'soft-masked' if soft else 'binary'}",
                **_style(colours[label], soft),
            )  # fmt: skip
        ticks = _ticks(row["nfe"] for row in rows)
        axis.set_xscale("log", base=2)
        axis.set_xlim(ticks[0] / 1.4, max(row["nfe"] for row in rows) * 1.4)
        axis.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        tasks = {row.get("tasks") for row in rows}
        size = f" ({tasks.pop()} tasks)" if len(tasks) == 1 and None not in tasks else ""
        axis.set(xlabel="forward passes a text (NFE)", ylabel="pass@1, %", title=data[rows[0]["data"]] + size)

    def bound_labels(rows: list[dict[str, Any]]) -> list[str]:
        labels = [f"{name(row)}, {'two passes' if row['passes'] == 2 else 'one pass'}" for row in rows]
        if len(set(labels)) < len(labels):
            labels = [f"{label} ({sources[row['source']]})" for label, row in zip(labels, rows, strict=True)]
        return [textwrap.fill(label, 36) for label in labels]

    def bounds(axis: Any, rows: list[dict[str, Any]]) -> None:
        for place, row in enumerate(rows):
            bar = _error_bars([row], "perplexity", 1)
            axis.errorbar(row["perplexity"], place, xerr=bar, **_style(colours[name(row)], row["passes"] == 2))
        axis.set_yticks(range(len(rows)), bound_labels(rows), fontsize=8)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.margins(x=0.1)
        heading = textwrap.fill(f"{data[rows[0]['data']]} ({rows[0]['command']})", 45)
        axis.set(xlabel="perplexity, upper bound", title=heading)

    across = 2 if len(panels) == 4 else min(3, len(panels))
    down = math.ceil(len(panels) / across)
    dotted = [bound_labels(panel) for (command, _), panel in panels.items() if command != "eval-code"]
    lengths = [1.5 + sum(0.25 + 0.14 * label.count("\n") for label in labels) for labels in dotted]
    width, height = max(6.5, 5.2 * across), max([3.8, *lengths])
    figure, axes = plt.subplots(down, across, squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axis, ((command, _), panel) in zip(axes.flat, panels.items(), strict=False):
        (curves if command == "eval-code" else bounds)(axis, panel)
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
