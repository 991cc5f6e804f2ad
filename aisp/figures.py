"""Figures for print: one style, and one way to save with provenance.

Every figure is a function from a table to a matplotlib figure; no model is imported here. `save`
writes PDF and PNG, and beside them a JSON that says from which data, code and parameters the
figure was made.
"""

import json
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aisp.provenance import checkout, file_sha256, git_state

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from matplotlib.figure import Figure

COLUMN = 3.4  # inches: one column of a two-column page
PAGE = 7.0  # inches: its whole width


def _figure(draw: "Callable[..., Figure]") -> "Callable[..., Figure]":
    """Label the figure with the function that drew it, for `save`."""

    @wraps(draw)
    def drawn(*args, **kwargs):
        fig = draw(*args, **kwargs)
        fig.set_label(f"{draw.__module__}.{draw.__name__}")
        return fig

    return drawn


def style() -> None:
    """Set the house style: seaborn, color-blind-safe, print sizes, embedded fonts."""
    import seaborn as sns

    sns.set_theme(
        context="paper",
        style="ticks",
        palette="colorblind",
        rc={
            "figure.figsize": (COLUMN, 0.72 * COLUMN),
            "figure.constrained_layout.use": True,
            "figure.dpi": 130,
            "savefig.dpi": 300,
            "pdf.fonttype": 42,  # TrueType, which journals take; matplotlib's default is Type 3
            "font.size": 8,
            "axes.labelsize": 8,
            "axes.titlesize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "legend.title_fontsize": 7,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
        },
    )


def save(
    fig: "Figure",
    name: str,
    *,
    profile: str,
    source: str | Path | None = None,
    folder: str | Path | None = None,
    **parameters: Any,
) -> list[Path]:
    """Write a figure as PDF and PNG with a JSON of provenance.

    Args:
        fig: the figure.
        name: file name without ending, such as "theory_free_energy".
        profile: what the numbers were made with. Figures of the profile "smoke" go to
            figures/smoke/, which git ignores, so that a test run never replaces a real figure.
        source: the records file that the figure shows, if there is one; its hash is noted.
        folder: where instead of the checkout's figures/.
        **parameters: whatever else made the figure, such as seed and command.

    Returns:
        The three paths written.
    """
    folder = Path(folder) if folder else checkout() / "figures"
    if profile == "smoke":
        folder = folder / "smoke"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("pdf", "png", "json")]
    # No creation date inside: the same data gives the same file.
    fig.savefig(paths[0], metadata={"CreationDate": None, "ModDate": None})
    fig.savefig(paths[1], metadata={"Software": None})
    record = {"figure": name, "profile": profile, **git_state(), "parameters": parameters}
    if fig.get_label():
        record["function"] = fig.get_label()
    if source is not None:
        path = Path(source).resolve()
        inside = path.is_relative_to(checkout())
        record["source"] = str(path.relative_to(checkout())) if inside else path.name
        record["source_sha256"] = file_sha256(path)
    paths[2].write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return paths


@_figure
def reward_curves(records: "pd.DataFrame", *, draws: int = 2000) -> "Figure":
    """Best reward against samples used: mean over prompts with a bootstrap 95% band, per label.

    Args:
        records: from `aisp.experiment.load`; only prompts that every label has are drawn.
    """
    import matplotlib.pyplot as plt

    from aisp.experiment.tables import finished

    records = finished(records)
    labels = list(records["label"].unique())
    common = set.intersection(*(set(records[records["label"] == x]["prompt"]) for x in labels))
    records = records[records["prompt"].isin(common)]
    fig, ax = plt.subplots(figsize=(COLUMN, 0.85 * COLUMN))
    _curves(ax, records, _colors(labels), draws)
    ax.set(xlabel="samples used per prompt", ylabel="best reward so far")
    ax.set_title(f"mean of {len(common)} prompts, 95% bootstrap band", loc="left")
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def _colors(labels) -> dict[str, Any]:
    """A color for each label: the color-blind-safe ones, as long as they last."""
    import seaborn as sns

    palette = sns.color_palette("colorblind")
    del palette[8]  # a yellow that is too light for lines
    if len(labels) > len(palette):
        palette = sns.color_palette("husl", len(labels))
    return dict(zip(labels, palette, strict=False))


