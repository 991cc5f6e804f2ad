"""Judge against reward of what rules of selection return, along the number of samples."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aisp.experiment.studies.selection import means
from aisp.figures.base import PAGE, labeled, looks
from aisp.intervals import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@labeled
def selection(
    curves: "pd.DataFrame", rules: Sequence[str] | None = None, *, draws: int = 2000
) -> "Figure":
    """Judge (y) against reward (x), one line per rule and one panel per method whose candidates it has.

    Marks are numbers of samples, from the least to the most along each line; a ring is where the judge
    is highest. The band is the judge's bootstrap 95% interval over prompts of the first rule.

    Args:
        curves: from `aisp.experiment.studies.selection.curves`.
        rules: which of its rules are drawn; None is all.
    """
    import matplotlib.pyplot as plt

    rules = list(curves["rule"].unique() if rules is None else rules)
    looking = looks(rules)
    labels = list(curves["label"].unique())
    shape: dict[str, Any] = {
        "figsize": (PAGE, 0.52 * PAGE),
        "sharex": True,
        "sharey": True,
        "squeeze": False,
    }
    fig, axes = plt.subplots(1, len(labels), **shape)
    for ax, label in zip(axes[0], labels, strict=True):
        own = curves[curves["label"] == label]
        average = means(own)
        for rule, look in looking.items():
            line = average[average["rule"] == rule].sort_values("samples")
            if line.empty:
                continue
            ax.plot(line["reward"], line["judged"], label=rule, ms=3, linewidth=1, **look.signs)
            top = line.loc[line["judged"].idxmax()]
            ring: dict[str, Any] = {"mfc": "none", "mec": look.color, "linestyle": "none"}
            ax.plot(top["reward"], top["judged"], marker="o", ms=8, **ring)
            if rule == rules[0]:
                _band(ax, own[own["rule"] == rule], look.color, draws)
                _counts(ax, line)
        ax.set_title(f"candidates of {label}", loc="left")
        ax.set_xlabel("expected reward")
    axes[0, 0].set_ylabel("expected score of the judge")
    lines = {x.get_label(): x for ax in axes[0] for x in ax.lines if x.get_label() in looking}
    prompts = curves["prompt"].nunique()
    title = f"means of {prompts} prompt{'s' * (prompts != 1)}; ring: where the judge is highest"
    shown = [x for x in looking if x in lines]
    fig.legend([lines[x] for x in shown], shown, loc="outside lower center", ncols=3, title=title)
    return fig


def _band(ax: "Axes", curves: "pd.DataFrame", color: str, draws: int) -> None:
    by_prompt = curves.groupby(["samples", "prompt"])[["reward", "judged"]].mean()
    groups = [of for _, of in by_prompt.groupby(level="samples")]
    ends = np.array([bootstrap(of["judged"], draws=draws) for of in groups])
    reward = [of["reward"].mean() for of in groups]
    ax.fill_between(reward, ends[:, 0], ends[:, 1], color=color, alpha=0.1, linewidth=0)


def _counts(ax: "Axes", line: "pd.DataFrame") -> None:
    """The number of samples at a few marks of a line."""
    for row in line.iloc[:: max(1, len(line) // 4)].itertuples():
        where: dict[str, Any] = {"textcoords": "offset points", "xytext": (9, -14)}
        where |= {"fontsize": 6, "color": "gray"}
        ax.annotate(f"n = {row.samples}", (row.reward, row.judged), **where)
