"""The figures of notebook 07: settings side by side, and what more samples buy."""

from typing import TYPE_CHECKING

import numpy as np

from aisp.figures.base import PAGE, labeled
from aisp.intervals import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@labeled
def ablation(answers: "pd.DataFrame", axis: str) -> "Figure":
    """Two panels: reward of AISP and its controls by setting, and AISP minus noise only, paired.

    Args:
        answers: from `aisp.experiment.ablations.answers`.
        axis: what is varied, with its unit.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 0.36 * PAGE))
    x = np.arange(len(answers))
    series = [c.removesuffix(" low") for c in answers.columns if c.endswith(" low")]
    for i, name in enumerate(series):
        shift = 0.12 * (i - (len(series) - 1) / 2)
        columns = (name, f"{name} low", f"{name} high")
        _with_bars(left, x + shift, answers, columns, f"C{i}", name)
    left.set_ylabel("best reward")
    left.set_title("means, 95% bootstrap intervals", loc="left", fontsize=7)
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    right.axhline(0, color="0.7", linewidth=0.8)
    _with_bars(right, x, answers, ("difference", "low", "high"), "C0")
    right.set_ylabel("AISP minus noise only")
    prompts = answers["prompts"].max()
    right.set_title(f"paired over {prompts:.0f} prompts, 95% bootstrap", loc="left", fontsize=7)
    for ax in (left, right):
        ax.set_xticks(x, answers.index)
        ax.set_xlim(-0.5, len(x) - 0.5)
        ax.set_xlabel(axis)
    return fig


def _with_bars(
    ax: "Axes",
    x: np.ndarray,
    table: "pd.DataFrame",
    columns: tuple[str, str, str],
    color: str,
    label: str | None = None,
) -> None:
    """Means with bars from the columns (mean, low, high) of a table."""
    middle, low, high = columns
    bars = [table[middle] - table[low], table[high] - table[middle]]
    ax.errorbar(x, table[middle], yerr=bars, fmt="o", ms=4, capsize=2, color=color, label=label)


@labeled
def over_optimization(table: "pd.DataFrame", *, draws: int = 2000) -> "Figure":
    """What more samples buy: optimized reward and judge against surprisal, and against each other.

    One line per label, from its smallest budget (open circle) to its largest (square): means over
    prompts, with bootstrap 95% bars.

    Args:
        table: from `aisp.experiment.ablations.by_budget`.
    """
    import matplotlib.pyplot as plt

    kl = "surprisal of the response (nats)"
    panels = [
        ("surprisal", "reward", kl, "optimized reward"),
        ("surprisal", "judged", kl, "independent judge"),
        ("reward", "judged", "optimized reward", "independent judge"),
    ]
    fig, axes = plt.subplots(1, 3, figsize=(PAGE, 0.36 * PAGE))
    for ax, (across, up, xlabel, ylabel) in zip(axes, panels, strict=True):
        for i, (label, group) in enumerate(table.groupby("label", sort=False)):
            means = group.groupby(["samples", "prompt"])[[across, up]].mean()
            x, y = (means[c].groupby("samples").mean() for c in (across, up))
            band = [bootstrap(v, draws=draws) for _, v in means[up].groupby("samples")]
            bars = np.abs(np.array(band).T - y.to_numpy())
            color = f"C{i}"
            ax.errorbar(x, y, bars, marker="o", ms=3, color=color, label=label, elinewidth=0.7)
            ax.plot(x.iloc[0], y.iloc[0], "o", ms=5, color=color, mfc="white", zorder=3)
            ax.plot(x.iloc[-1], y.iloc[-1], "s", ms=6, color=color, zorder=3)
        ax.set(xlabel=xlabel, ylabel=ylabel)
    prompts = table["prompt"].nunique()
    few, many = table["samples"].min(), table["samples"].max()
    title = f"means of {prompts} prompts, 95% bootstrap bars; from {few} (open) to {many} samples"
    title += " (square), doubled from point to point"
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, title=title
    )
    return fig
