"""The figures of notebook 01: a schematic drawing, and tables of `aisp.theory.studies` drawn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aisp.figures.base import FURTHER, METHODS, PAGE, Look, labeled, looks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from aisp.theory.studies import Hills

BOUND: dict[str, Any] = {"color": "k", "lw": 0.8, "ls": "--"}
_GRAY, _NOISE, _AISP = "0.3", METHODS["noise only"].color, METHODS["AISP"].color
_BOXES = [  # name, x, y, text, color
    ("text", 7, 22, "text so far\n$x,\\ y_{<t}$", _GRAY),
    ("model", 27, 22, "frozen model\n$z_t=\\phi(x,y_{<t})$", _GRAY),
    ("sum", 46, 22, "$z_t+v_t$", _NOISE),
    ("token", 66, 22, "$y_t=\\arg\\max_j\\,w_j^\\top(z_t+v_t)$", _GRAY),
    ("reward", 91, 22, "text $y(V)$,\nreward $r(V)$", _GRAY),
    ("noise", 46, 5, "perturbation\n$v_t\\sim N(u_t,\\,\\sigma^2 I)$", _NOISE),
    ("weights", 83, 5, "weights $w_i$ of $n$ samples,\n$U\\leftarrow\\sum_i w_iV_i$", _AISP),
]
_RIGHT, _LEFT, _TOP, _BOTTOM = (1, 0.5), (0, 0.5), (0.5, 1), (0.5, 0)
_ARROWS: list[tuple[str, tuple, str, tuple, str, str, float]] = [
    # from, where there, to, where there, color, line style, bend
    ("text", _RIGHT, "model", _LEFT, _GRAY, "-", 0),
    ("model", _RIGHT, "sum", _LEFT, _GRAY, "-", 0),
    ("sum", _RIGHT, "token", _LEFT, _GRAY, "-", 0),
    ("token", _RIGHT, "reward", _LEFT, _GRAY, "-", 0),
    ("token", _TOP, "text", _TOP, _GRAY, "-", 0.18),
    ("noise", _TOP, "sum", _BOTTOM, _NOISE, "-", 0),
    ("reward", _BOTTOM, "weights", (0.93, 1), _AISP, "--", 0),
    ("weights", _LEFT, "noise", _RIGHT, _AISP, "--", 0),
]


@labeled
def theory_flow() -> "Figure":
    """AISP as a control loop, a drawing without data."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(PAGE, 2.1))
    ax.set(xlim=(0, 100), ylim=(0, 36))
    ax.axis("off")
    boxes = {}
    for name, x, y, text, color in _BOXES:
        box = {"boxstyle": "round,pad=0.5", "fc": "white", "ec": color, "lw": 1.2}
        middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "bbox": box}
        boxes[name] = ax.text(x, y, text, **middle).get_bbox_patch()
    for start, at, end, to, color, line, bend in _ARROWS:
        arrow: dict[str, Any] = {"arrowstyle": "->", "color": color, "lw": 1.2, "ls": line}
        arrow |= {"shrinkA": 0, "shrinkB": 0, "connectionstyle": f"arc3,rad={bend}"}
        ends: dict[str, Any] = {"xycoords": boxes[end], "textcoords": boxes[start]}
        ax.annotate("", xy=to, xytext=at, arrowprops=arrow, **ends)
    ax.text(36, 33.5, "append $y_t$: next step", ha="center", va="center", fontsize=7, color=_GRAY)
    ax.text(62, 6, "$\\kappa$ times", ha="center", fontsize=7, color=_AISP)
    return fig


@labeled
def theory_free_energy(tilts: "pd.DataFrame", bound: float, hills: "Hills") -> "Figure":
    """No law exceeds the bound. Left: laws on points, tilted by s. Right: Gaussians, two hills.

    Args:
        tilts: columns s, value (E[r] - lam KL), reward (E[r]).
        bound: lam F of the laws on points.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.3))
    left.plot(tilts["s"], tilts["value"], label=r"$E_Q[r]-\lambda\,KL(Q\|P)$")
    left.plot(tilts["s"], tilts["reward"], ls=":", color=FURTHER[1], label=r"$E_Q[r]$")
    left.axhline(bound, label=r"bound $\lambda F$", **BOUND)
    left.plot(1, bound, "ko", ms=4)
    left.annotate("$Q^*$", (1, bound), xytext=(0, 6), textcoords="offset points", ha="center")
    left.set(xlabel=r"tilt $s$: $Q\propto P\,e^{s r/\lambda}$", ylabel="reward")
    left.set_title("any law, 8 points")
    left.set_ylim(top=float(tilts["reward"].max()) * 1.12 + 0.1)
    left.legend(loc="lower center")

    right.plot(hills.u, hills.value, label=r"$-J(u)=E_{Q_u}[r]-\lambda\,KL(Q_u\|P)$")
    right.axhline(hills.bound, label=r"bound $\lambda F$", **BOUND)
    right.plot(hills.best, hills.value.max(), "o", ms=4, color="C0", label="its maximum")
    right.axvline(hills.target, color=_NOISE, ls="-.", label=r"$E_{Q^*}[v]$")
    right.set(xlabel="mean $u$ of the Gaussian", ylabel="reward")
    right.set_title("Gaussians only, two hills")
    right.set_ylim(-1.0, hills.bound + 0.25)
    right.legend(loc="lower left")
    return fig


@labeled
def theory_snis_bias(table: "pd.DataFrame") -> "Figure":
    """The bias of the self-normalized mean by samples, from `studies.snis_bias`."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots()
    bars: dict[str, Any] = {"yerr": 2 * table["se"], "fmt": "o", "ms": 4, "capsize": 2}
    ax.errorbar(table["n"], -table["bias"], label="measured (2 s.e.)", **bars)
    ax.plot(table["n"], -table["leading"], label=r"$\sigma^2\|b\|\,e^{\sigma^2\|b\|^2}/n$", **BOUND)
    ax.set(
        xscale="log", yscale="log", xlabel="samples $n$", ylabel=r"$-$bias of $\hat u$ along $a$"
    )
    ax.set_xticks(table["n"], table["n"])
    ax.minorticks_off()
    ax.legend()
    return fig


