"""Pictures of a run."""

from __future__ import annotations

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