def _curves(ax, records: "pd.DataFrame", colors: dict[str, Any], draws: int) -> None:
    """Best reward against samples used, of each label that has a color."""
    from aisp.experiment.tables import bootstrap

    for label, color in colors.items():
        group = records[records["label"] == label]
        curves = _stacked(group)  # (runs, iterations)
        samples = group["config"].iloc[0]["n"] * (1 + np.arange(curves.shape[1]))
        band = np.array([bootstrap(column, draws=draws) for column in curves.T])
        ax.plot(samples, curves.mean(0), marker="o", markersize=3, color=color, label=label)
        ax.fill_between(samples, band[:, 0], band[:, 1], color=color, alpha=0.15, linewidth=0)


@_figure
def histories(records: "pd.DataFrame", columns: dict[str, str]) -> "Figure":
    """Columns of the history by iteration, one panel each, mean over prompts, one line per label.

    Args:
        records: from `aisp.experiment.load`.
        columns: history column -> title of its panel, with the unit.
    """
    import matplotlib.pyplot as plt

    from aisp.experiment.tables import finished

    records = finished(records)
    fig, axes = plt.subplots(1, len(columns), figsize=(PAGE, 0.3 * PAGE))
    for label, color in _colors(records["label"].unique()).items():
        for ax, column in zip(axes, columns, strict=True):
            values = _stacked(records[records["label"] == label], column)
            ax.plot(1 + np.arange(values.shape[1]), values.mean(0), color=color, label=label)
    for ax, name in zip(axes, columns.values(), strict=True):
        ax.set_xlabel("iteration")
        ax.set_title(name, loc="left", fontsize=7)
        ax.xaxis.get_major_locator().set_params(integer=True)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


@_figure
def reward_guided(
    args: "pd.DataFrame", knows: "pd.DataFrame", re_control: "pd.DataFrame"
) -> "Figure":
    """Three panels of notebook 03: ARGS by weight, what the value function knows, RE-Control.

    Args:
        args: by weight (index "w = 1"): reward, low, high.
        knows: by step: correlation.
        re_control: by step size (index "step size 1"): mean, low, high, best.
    """
    import matplotlib.pyplot as plt

    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(PAGE, 0.32 * PAGE))
    _by_setting(left, args, "reward", "reward of the greedy response")
    left.set(xlabel="ARGS: weight of the reward, w", ylabel="reward")
    middle.axhline(0, color="0.7", linewidth=0.8)
    middle.plot(1 + knows["step"], knows["correlation"], color="C2")
    middle.set(xlabel="step of the response", ylabel="correlation within a prompt")
    middle.set_title("value function and final reward", loc="left", fontsize=7)
    _by_setting(right, re_control, "mean", "mean of the samples")
    right.plot(
        range(len(re_control)), re_control["best"], "s--", ms=3, color="C1", label="best of n"
    )
    right.set(xlabel="RE-Control: step size", ylabel="reward")
    right.legend()
    return fig


def _by_setting(ax, table, column: str, label: str) -> None:
    """Means with bootstrap 95% intervals over evenly spaced settings, named by their last word."""
    x = range(len(table))
    low_high = [table[column] - table["low"], table["high"] - table[column]]
    ax.errorbar(x, table[column], yerr=low_high, marker="o", ms=3, capsize=2, label=label)
    ax.set_xticks(x, [name.split()[-1] for name in table.index])
    ax.set_title("95% bootstrap intervals over prompts", loc="left", fontsize=7)


def _stacked(records: "pd.DataFrame", column: str = "reward_best") -> np.ndarray:
    """A history column of every record, (records, iterations); null is NaN.

    A run that ended before the others, its budget of tokens or seconds used, keeps its last value.
    """
    import pandas as pd

    columns = [pd.Series(h[column], dtype=float) for h in records["history"]]
    longest = max(map(len, columns))
    return np.array([c.reindex(range(longest), fill_value=c.iloc[-1]) for c in columns])