def _alphas(values: Sequence[float]) -> dict[float, tuple[str, Look]]:
    """A label and a look for each alpha: the same in every figure of the notebook."""
    drawn = looks([f"$\\alpha={alpha:g}$" for alpha in (0.0, 0.5, 0.9, 0.99)])
    known = dict(zip((0.0, 0.5, 0.9, 0.99), drawn.items(), strict=True))
    return {alpha: known[alpha] for alpha in values}


@labeled
def theory_alpha(table: "pd.DataFrame", n: int) -> "Figure":
    """Error of the estimated mean and ESS by alpha, a line per proposal.

    Args:
        table: from `studies.alpha_trade`.
        n: samples of its rmse.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.3))
    groups = {f"$U={scale:g}\\,U^*$": group for scale, group in table.groupby("scale")}
    for label, look in looks(groups).items():
        group = groups[label]
        signs: dict[str, Any] = {"color": look.color, "marker": look.marker, "ms": 3.5}
        left.plot(group["alpha"], group["bias"], color=look.color, lw=1)
        left.plot(group["alpha"], group["rmse"], ls="none", **signs)
        right.plot(group["alpha"], group["ess"], label=label, lw=1, **signs)
    left.plot([], [], color="0.3", lw=1, label="bias, exact")
    left.plot([], [], "o", color="0.3", ms=3.5, label=f"RMSE, {n} samples")
    left.set(xlabel=r"$\alpha$", ylabel=r"error of the mean, units of $V$", ylim=(0, None))
    right.set(xlabel=r"$\alpha$", ylabel="ESS / n", yscale="log")
    left.legend(loc="upper left")
    right.legend(loc="lower right")
    return fig


@labeled
def theory_iteration(table: "pd.DataFrame") -> "Figure":
    """AISP on the toy by iteration, from `studies.iterations`: sampled solid, exact dashed."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, 2, figsize=(PAGE, 3.9), sharex=True)
    panels = dict(zip(("kl", "distance", "ess", "reward"), axes.flat, strict=True))
    for alpha, (label, look) in _alphas(table["alpha"].unique()).items():
        of = table[table["alpha"] == alpha]
        sampled, exact = of[np.isfinite(of["samples"])], of[np.isinf(of["samples"])]
        signs: dict[str, Any] = {
            "color": look.color,
            "lw": 1.2,
            "marker": look.marker,
            "ms": 3,
            "label": label,
        }
        for column, ax in panels.items():
            ax.plot(sampled["iteration"], sampled[column], **signs)
            ax.plot(exact["iteration"], exact[column], color=look.color, lw=0.8, ls="--")
    panels["kl"].set(ylabel=r"$KL(Q^*\|Q_U)$, nats", yscale="log")
    panels["distance"].set(ylabel=r"$\|U-U^*\|$")
    panels["ess"].set(xlabel="iteration", ylabel="ESS / n", ylim=(0, None))
    panels["reward"].set(xlabel="iteration", ylabel="mean reward of the samples")
    dashed: dict[str, Any] = {"color": "0.3", "lw": 0.8, "ls": "--", "label": r"$n=\infty$, exact"}
    panels["distance"].plot([], [], **dashed)
    panels["distance"].legend(loc="upper left")
    return fig


