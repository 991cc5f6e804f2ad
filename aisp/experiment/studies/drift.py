"""Why the mean of AISP drifts: predictions from the derivation beside what records hold (notebook 10).

With D = tau d coordinates, an update by n weighted samples adds noise of D / (2 ESS) nats to
KL(Q_U || P), whatever the reward. The KL term of the weights then has, over the samples of one
iteration, the standard deviation (1 - alpha) sqrt(2 KL), and where that exceeds the spread of
reward / lam it decides the weights, and the effective sample size falls. The signal in an update
is (s / lam) sqrt(ESS / D) of its noise, for a reward that is linear in V with spread s.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from aisp.experiment.report.tables import finished
from aisp.experiment.studies.ablations import AISP, Question
from aisp.sampler import AISPConfig
from aisp.theory import toys

if TYPE_CHECKING:
    import pandas as pd

EMBEDDED_WIDTH = 576  # of the embedded policy's pre-logit


def labels_of(questions: dict[str, Question]) -> list[str]:
    """The settings of AISP that the figure shows: the long runs, and alpha at its ends.

    Args:
        questions: from `ablations.plan`.
    """
    long = [series[AISP] for series in questions["drift"].settings.values()]
    ends = [questions["alpha"].settings[alpha][AISP] for alpha in ("0", "1")]
    return list(dict.fromkeys([*long, *ends]))


def predictions(records: "pd.DataFrame", d: int = EMBEDDED_WIDTH) -> "pd.DataFrame":
    """What the derivation predicts of each iteration from those before it, beside what was recorded.

    Args:
        records: of AISP, from `aisp.experiment.load`; failed and interrupted ones drop out.
        d: width of the policy's pre-logit.

    Returns:
        One row per record and iteration: label, prompt, seed, iteration (from 1), kl and ess as
        recorded; kl_predicted, the sum of D / (2 ESS) over the iterations before; ess_predicted, of
        Gaussian log-weights with the spread of reward / lam and of the KL term together; signal, the
        share of an update's noise that a linear reward of this spread would move.
    """
    import pandas as pd

    parts = []
    for one in finished(records).itertuples():
        config, history = one.config, pd.DataFrame(one.history)
        D = config["tau"] * d
        reward = history["reward_std"] / config["lam"]
        cross = (1 - config["alpha"]) * (2 * history["kl"]) ** 0.5
        drift = (D / (2 * history["ess"])).cumsum().shift(fill_value=0.0)
        spread = (reward**2 + cross**2) ** 0.5
        parts.append(
            pd.DataFrame(
                {
                    "label": one.label,
                    "prompt": one.prompt,
                    "seed": one.seed,
                    "iteration": history["iteration"] + 1,
                    "kl": history["kl"],
                    "kl_predicted": drift,
                    "ess": history["ess"],
                    "ess_predicted": expected_ess(spread.tolist(), config["n"]),
                    "signal": reward * (history["ess"] / D) ** 0.5,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def expected_ess(spreads: Sequence[float], n: int, draws: int = 4000) -> list[float]:
    """Mean effective sample size of n weights whose logarithms are normal with these spreads."""
    normal = torch.randn(draws, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for spread in spreads:
        w = torch.softmax(spread * normal, -1)
        found.append(float((1 / w.square().sum(-1)).mean()))
    return found


def at_iterations(predicted: "pd.DataFrame", iterations: Sequence[int]) -> "pd.DataFrame":
    """Means over records at some iterations: one row per label and iteration that it has."""
    columns = ["kl", "kl_predicted", "ess", "ess_predicted", "signal"]
    chosen = predicted[predicted["iteration"].isin(iterations)]
    return chosen.groupby(["label", "iteration"], sort=False)[columns].mean()


def agreement(predicted: "pd.DataFrame") -> list[str]:
    """How near the predictions are to what was recorded, and how small the signal is, in sentences."""
    means = predicted.groupby(["label", "iteration"])[["kl", "kl_predicted"]].mean()
    ess = predicted.groupby(["label", "iteration"])[["ess", "ess_predicted"]].mean()
    ratio = (means["kl"] / means["kl_predicted"])[means["kl_predicted"] > 0]
    off = (ess["ess"] / ess["ess_predicted"] - 1).abs()
    low, middle, high = (ratio.quantile(q) for q in (0.05, 0.5, 0.95))
    return [
        f"Recorded over predicted KL: {middle:.2f} in the median over settings and iterations "
        f"(5 to 95%: {low:.2f} to {high:.2f}); nothing is fitted.",
        f"The recorded effective sample size is off the predicted one by {off.median():.0%} in the "
        f"median, and by {off.quantile(0.95):.0%} or less in 95% of the cases.",
        f"The signal of one update would be {predicted['signal'].median():.1%} of its noise in the "
        "median, were the reward linear (the formula; it is not measured).",
    ]


VARIANTS: dict[str, dict[str, Any]] = {
    AISP: {},
    "alpha 1": {"alpha": 1.0},
    "control variate": {"alpha": 1.0, "control_variate": True},
    "control variate, first steps": {"alpha": 1.0, "control_variate": True, "steered": True},
}


def on_a_toy(
    tau: int, d: int, *, n: int = 16, kappa: int = 32, runs: int = 2, price: float = 4e-4
) -> "pd.DataFrame":
    """AISP and its variants on a reward whose exact answer is known, as records.

    The reward is linear in the first third of the steps, with a spread of 1 over samples, and takes
    `price` |v|^2 / 2 for every perturbation: noise costs, as garbled text does. lam is 1.

    Returns:
        One row per variant and run, as `figures.histories` takes them: label, prompt (the run),
        reward (the exact mean reward of the last proposal), and a history with value (the exact
        mean reward of each proposal), kl and ess.
    """
    import pandas as pd

    sigma, first = 0.5, max(1, tau // 3)
    g = torch.Generator().manual_seed(0)
    a = torch.randn(tau, d, generator=g, dtype=torch.float64)
    a[first:] = 0
    toy = toys.GaussianToy(a / (sigma * a.norm()), torch.full_like(a, price), sigma, 1.0)
    rows = []
    for label, own in VARIANTS.items():
        steered = {"steered": first} if own.get("steered") else {}
        base = AISPConfig(n=n, kappa=kappa, tau=tau, max_new_tokens=tau, sigma=sigma)
        out = toys.run_sampler(toy, replace(base, **(own | steered)), runs, seed=1)
        means = out["U"][:, :-1]
        value = toy.reward(means) - price * sigma**2 * tau * d / 2
        kl = means.square().sum((-2, -1)) / (2 * sigma**2)
        for run in range(runs):
            history = {"value": value[run], "kl": kl[run], "ess": out["ess"][run]}
            listed = {name: column.tolist() for name, column in history.items()}
            row = {"label": label, "prompt": f"run {run}", "reward": listed["value"][-1]}
            rows.append(row | {"history": listed, "interrupted": False})
    return pd.DataFrame(rows)


def toy_table(toy: "pd.DataFrame") -> "pd.DataFrame":
    """One row per variant of `on_a_toy`: means over runs at the start, the highest and the end.

    Returns:
        Columns: reward, first, highest and last (exact means of proposals); KL, last; ESS, last.
    """
    import pandas as pd

    rows = {}
    for label, of in toy.groupby("label", sort=False):
        columns = ("value", "kl", "ess")
        mean = {x: pd.DataFrame([h[x] for h in of["history"]]).mean() for x in columns}
        rows[label] = {
            "reward, first": mean["value"].iloc[0],
            "reward, highest": mean["value"].max(),
            "reward, last": mean["value"].iloc[-1],
            "KL, last (nats)": mean["kl"].iloc[-1],
            "ESS, last": mean["ess"].iloc[-1],
        }
    return pd.DataFrame(rows).T


def toy_sentences(toy: "pd.DataFrame") -> list[str]:
    """What the toy shows of AISP as published, of the control variate and of steering."""
    table = toy_table(toy)
    ours, calm = table.loc[AISP], table.loc["control variate"]
    first = table.loc["control variate, first steps"]
    fell = ours["reward, highest"] - ours["reward, last"]
    after = f"falls by {fell:.1f} to" if fell > 0 else "ends there, at"
    less = 1 - calm["KL, last (nats)"] / table.loc["alpha 1", "KL, last (nats)"]
    return [
        f"AISP as published rises from {ours['reward, first']:.1f} to "
        f"{ours['reward, highest']:.1f} and {after} {ours['reward, last']:.1f}, with an effective "
        f"sample size of {ours['ESS, last']:.1f} at the end.",
        f"With alpha = 1 and the control variate it ends at {calm['reward, last']:.1f}, and with U at "
        f"the first steps only at {first['reward, last']:.1f}.",
        f"Beside alpha = 1 alone, the control variate changes the KL by {-less:+.0%} and the reward "
        f"by {calm['reward, last'] - table.loc['alpha 1', 'reward, last']:+.1f}.",
    ]
