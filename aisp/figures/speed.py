"""The figures of notebook 08: speeds side by side, and how they change with each size."""

from typing import TYPE_CHECKING

import numpy as np

from aisp.figures.base import COLUMN, PAGE, labeled, looks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def _bars(timings: "pd.DataFrame", speed: "pd.Series") -> np.ndarray:
    """How far a speed, which falls as seconds rise, reaches below and above: (2, rows).

    Rounding may leave a bar of a single run just below 0.
    """
    count = speed * timings["seconds"]
    bars = np.array([speed - count / timings["high"], count / timings["low"] - speed])
    return bars.clip(min=0)


@labeled
def runtime(tables: dict[str, "pd.DataFrame"]) -> "Figure":
    """Tokens per second of the engine and its rivals at top-p 0.9, and seconds of whole runs.

    Args:
        tables: "engines" from `aisp.experiment.speed.bench.engines`, "whole runs" from
            `aisp.experiment.speed.whole_runs`; medians, with the range of the repeats as bars.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.3))
    whole, engines = tables["whole runs"], tables["engines"]
    generate = engines[engines["decoding"] == "top-p 0.9"]
    for name, look in looks(generate["name"]).items():
        group = generate[generate["name"] == name]
        speed, x = group["tokens_per_second"], group["responses"]
        bars = _bars(group, speed)
        left.errorbar(x, speed, yerr=bars, label=name, ms=4, capsize=2, **look.signs)
    sizes = sorted(generate["responses"].unique())
    left.set(xscale="log", xlabel="responses decoded together", ylabel="tokens per second")
    left.set_xticks(sizes, sizes)
    left.minorticks_off()
    left.set_ylim(0)
    left.legend()
    bars = np.array([whole["seconds"] - whole["low"], whole["high"] - whole["seconds"]])
    drawn = looks(whole["name"])
    colors = [drawn[name].color for name in whole["name"]]
    right.barh(whole["name"], whole["seconds"], xerr=bars, color=colors, height=0.6)
    right.invert_yaxis()
    right.set(xlabel="seconds per prompt, rewards included")
    return fig


@labeled
def runtime_share(tables: dict[str, "pd.DataFrame"]) -> "Figure":
    """Share of the machine's bound that each engine reaches, one panel per way of taking tokens.

    Args:
        tables: "engines" from `aisp.experiment.speed.bench.engines`; medians, with the range of the repeats
            as bars.
    """
    import matplotlib.pyplot as plt

    panels = tables["engines"].groupby("decoding", sort=False)
    fig, axes = plt.subplots(1, len(panels), figsize=(PAGE, 2.3), sharey=True, squeeze=False)
    drawn = looks(tables["engines"]["name"])
    for ax, (decoding, group) in zip(axes[0], panels, strict=True):
        for name, rows in group.groupby("name", sort=False):
            share = 100 * rows["share"]
            bars = _bars(rows, share)
            ax.errorbar(
                rows["responses"],
                share,
                yerr=bars,
                label=name,
                ms=4,
                capsize=2,
                **drawn[name].signs,
            )
        sizes = sorted(group["responses"].unique())
        ax.set(title=decoding, xscale="log", xlabel="responses decoded together")
        ax.set_xticks(sizes, sizes)
        ax.minorticks_off()
    axes[0, 0].set(ylabel="share of the machine's bound, %")
    axes[0, 0].set_ylim(0)
    shown = {
        label: handle
        for ax in axes[0]
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    fig.legend(shown.values(), shown, loc="outside lower center", ncols=len(shown))
    return fig


@labeled
def runtime_scaling(tables: dict[str, "pd.DataFrame"]) -> "Figure":
    """Tokens per second as one size grows, one panel per size.

    Args:
        tables: "scaling" from `aisp.experiment.speed.bench.scaling`; medians, with the range of the
            repeats as bars; "base", the sizes that stay while another one changes. The case in which
            all are at their base was timed anew for each axis: an open circle. A band over all panels
            spans those timings, and so shows how far timings of the same case lie apart.
    """
    import matplotlib.pyplot as plt
    import pandas as pd

    panels = tables["scaling"].groupby("axis", sort=False)
    base = tables["base"].iloc[0]
    same = pd.concat(group[group["value"] == base[axis]] for axis, group in panels)
    between = same["tokens_per_second"].min(), same["tokens_per_second"].max()
    fig, (axes,) = plt.subplots(1, len(panels), figsize=(PAGE, 2.1), sharey=True, squeeze=False)
    for ax, (axis, group) in zip(axes, panels, strict=True):
        y = group["tokens_per_second"]
        bars = np.array([y - group["low"], group["high"] - y])
        ax.errorbar(group["value"], y, yerr=bars, marker="o", ms=3.5)
        one = group[group["value"] == base[axis]]
        ax.plot(one["value"], one["tokens_per_second"], "o", ms=7, mfc="none", color="k")
        ax.axhspan(*between, color="0.9", zorder=0)
        ax.set(xlabel=axis, xscale="log")
        ax.set_xticks(group["value"], group["value"])
        ax.minorticks_off()
    axes[0].set(ylabel="tokens per second")
    axes[0].set_ylim(0)
    fig.supxlabel("circles: the same case, timed anew in each panel; gray: their range", fontsize=7)
    return fig


@labeled
def workers(tables: dict[str, "pd.DataFrame"]) -> "Figure":
    """Speed-up of experiments by the number of workers, with the ideal line.

    Args:
        tables: name of a set of batches -> table from `aisp.experiment.speed.scaling.simulated`.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(COLUMN, 0.85 * COLUMN))
    for marker, (name, table) in zip("osD^v", tables.items(), strict=False):
        ax.plot(table["workers"], table["speedup"], marker=marker, ms=3.5, label=name)
    counts = sorted({count for table in tables.values() for count in table["workers"]})
    ax.plot(counts, counts, "--", color="0.5", lw=1, label="ideal")
    ax.set(xlabel="workers", ylabel="times as fast as one worker", xscale="log", yscale="log")
    ax.set_xticks(counts, counts)
    ax.set_yticks(counts, counts)
    ax.minorticks_off()
    ax.legend(loc="upper left")
    return fig