@_figure
def deferral(records: "pd.DataFrame", *, draws: int = 2000) -> "Figure":
    """Reward against the mass that KAD defers, per rule: of single responses, and the best of n.

    Args:
        records: of method "kad", from `aisp.experiment.load`; one point per label, the mean over
            the prompts that every label has, with a bootstrap 95% bar.
    """
    import matplotlib.pyplot as plt

    from aisp.experiment.tables import bootstrap, finished

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
        for rule in table["rule"].unique():
            points = []
            for _, group in table[table["rule"] == rule].groupby("label"):
                values = group.groupby("prompt")[column].mean().to_numpy()
                interval = bootstrap(values, draws=draws)
                points.append((group["deferred"].mean(), values.mean(), *interval))
            x, y, low, high = np.array(sorted(points)).T
            ax.errorbar(x, y, (y - low, high - y), marker="o", markersize=3, label=rule)
        ax.set_xlabel("mass deferred per token")
    axes[0].set_ylabel("reward")
    axes[0].set_title(f"single response, mean of {table['prompt'].nunique()} prompts", loc="left")
    axes[1].set_title("best of n", loc="left")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return fig


@_figure
def residual_alignment(records: "pd.DataFrame", *, draws: int = 2000) -> "Figure":
    """Reward of a single response and of the best of n, per label, with bootstrap 95% intervals.

    Args:
        records: from `aisp.experiment.load`; only prompts that every label has are drawn.
    """
    import matplotlib.pyplot as plt

    from aisp.experiment.tables import bootstrap, finished

    records = finished(records)
    labels = list(records["label"].unique())[::-1]  # the first one on top
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
            ax.errorbar(mean, y, xerr=bars, marker="o", markersize=4, capsize=2, color=f"C{y}")
        ax.set_xlabel("reward")
        ax.set_title(f"{title}, mean of {prompts} prompts", loc="left")
    axes[0].set_yticks(range(len(labels)), labels)
    return fig


@_figure
def main_results(records: "pd.DataFrame", *, draws: int = 2000) -> "Figure":
    """Best reward against samples used, in two panels: sampling methods, and AISP with the others.

    A method that draws a single response (ARGS) pays in reward calls instead of samples: it is a
    dashed line, and the number of its calls stands there.

    Args:
        records: from `aisp.experiment.load`; only prompts that every label has are drawn.
    """
    import matplotlib.pyplot as plt

    from aisp.experiment.tables import finished

    records = finished(records)
    labels = list(records["label"].unique())
    records = records[records.groupby("prompt")["label"].transform("nunique") == len(labels)]
    colors = _colors(labels)
    about = records.groupby("label")[["method", "samples", "reward_calls"]].max()
    sampling = [x for x in labels if about["method"][x] in ("aisp", "best_of_n")]
    single = [x for x in labels if about["samples"][x] == 1]
    beside = "AISP" if "AISP" in sampling else None
    steered = [x for x in labels if x not in sampling or x == beside]
    panels = {"sampling": sampling, "steered or trained": steered}
    fig, axes = plt.subplots(1, 2, figsize=(PAGE, 0.42 * PAGE), sharex=True, sharey=True)
    for ax, (title, group) in zip(axes, panels.items(), strict=True):
        _curves(ax, records, {x: colors[x] for x in group if x not in single}, draws)
        for label in set(group) & set(single):
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


@_figure
def paired_differences(records: "pd.DataFrame", first: str, *, draws: int = 2000) -> "Figure":
    """Reward of one label minus each other one: a dot per prompt, the mean with a bootstrap 95% bar.

    Args:
        records: from `aisp.experiment.load`.
        first: the label that the others are subtracted from.
    """
    import matplotlib.pyplot as plt

    from aisp.experiment.tables import bootstrap, finished

    means = finished(records).pivot_table(
        index="prompt", columns="label", values="reward", aggfunc="mean"
    )
    others = [x for x in records["label"].unique() if x != first][::-1]  # the first one on top
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
        ax.errorbar(values.mean(), y, xerr=bars, marker="o", markersize=4, capsize=2, color="C0")
    ax.set_yticks(range(len(others)), others)
    ax.set_xlabel(f"reward of {first} minus that of the other")
    ax.set_title("dots: prompts; bars: 95% bootstrap", loc="left", fontsize=7)
    return fig


