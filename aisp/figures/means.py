"""Means with intervals over prompts: by label, by setting, and prompt by prompt."""

from typing import TYPE_CHECKING, Any

import numpy as np

from aisp.experiment.report.tables import finished
from aisp.figures.base import COLUMN, METHODS, PAGE, Look, labeled, looks
from aisp.intervals import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@labeled
def paired_differences(records: "pd.DataFrame", first: str, *, draws: int = 2000) -> "Figure":
    """Reward of one label minus that of each other: a dot per prompt, the mean with a 95% bar.

    Args:
        records: from `aisp.experiment.load`.
        first: the label that the others are subtracted from.
    """
    import matplotlib.pyplot as plt

    means = finished(records).pivot_table(
        index="prompt", columns="label", values="reward", aggfunc="mean"
    )
    others = [x for x in looks(records["label"]) if x != first][::-1]  # the first one on top
    color = looks([first])[first].color
    fig, ax = plt.subplots(figsize=(COLUMN, 0.5 + 0.32 * len(others)))
    ax.axvline(0, color="0.7", linewidth=0.8)
    for y, label in enumerate(others):
        values = (means[first] - means[label]).dropna().sort_index().to_numpy()
        if not len(values):
            continue
        spread = y + np.linspace(-0.22, 0.22, len(values))  # in the order of prompt ids
        ax.scatter(values, spread, s=4, color="0.65", linewidths=0)
        low, high = bootstrap(values, draws=draws)
        bars = [[values.mean() - low], [high - values.mean()]]
        ax.errorbar(values.mean(), y, xerr=bars, marker="o", markersize=4, capsize=2, color=color)
    ax.set_yticks(range(len(others)), others)
    ax.set_xlabel(f"reward of {first} minus that of the other")
    ax.set_title("dots: prompts; bars: 95% bootstrap", loc="left", fontsize=7)
    return fig


@labeled
def leads(table: "pd.DataFrame") -> "Figure":
    """Rows over best-of-n: a column for each place, the reward above and the judge below, last at equal length.

    Filled where the 95% interval excludes 0.

    Args:
        table: from `aisp.experiment.recommend.leads`.
    """
    import matplotlib.pyplot as plt

    titles = {"reward": "by the reward", "judged": "by the judge"}
    titles["at_length"] = "by the judge,\nat equal length"
    shown = [x for x in titles if x in set(table["measure"])]
    places, labels = list(table["place"].unique()), list(table["label"].unique())[::-1]
    size = (PAGE, 0.5 + (0.35 + 0.2 * len(labels)) * len(shown))
    shape: dict[str, Any] = {"figsize": size, "sharex": "row", "sharey": True, "squeeze": False}
    fig, axes = plt.subplots(len(shown), len(places), **shape)
    looking = looks(table["label"])
    for (measure, place), of in table.groupby(["measure", "place"]):
        ax = axes[shown.index(measure), places.index(place)]
        ax.axvline(0, color="0.7", linewidth=0.8)
        for one in of.itertuples():
            look = looking[one.label]
            bars = [[one.difference - one.low], [one.high - one.difference]]
            face = "white" if one.verdict == "undecided" else look.color
            signs = look.point | {"ms": 4, "capsize": 2, "mfc": face}
            ax.errorbar(one.difference, labels.index(one.label), xerr=bars, **signs)
        if measure == shown[0]:
            counts = (f"{one.prompts} prompts", f"{one.seeds} seed{'s' * (one.seeds > 1)}")
            ax.set_title("\n".join([*place.split(", "), *counts]), loc="left", fontsize=7)
        ax.set_yticks(range(len(labels)), labels)
        ax.set_ylim(-0.6, len(labels) - 0.4)
    for ax, measure in zip(axes[:, 0], shown, strict=True):
        ax.set_ylabel(titles[measure])
    fig.supxlabel("minus best-of-n, 95% bootstrap over prompts and seeds", fontsize=8)
    return fig


