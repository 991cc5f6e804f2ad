"""Curves of records: reward against samples used, and whatever a history holds, by iteration."""

from typing import TYPE_CHECKING, Any

import numpy as np

from aisp.experiment.report.tables import finished
from aisp.figures.base import COLUMN, PAGE, Look, labeled, looks
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
    labels = looks(records["label"])
    common = set.intersection(*(set(records[records["label"] == x]["prompt"]) for x in labels))
    records = records[records["prompt"].isin(common)]
    fig, ax = plt.subplots(figsize=(COLUMN, 0.85 * COLUMN))
    _curves(ax, records, labels, draws)
    ax.set(xlabel="samples used per prompt", ylabel="best reward so far")
    ax.set_title(f"mean of {len(common)} prompts, 95% bootstrap band", loc="left")
    fig.legend(loc="outside lower center", ncols=2)
    return fig


@labeled
def main_results(records: "pd.DataFrame", *, draws: int = 2000) -> "Figure":
    """Best reward against samples used, in two panels: sampling methods, and AISP with the others.

    A method that draws a single response (ARGS) is a level line; the legend has its number of reward
    calls.

    Args:
        records: from `aisp.experiment.load`; only prompts that every label has are drawn.
    """
    import matplotlib.pyplot as plt

    records = finished(records)
    labels = looks(records["label"])
    records = records[records.groupby("prompt")["label"].transform("nunique") == len(labels)]
    about = records.groupby("label")[["method", "samples"]].max()
    sampling = [x for x in labels if about["method"][x] in ("aisp", "best_of_n")]
    beside = "AISP" if "AISP" in sampling else None
    steered = [x for x in labels if x not in sampling or x == beside]
    panels = {"sampling": sampling, "steered or trained": steered}
    names = {x: x for x in labels}  # in the legend
    fig, axes = plt.subplots(1, 2, figsize=(PAGE, 0.44 * PAGE), sharex=True, sharey=True)
    for ax, (title, group) in zip(axes, panels.items(), strict=True):
        _curves(ax, records, {x: labels[x] for x in group if about["samples"][x] > 1}, draws)
        for label in (x for x in group if about["samples"][x] == 1):
            own = records[records["label"] == label]
            mean = own.groupby("prompt")["reward"].mean().mean()
            ax.axhline(mean, color=labels[label].color, linestyle=labels[label].line, label=label)
            names[label] += f" (1 response, {own['reward_calls'].mean():.0f} reward calls)"
        ax.set_xlabel("samples used per prompt")
        ax.set_title(title, loc="left")
    axes[0].set_ylabel("best reward so far")
    lines = {line.get_label(): line for ax in axes for line in ax.lines}
    title = f"means of {records['prompt'].nunique()} prompts, 95% bootstrap bands"
    where: dict[str, Any] = {
        "loc": "outside lower center",
        "ncols": 3,
        "title": title,
        "handlelength": 3,
    }
    fig.legend([lines[x] for x in labels], names.values(), **where)
    return fig


def _curves(ax: "Axes", records: "pd.DataFrame", labels: dict[str, Look], draws: int) -> None:
    """Best reward against samples used, of each label; ticks where an iteration ends."""
    ends: list[int] = []
    for label, look in labels.items():
        group = records[records["label"] == label]
        curves = _stacked(group)  # (runs, iterations)
        samples = group["config"].iloc[0]["n"] * (1 + np.arange(curves.shape[1]))
        band = np.array([bootstrap(column, draws=draws) for column in curves.T])
        ax.plot(samples, curves.mean(0), markersize=3.5, label=label, **look.signs)
        ax.fill_between(samples, band[:, 0], band[:, 1], color=look.color, alpha=0.1, linewidth=0)
        ends = max(ends, list(samples), key=len)
    ax.set_xticks(ends[:: -(-len(ends) // 8) or 1])


@labeled
def cost_curves(records: "pd.DataFrame") -> "Figure":
    """Best reward against what a prompt has cost: reward calls, decoded tokens and seconds.

    One line per label; a marker where an iteration ends. Means over prompts and seeds, but for the
    seconds the median, which a run beside other work does not move.

    Args:
        records: from `aisp.experiment.load`.
    """
    import matplotlib.pyplot as plt

    records = finished(records)
    fig, axes = plt.subplots(1, 3, figsize=(PAGE, 0.4 * PAGE), sharey=True)
    for label, look in looks(records["label"]).items():
        of = records[records["label"] == label]
        best = _stacked(of).mean(0)
        spent = {
            "reward calls": of["reward_calls"].mean() * (1 + np.arange(len(best))) / len(best),
            "tokens decoded": _stacked(of, "tokens").cumsum(1).mean(0),
            "seconds": np.median(_stacked(of, "seconds").cumsum(1), axis=0),
        }
        for ax, (name, x) in zip(axes, spent.items(), strict=True):
            ax.plot(x, best, markersize=3, label=label, **look.signs)
            ax.set_xlabel(f"{name} per prompt")
    axes[0].set_ylabel("best reward so far")
    title = f"means of {records['prompt'].nunique()} prompts; seconds: medians"
    handles = axes[0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=3, title=title)
    return fig


@labeled
def solved_curves(
    records: "pd.DataFrame", passes: "pd.DataFrame", *, draws: int = 2000
) -> "Figure":
    """Search under a reward of at most 1: runs that are solved, samples that pass, and pass@k.

    Left: the share of runs that have found a response of reward 1, against the samples used. Middle:
    the share of an iteration's samples that have reward 1. Right: pass@k.

    Args:
        records: from `aisp.experiment.load`, whose histories have `solved`.
        passes: from `aisp.experiment.studies.passing.pass_at_k`; a line for each category.
    """
    import matplotlib.pyplot as plt

    records = finished(records)
    best = [[float(x == 1) for x in h["reward_best"]] for h in records["history"]]
    shares = records.assign(history=[{"reward_best": x} for x in best])
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(PAGE, 0.42 * PAGE))
    labels = looks(records["label"])
    _curves(left, shares, labels, draws)
    left.set(xlabel="samples used per prompt", ylabel="share of runs that are solved")
    for label, look in labels.items():
        of = records[records["label"] == label]
        passing = _stacked(of, "solved").mean(0) / of["config"].iloc[0]["n"]
        middle.plot(1 + np.arange(len(passing)), passing, markersize=3.5, **look.signs)
    middle.set(xlabel="iteration", ylabel="share of its samples that pass", ylim=(0, 1.02))
    for category, (marker, shade) in zip(
        passes["category"].unique(), (("o", "0.0"), ("s", "0.4"), ("D", "0.6")), strict=False
    ):
        of = passes[passes["category"] == category].groupby("k")["pass"].mean()
        right.plot(of.index, of, marker=marker, color=shade, markersize=3.5, label=category)
    right.set_xscale("log", base=2)
    right.set(xlabel="samples k of the policy itself", ylabel="pass@k", ylim=(0, 1.02))
    right.legend(loc="lower right")
    title = f"{records['prompt'].nunique()} prompts; left: 95% bootstrap bands"
    handles = left.get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=3, handlelength=3, title=title)
    return fig


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
    for label, look in looks(records["label"]).items():
        for ax, column in zip(axes, columns, strict=True):
            values = _stacked(records[records["label"] == label], column)
            ax.plot(
                1 + np.arange(values.shape[1]), values.mean(0), ms=2.5, label=label, **look.signs
            )
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