@_figure
def ablation(answers: "pd.DataFrame", axis: str) -> "Figure":
    """Reward by setting of AISP and its controls; and prompt by prompt, AISP minus noise only.

    Args:
        answers: from `aisp.experiment.ablations.answers`.
        axis: what is varied.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 0.36 * PAGE))
    x = np.arange(len(answers))
    series = [c.removesuffix(" low") for c in answers.columns if c.endswith(" low")]
    for i, name in enumerate(series):
        shift = 0.12 * (i - (len(series) - 1) / 2)
        _with_bars(left, x + shift, answers, name, f"{name} low", f"{name} high", f"C{i}", name)
    left.set_ylabel("best reward")
    left.set_title("means, 95% bootstrap intervals", loc="left", fontsize=7)
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    right.axhline(0, color="0.7", linewidth=0.8)
    _with_bars(right, x, answers, "difference", "low", "high", "C0", None)
    right.set_ylabel("AISP minus noise only")
    prompts = answers["prompts"].max()
    right.set_title(f"paired over {prompts:.0f} prompts, 95% bootstrap", loc="left", fontsize=7)
    for ax in (left, right):
        ax.set_xticks(x, answers.index)
        ax.set_xlim(-0.5, len(x) - 0.5)
        ax.set_xlabel(axis)
    return fig


def _with_bars(ax, x, table, middle, low, high, color, label) -> None:
    bars = [table[middle] - table[low], table[high] - table[middle]]
    ax.errorbar(x, table[middle], yerr=bars, fmt="o", ms=4, capsize=2, color=color, label=label)


@_figure
def over_optimization(table: "pd.DataFrame", *, draws: int = 2000) -> "Figure":
    """What more samples buy: the optimized reward and a judge against KL, and against each other.

    Args:
        table: from `aisp.experiment.ablations.by_budget`; one line per label from its smallest budget (open)
            to its largest (square), means over prompts with bootstrap 95% bars.
    """
    import matplotlib.pyplot as plt

    from aisp.experiment.tables import bootstrap

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


@_figure
def runtime(tables: dict[str, "pd.DataFrame"]) -> "Figure":
    """Tokens per second of the engine and of `generate`, and seconds of whole runs.

    Args:
        tables: of notebook 08: "generate" from `aisp.experiment.bench.against_generate`, "whole runs" from
            `aisp.experiment.bench.whole_runs`; medians, with the range of the repeats as bars.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.3))
    generate, whole = tables["generate"], tables["whole runs"]
    for i, (name, group) in enumerate(generate.groupby("name", sort=False)):
        speed, x = group["tokens_per_second"], group["responses"]
        count = speed * group["seconds"]
        bars = np.array([speed - count / group["high"], count / group["low"] - speed])
        left.errorbar(x, speed, yerr=bars, label=name, marker="osD"[i], ms=4, capsize=2)
    sizes = sorted(generate["responses"].unique())
    left.set(xscale="log", xlabel="responses decoded together", ylabel="tokens per second")
    left.set_xticks(sizes, sizes)
    left.minorticks_off()
    left.set_ylim(0)
    left.legend()
    bars = np.array([whole["seconds"] - whole["low"], whole["high"] - whole["seconds"]])
    right.barh(whole["name"], whole["seconds"], xerr=bars, color=["C0", "C1", "0.6"], height=0.6)
    right.invert_yaxis()
    right.set(xlabel="seconds per prompt, rewards included")
    return fig


@_figure
def runtime_scaling(tables: dict[str, "pd.DataFrame"]) -> "Figure":
    """Tokens per second as one size grows, a panel for each.

    Args:
        tables: of notebook 08: "scaling" from `aisp.experiment.bench.scaling`; medians, with the range of the
            repeats as bars.
    """
    import matplotlib.pyplot as plt

    panels = tables["scaling"].groupby("axis", sort=False)
    fig, (axes,) = plt.subplots(1, len(panels), figsize=(PAGE, 1.9), sharey=True, squeeze=False)
    for ax, (axis, group) in zip(axes, panels, strict=True):
        y = group["tokens_per_second"]
        bars = np.array([y - group["low"], group["high"] - y])
        ax.errorbar(group["value"], y, yerr=bars, marker="o", ms=3.5)
        ax.set(xlabel=axis, xscale="log")
        ax.set_xticks(group["value"], group["value"])
        ax.minorticks_off()
    axes[0].set(ylabel="tokens per second")
    axes[0].set_ylim(0)
    return fig
