"""The figures of notebook 10: how far the mean drifts, what that does to the weights, and where in time
the signal is.
"""

from typing import TYPE_CHECKING

from aisp.figures.base import COLUMN, PAGE, labeled, looks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@labeled
def drift(predicted: "pd.DataFrame") -> "Figure":
    """KL of the proposal and effective sample size by iteration: marks recorded, lines predicted.

    Args:
        predicted: from `aisp.experiment.studies.drift.predictions`; means over its records are drawn.
    """
    import matplotlib.pyplot as plt

    panels = {"kl": "KL of the proposal (nats)", "ess": "effective sample size"}
    fig, axes = plt.subplots(1, 2, figsize=(PAGE, 0.4 * PAGE))
    for label, look in looks(predicted["label"]).items():
        mean = predicted[predicted["label"] == label].groupby("iteration").mean(numeric_only=True)
        for ax, column in zip(axes, panels, strict=True):
            ax.plot(mean.index, mean[f"{column}_predicted"], color=look.color, linewidth=0.9)
            ax.plot(mean.index, mean[column], ms=3, label=label, **look.point)
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        ax.set_xlabel("iteration")
        ax.set_title(title, loc="left")
        ax.xaxis.get_major_locator().set_params(integer=True)
        if column == "kl":
            ax.set_yscale("symlog", linthresh=500)  # it starts at 0
    prompts = predicted["prompt"].nunique()
    title = f"means of {prompts} prompt{'s' * (prompts != 1)}; marks: recorded, lines: predicted"
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, title=title
    )
    return fig


@labeled
def prefix_share(shares: "pd.DataFrame", prompts: int) -> "Figure":
    """The share of the reward's variance that the perturbations of the first t steps explain.

    Args:
        shares: from `aisp.experiment.studies.prefix_share.explained`.
        prompts: how many there were, for the label of the axis.
    """
    import matplotlib.pyplot as plt

    look, last = looks(["noise only"])["noise only"], shares["t"].max()
    fig, ax = plt.subplots(figsize=(COLUMN, 0.72 * COLUMN))
    bars = [shares["share"] - shares["low"], shares["high"] - shares["share"]]
    ax.plot([0, last], [0, 1], color="0.6", linewidth=0.9, label="every step an equal part")
    measured = {**look.signs, "linestyle": "-", "ms": 3, "capsize": 2}
    ax.errorbar(shares["t"], shares["share"], bars, label="measured", **measured)
    ax.set_xticks(shares["t"][(shares["t"] == 0) | (shares["t"] >= last / 6)])
    ax.set(xlabel="steps t whose perturbations are shared", ylabel="share of the variance")
    title = f"{prompts} prompt{'s' * (prompts != 1)}, 95% over prompts"
    ax.legend(loc="lower right", title=title)
    return fig