@labeled
def residual_alignment(records: "pd.DataFrame", *, draws: int = 2000) -> "Figure":
    """Reward of a single response and of the best of n, per label, with bootstrap 95% intervals.

    Args:
        records: from `aisp.experiment.load`; only prompts that every label has are drawn.
    """
    import matplotlib.pyplot as plt

    records = finished(records)
    drawn = looks(records["label"])
    labels = list(drawn)[::-1]  # the first one on top
    records = records[records.groupby("prompt")["label"].transform("nunique") == len(labels)]
    table = records.assign(single=[np.mean(h["reward_mean"]) for h in records["history"]])
    samples, prompts = int(table["samples"].iloc[0]), table["prompt"].nunique()
    titles = {"single": "single response", "reward": f"best of {samples}"}
    fig, axes = plt.subplots(1, 2, figsize=(PAGE, 0.3 * PAGE), sharey=True)
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        for y, label in enumerate(labels):
            values = table[table["label"] == label].groupby("prompt")[column].mean().to_numpy()
            low, high = bootstrap(values, draws=draws)
            mean = values.mean()
            bars = [[mean - low], [high - mean]]
            ax.errorbar(mean, y, xerr=bars, markersize=4, capsize=2, **drawn[label].point)
        ax.set_xlabel("reward")
        ax.set_title(f"{title}, mean of {prompts} prompts", loc="left")
    axes[0].set_yticks(range(len(labels)), labels)
    return fig


@labeled
def deferral(records: "pd.DataFrame", *, draws: int = 2000) -> "Figure":
    """Reward against the probability mass that KAD defers, one line per rule, in two panels.

    Left: the mean reward of a single response. Right: that of the best of n.

    Args:
        records: of method "kad", from `aisp.experiment.load`; one point per label, the mean over
            the prompts that every label has, with a bootstrap 95% bar.
    """
    import matplotlib.pyplot as plt

    records = finished(records)
    labels = records["label"].nunique()
    records = records[records.groupby("prompt")["label"].transform("nunique") == labels]
    table = records.assign(
        rule=[config["rule"] for config in records["config"]],
        single=[np.mean(history["reward_mean"]) for history in records["history"]],
        deferred=[np.mean(history["deferred"]) for history in records["history"]],
    )
    fig, axes = plt.subplots(1, 2, figsize=(PAGE, 0.4 * PAGE))
    for ax, column in zip(axes, ("single", "reward"), strict=True):
        for rule, look in looks(table["rule"]).items():
            points = []
            for _, group in table[table["rule"] == rule].groupby("label"):
                values = group.groupby("prompt")[column].mean().to_numpy()
                interval = bootstrap(values, draws=draws)
                points.append((group["deferred"].mean(), values.mean(), *interval))
            x, y, low, high = np.array(sorted(points)).T
            ax.errorbar(x, y, (y - low, high - y), markersize=3.5, label=rule, **look.signs)
        ax.set_xlabel("mass deferred per token")
    axes[0].set_ylabel("reward")
    axes[0].set_title(f"single response, mean of {table['prompt'].nunique()} prompts", loc="left")
    axes[1].set_title("best of n", loc="left")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return fig


@labeled
def reward_guided(
    args: "pd.DataFrame", value_function: "pd.DataFrame", re_control: "pd.DataFrame"
) -> "Figure":
    """Three panels of notebook 03: ARGS by weight, the value function, RE-Control by step size.

    Args:
        args: one row per weight (index "w = 1"): reward, low, high.
        value_function: one row per step of the response: step, correlation of the value with the
            final reward.
        re_control: one row per step size (index "step size 1"): mean, low, high, best.
    """
    import matplotlib.pyplot as plt

    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(PAGE, 0.32 * PAGE))
    _by_setting(left, args, "reward", "reward of the greedy response", METHODS["ARGS"])
    left.set(xlabel="ARGS: weight of the reward, w", ylabel="reward")
    middle.axhline(0, color="0.7", linewidth=0.8)
    middle.plot(
        1 + value_function["step"], value_function["correlation"], color=METHODS["RE-Control"].color
    )
    middle.set(xlabel="step of the response", ylabel="correlation within a prompt")
    middle.set_title("value function and final reward", loc="left", fontsize=7)
    _by_setting(right, re_control, "mean", "mean of the samples", METHODS["RE-Control"])
    best: dict[str, Any] = {
        "color": METHODS["RE-Control"].color,
        "mfc": "white",
        "label": "best of n",
    }
    right.plot(range(len(re_control)), re_control["best"], "s--", ms=4, **best)
    right.set(xlabel="RE-Control: step size", ylabel="reward")
    right.legend()
    return fig


def _by_setting(ax: "Axes", table: "pd.DataFrame", column: str, label: str, look: Look) -> None:
    """Means with bootstrap 95% intervals over evenly spaced settings, named by their last word."""
    x = range(len(table))
    low_high = [table[column] - table["low"], table["high"] - table[column]]
    signs = look.signs | {"linestyle": "-"}
    ax.errorbar(x, table[column], yerr=low_high, ms=3.5, capsize=2, label=label, **signs)
    ax.set_xticks(x, [name.split()[-1] for name in table.index])
    ax.set_title("95% bootstrap intervals over prompts", loc="left", fontsize=7)
