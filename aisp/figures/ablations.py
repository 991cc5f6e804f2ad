"""The figures of notebook 07: settings side by side, and what more samples buy."""

from typing import TYPE_CHECKING, Any

import numpy as np

from aisp.figures.base import PAGE, Look, labeled, looks
from aisp.intervals import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@labeled
def ablation(answers: "pd.DataFrame", axis: str) -> "Figure":
    """Two panels: reward of AISP and its controls by setting, and AISP minus noise only, paired.

    Args:
        answers: from `aisp.experiment.studies.ablations.answers`.
        axis: what is varied, with its unit.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 0.36 * PAGE))
    x = np.arange(len(answers))
    series = [c.removesuffix(" low") for c in answers.columns if c.endswith(" low")]
    for i, (name, look) in enumerate(looks(series).items()):
        shift = 0.12 * (i - (len(series) - 1) / 2)
        columns = (name, f"{name} low", f"{name} high")
        _with_bars(left, x + shift, answers, columns, look, name)
    left.set_ylabel("best reward")
    left.set_title("means, 95% bootstrap intervals", loc="left", fontsize=7)
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    right.axhline(0, color="0.7", linewidth=0.8)
    _with_bars(right, x, answers, ("difference", "low", "high"), looks(["AISP"])["AISP"])
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
    look: Look,
    label: str | None = None,
) -> None:
    """Means with bars from the columns (mean, low, high) of a table."""
    middle, low, high = columns
    bars = [table[middle] - table[low], table[high] - table[middle]]
    ax.errorbar(x, table[middle], yerr=bars, ms=4, capsize=2, label=label, **look.point)


@labeled
def over_optimization(table: "pd.DataFrame", *, draws: int = 2000) -> "Figure":
    """What more samples buy: optimized reward, independent judge and surprisal, by samples used.

    One line per label: means over prompts, with bootstrap 95% bars. If the judge levels off or
    falls while the reward rises, the search over-optimizes the reward.

    Args:
        table: from `aisp.experiment.studies.ablations.by_budget`.
    """
    import matplotlib.pyplot as plt

    panels = {
        "reward": "optimized reward",
        "judged": "independent judge",
        "surprisal": "surprisal of the response (nats)",
    }
    fig, axes = plt.subplots(1, 3, figsize=(PAGE, 0.36 * PAGE))
    sizes = sorted(table["samples"].unique())
    labels = looks(table["label"])
    for ax, (column, name) in zip(axes, panels.items(), strict=True):
        for i, (label, look) in enumerate(labels.items()):
            by_prompt = table[table["label"] == label].groupby(["samples", "prompt"])[column].mean()
            mean = by_prompt.groupby("samples").mean()
            band = [bootstrap(v, draws=draws) for _, v in by_prompt.groupby("samples")]
            bars = np.abs(np.array(band).T - mean.to_numpy())
            x = mean.index * 2 ** (0.12 * (i - (len(labels) - 1) / 2))  # side by side
            ax.errorbar(x, mean, bars, ms=3, label=label, **look.signs)
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, sizes)
        ax.minorticks_off()
        ax.set(xlabel="samples used per prompt")
        ax.set_title(name, loc="left")
    title = f"means of {table['prompt'].nunique()} prompts, 95% bootstrap bars"
    handles = axes[0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=3, title=title)
    return fig


@labeled
def dials(effects: "pd.DataFrame") -> "Figure":
    """All dials at one glance, on one axis of reward: one column per dial, one row per difference.

    Top: AISP at a setting minus AISP at the standard setting, whose name is bold. Bottom: AISP
    minus noise only at the same setting. Filled where the 95% interval excludes 0.

    Args:
        effects: from `aisp.experiment.studies.dials.effects`.
    """
    import matplotlib.pyplot as plt

    titles = {"change": "AISP minus AISP\nat the standard", "adaptation": "AISP minus\nnoise only"}
    columns, look = list(dict.fromkeys(effects["dial"])), looks(["AISP"])["AISP"]
    signs: dict[str, Any] = {"color": look.color, "marker": look.marker, "ms": 4, "capsize": 2}
    settings = {x: effects[effects["dial"] == x].drop_duplicates("setting") for x in columns}
    size = {"width_ratios": [len(of) + 1 for of in settings.values()]}
    fig, axes = plt.subplots(
        2, len(columns), figsize=(PAGE, 0.58 * PAGE), sharey=True, sharex="col", gridspec_kw=size
    )
    for column, (dial, names) in zip(axes.reshape(2, -1).T, settings.items(), strict=True):
        place = {name: i for i, name in enumerate(names["setting"])}
        for ax, kind in zip(column, titles, strict=True):
            ax.axhline(0, color="0.7", linewidth=0.8)
            rows = effects[(effects["dial"] == dial) & (effects["kind"] == kind)]
            for one in rows[rows["verdict"].notna()].itertuples():
                bars = [[one.difference - one.low], [one.high - one.difference]]
                face = "white" if one.verdict == "undecided" else look.color
                x = place[one.setting]
                ax.errorbar(x, one.difference, bars, mfc=face, **signs)
        column[0].set_title(_folded(names["axis"].iloc[0]), fontsize=7)
        column[1].set_xticks(range(len(place)), place, rotation=60)
        column[1].set_xlim(-0.6, len(place) - 0.4)
        for tick, standard in zip(column[1].get_xticklabels(), names["standard"], strict=True):
            tick.set_fontweight("bold" if standard else "normal")
    for ax, title in zip(axes.reshape(2, -1)[:, 0], titles.values(), strict=True):
        ax.set_ylabel(title)
    prompts = effects["prompts"].max()
    fig.supxlabel(
        f"paired over {prompts:.0f} prompts, 95% bootstrap; filled: the interval excludes 0; "
        "bold: the standard setting",
        fontsize=7,
    )
    # The layout at the resolution of files (`base.style`), kept: it would move a little with every
    # drawing and resolution, and the file with it.
    shown, fig.dpi = fig.dpi, 300
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    fig.dpi = shown
    return fig


def _folded(title: str) -> str:
    """A title in lines short enough for a narrow panel."""
    import textwrap

    parts = title.replace(" (", "\n(").splitlines()
    return "\n".join(line for part in parts for line in textwrap.wrap(part, 18))
