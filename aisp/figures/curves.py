"""Curves of records: reward against samples used, and whatever a history holds, by iteration."""

from typing import TYPE_CHECKING, Any

import numpy as np

from aisp.experiment.tables import finished
from aisp.figures.base import COLUMN, PAGE, label_colors, labeled
from aisp.intervals import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@labeled
def reward_curves(records: "pd.DataFrame", *, draws: int = 2000) -> "Figure":
    """Best reward against samples used: mean over prompts with a bootstrap 95% band, per label.

    Args:
        records: from `aisp.experiment.load`; only prompts that every label has are drawn.
    """
    import matplotlib.pyplot as plt

    records = finished(records)
    labels = list(records["label"].unique())
    common = set.intersection(*(set(records[records["label"] == x]["prompt"]) for x in labels))
    records = records[records["prompt"].isin(common)]
    fig, ax = plt.subplots(figsize=(COLUMN, 0.85 * COLUMN))
    _curves(ax, records, label_colors(labels), draws)
    ax.set(xlabel="samples used per prompt", ylabel="best reward so far")
    ax.set_title(f"mean of {len(common)} prompts, 95% bootstrap band", loc="left")
    fig.legend(loc="outside lower center", ncols=2)
    return fig


@labeled
def main_results(records: "pd.DataFrame", *, draws: int = 2000) -> "Figure":
    """Best reward against samples used, in two panels: sampling methods, and AISP with the others.

    A method that draws a single response (ARGS) is a dashed line, labeled with its number of reward
    calls.

    Args:
        records: from `aisp.experiment.load`; only prompts that every label has are drawn.
    """
    import matplotlib.pyplot as plt

    records = finished(records)
    labels = list(records["label"].unique())
    records = records[records.groupby("prompt")["label"].transform("nunique") == len(labels)]
    colors = label_colors(labels)
    about = records.groupby("label")[["method", "samples", "reward_calls"]].max()
    sampling = [x for x in labels if about["method"][x] in ("aisp", "best_of_n")]
    single = [x for x in labels if about["samples"][x] == 1]
    beside = "AISP" if "AISP" in sampling else None
    steered = [x for x in labels if x not in sampling or x == beside]
    panels = {"sampling": sampling, "steered or trained": steered}
    fig, axes = plt.subplots(1, 2, figsize=(PAGE, 0.42 * PAGE), sharex=True, sharey=True)
    for ax, (title, group) in zip(axes, panels.items(), strict=True):
        _curves(ax, records, {x: colors[x] for x in group if x not in single}, draws)
        for label in (x for x in group if x in single):
            mean = records[records["label"] == label].groupby("prompt")["reward"].mean().mean()
            ax.axhline(mean, color=colors[label], linestyle="--", label=label)
            calls = records[records["label"] == label]["reward_calls"].mean()
            where = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "bottom"}
            ax.text(0.99, mean, f"1 response, {calls:.0f} reward calls", fontsize=6, **where)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("samples used per prompt")
        ax.set_title(title, loc="left")
    axes[0].set_ylabel("best reward so far")
    prompts = records["prompt"].nunique()
    handles = {h.get_label(): h for ax in axes for h in ax.lines if h.get_label() in colors}
    title = f"means of {prompts} prompts, 95% bootstrap bands"
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=4, title=title)
    return fig


def _curves(ax: "Axes", records: "pd.DataFrame", colors: dict[str, Any], draws: int) -> None:
    """Best reward against samples used, of each label that has a color."""
    for label, color in colors.items():
        group = records[records["label"] == label]
        curves = _stacked(group)  # (runs, iterations)
        samples = group["config"].iloc[0]["n"] * (1 + np.arange(curves.shape[1]))
        band = np.array([bootstrap(column, draws=draws) for column in curves.T])
        ax.plot(samples, curves.mean(0), marker="o", markersize=3, color=color, label=label)
        ax.fill_between(samples, band[:, 0], band[:, 1], color=color, alpha=0.15, linewidth=0)


@labeled
def histories(records: "pd.DataFrame", columns: dict[str, str]) -> "Figure":
    """Columns of the history by iteration, one panel each, mean over prompts, one line per label.

    Args:
        records: from `aisp.experiment.load`.
        columns: history column -> title of its panel, with the unit.
    """
    import matplotlib.pyplot as plt

    records = finished(records)
    fig, axes = plt.subplots(1, len(columns), figsize=(PAGE, 0.3 * PAGE))
    for label, color in label_colors(records["label"].unique()).items():
        for ax, column in zip(axes, columns, strict=True):
            values = _stacked(records[records["label"] == label], column)
            ax.plot(1 + np.arange(values.shape[1]), values.mean(0), color=color, label=label)
    for ax, name in zip(axes, columns.values(), strict=True):
        ax.set_xlabel("iteration")
        ax.set_title(name, loc="left", fontsize=7)
        ax.xaxis.get_major_locator().set_params(integer=True)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def _stacked(records: "pd.DataFrame", column: str = "reward_best") -> np.ndarray:
    """A history column of every record, (records, iterations); null is NaN.

    A run that ended before the others, its budget of tokens or seconds used, keeps its last value.
    """
    import pandas as pd

    columns = [pd.Series(h[column], dtype=float) for h in records["history"]]
    longest = max(map(len, columns))
    return np.array([c.reindex(range(longest), fill_value=c.iloc[-1]) for c in columns])