@labeled
def theory_n_vs_kappa(table: "pd.DataFrame", best: float) -> "Figure":
    """A budget split between samples and iterations, from `studies.splits`.

    Args:
        best: the reward of the best text, for orientation.
    """
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.2))
    pairs = table[["n", "kappa"]].drop_duplicates()
    x = range(len(pairs))
    for alpha, (label, look) in _alphas(table["alpha"].unique()).items():
        group = table[table["alpha"] == alpha]
        signs: dict[str, Any] = {
            "color": look.color,
            "marker": look.marker,
            "ms": 4,
            "label": label,
        }
        left.plot(x, group["error"], **signs)
        right.errorbar(x, group["reward"], yerr=2 * group["se"], capsize=2, **signs)
    draws = int((pairs["n"] * pairs["kappa"]).iloc[0])
    for ax, what in ((left, r"$\|U-U^*\|$"), (right, r"$E_{Q_U}[r]$ of the last $U$")):
        ax.set_xticks(x, [f"{n}×{kappa}" for n, kappa in pairs.itertuples(index=False)])
        ax.set(xlabel=rf"$n\times\kappa$, {draws} draws in all", ylabel=what)
    right.axhline(best, color="k", lw=0.8, ls=":")
    right.text(0, best, "best text", va="bottom", fontsize=7)
    right.set_ylim(top=best * 1.15)
    left.legend()
    return fig


@labeled
def theory_kl(cloud: "pd.DataFrame", ray: "pd.DataFrame") -> "Figure":
    """KL over texts against KL over perturbations, from `studies.texts_and_means`.

    Args:
        cloud: of means in random directions.
        ray: of means in the direction of AISP with alpha = 0.99.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots()
    top = 1.3 * max(ray["texts"].max(), cloud["texts"].max())
    label, look = _alphas([0.99])[0.99]
    ax.plot([0, top], [0, top], label="equality", **BOUND)
    ax.plot(*cloud.T.to_numpy(), "o", ms=2.5, color="0.55", label="random directions")
    ax.plot(*ray.T.to_numpy(), color=look.color, label=f"direction of {label}")
    ax.set(xlabel=r"KL over perturbations $\|U\|^2/2\sigma^2$, nats", ylabel="KL over texts, nats")
    ax.set_ylim(0, top)
    ax.legend(loc="lower right")
    return fig


@labeled
def theory_gaussianity(table: "pd.DataFrame", components: int) -> "Figure":
    """Three looks at how real pre-logits depart from a Gaussian, from `prelogits.shape`."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(PAGE, 2.6))
    left, middle, right = axes
    for label, look in looks(table["set"]).items():
        of = {panel: group for panel, group in table[table["set"] == label].groupby("panel")}
        points: dict[str, Any] = {"color": look.color, "ls": "none", "marker": look.marker, "ms": 2}
        one = of["marginals"]
        left.plot(one["x"], one["y"], color=look.color, ls=look.line, label=label)
        left.fill_between(one["x"], one["low"], one["high"], color=look.color, alpha=0.12, lw=0)
        for edge in ("low", "high"):
            left.plot(one["x"], one[edge], color=look.color, ls=look.line, lw=0.6)
        middle.plot(of["distances"]["x"], of["distances"]["y"], **points)
        right.plot(of["spectrum"]["x"], of["spectrum"]["y"], color=look.color, ls=look.line)
    left.axhline(0, **BOUND)
    middle.axline((0, 0), slope=1, **BOUND)
    left.set(xlabel="Gaussian quantile", ylabel="own quantile minus it", title="coordinates")
    middle.set(xlabel="squared distance, twins", ylabel="squared distance")
    middle.set_title(f"Mahalanobis, {components} comp.")
    right.set(xlabel="components", ylabel="share of variance", xscale="log", ylim=(0, 1.02))
    right.set_title("spectrum")
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


@labeled
def theory_noise_temperature(table: "pd.DataFrame") -> "Figure":
    """Greedy decoding of noisy pre-logits as a sampler, from `prelogits.noise_as_sampler`."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(PAGE, 2.3))
    noise: dict[str, Any] = {"color": _NOISE, "ms": 3.5, "label": r"$\arg\max W(z+v)$"}
    softmax: dict[str, Any] = {"color": FURTHER[0], "ms": 3.5, "label": "softmax at that $T$"}
    axes[0].plot(
        table["sigma"], table["T matched"], "o-", color=_NOISE, ms=3.5, label="same entropy"
    )
    axes[0].plot(table["sigma"], table["T predicted"], label=r"$\sigma\|w_1-w_2\|/1.702$", **BOUND)
    axes[0].set(ylabel="softmax temperature $T$")
    axes[1].set(ylabel="share of the top token", ylim=(0, 1))
    axes[2].set(ylabel="share outside the top 50")
    for ax, share in zip(axes[1:], ("top-1", "tail"), strict=True):
        ax.plot(table["sigma"], table[f"{share} noise"], "o-", **noise)
        ax.plot(table["sigma"], table[f"{share} softmax"], "s--", **softmax)
    axes[2].set_ylim(0, None)
    for ax in axes:
        ax.set_xlabel(r"noise $\sigma$")
        ax.legend()
    return fig
