"""What passes a program's checks, and what else it is: tables of notebook 12, from its records."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aisp import metrics
from aisp.experiment.report import tables
from aisp.experiment.studies import declared
from aisp.experiment.studies.verified import (
    FEW,
    FURTHER,
    LABELS,
    MEASURES,
    POLICY,
    PRIMARY,
    ROWS,
    SECONDARY,
    counts,
    soon,
)
from aisp.intervals import bootstrap
from aisp.prompts import Prompt
from aisp.rewards.load import load_reward

if TYPE_CHECKING:
    import pandas as pd


def by_category(rates: "pd.DataFrame", prompts: Sequence[Prompt]) -> "pd.DataFrame":
    """What the policy passes by itself, from `verified.rates`.

    Returns:
        Index: category. Columns: prompts; passing, the mean share of samples that pass all checks,
        with its 95% bootstrap interval over prompts; never, the prompts of which no sample did; few,
        those that trials and comparison are chosen among; most, those of which over 60% did.
    """
    import pandas as pd

    solved = pd.Series(counts(rates))
    share = solved / int(rates["samples"].max())
    category = pd.Series({p.id: p.category for p in prompts}).reindex(solved.index)
    rows = {}
    for name, of in share.groupby(category, sort=False):
        low, high = bootstrap(of)
        rows[name] = {
            "prompts": len(of),
            "passing": f"{of.mean():.2f} [{low:.2f}, {high:.2f}]",
            "never": int((of == 0).sum()),
            "few": int(solved[of.index].between(*FEW).sum()),
            "most": int((of > 0.6).sum()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def measured(records: "pd.DataFrame", prompts: Sequence[Prompt]) -> "pd.DataFrame":
    """Finished records with the columns of MEASURES, `category`, and `correct`.

    Returns:
        `correct`: how many of a run's samples pass all checks, of `samples`.
    """
    found = tables.finished(records)
    found = found.sort_values("label", key=lambda of: of.map(LABELS.index), kind="stable")
    by_id = {p.id: p for p in prompts}
    loose = load_reward("verifiable-loose")
    read = loose.score([by_id[x] for x in found["prompt"]], list(found["response"]))
    return found.assign(
        strict=(found["reward"] == 1).astype(float),
        loose=(read == 1).double().numpy(),
        soon=[soon(h) for h in found["history"]],
        correct=[sum(h["solved"]) for h in found["history"]],
        passing=[
            sum(h["solved"]) / n for h, n in zip(found["history"], found["samples"], strict=True)
        ],
        category=[by_id[x].category for x in found["prompt"]],
    )


def contrasts(measured: "pd.DataFrame") -> "pd.DataFrame":
    """The secondary contrasts of the protocol, as `declared.secondary` has them."""
    return declared.secondary(measured, SECONDARY, PRIMARY, MEASURES)


def further_contrasts(measured: "pd.DataFrame") -> "pd.DataFrame":
    """Those of the row that was declared later: a family of their own."""
    return declared.secondary(measured, FURTHER, measures=MEASURES)


def loopholes(measured: "pd.DataFrame") -> "pd.DataFrame":
    """What passing responses are like beside those of the policy itself, where both pass.

    Args:
        measured: with the columns of `measures.measured` as well.

    Returns:
        Index: rows. Columns: runs, how many are compared; and the difference of the mean to the
        policy's with its interval, over prompts and seeds, as text, by the judge (if there is one),
        coherence, surprisal and length.
    """
    import pandas as pd

    passing = measured[measured["strict"] == 1]
    keys = passing.groupby("label")[["prompt", "seed"]].apply(
        lambda x: set(map(tuple, x.to_numpy()))
    )
    columns = [x for x in ("judged", "coherence", "surprisal", "length") if x in passing]
    rows = {}
    for label in (x for x in ROWS if x in keys and POLICY in keys):
        row: dict[str, Any] = {"runs": len(keys[label] & keys[POLICY])}
        for column in columns if row["runs"] else ():
            gap = declared.nested(passing, label, POLICY, column).contrast
            row[column] = f"{gap.signed}"
        rows[label] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def least_liked(measured: "pd.DataFrame", prompts: Sequence[Prompt]) -> "pd.DataFrame":
    """Of each row the passing response with the lowest score by the judge, the first of equals."""
    import pandas as pd

    texts = {p.id: p.text for p in prompts}
    rows = {}
    for label, of in measured[measured["strict"] == 1].groupby("label", sort=False):
        if "judged" in of and of["judged"].notna().any():
            one = of.loc[of["judged"].idxmin()]
            about = {"prompt": texts[one["prompt"]], "response": one["response"]}
            rows[label] = about | {"judged": round(one["judged"], 2)}
    return pd.DataFrame.from_dict(rows, orient="index")


def accuracy(measured: "pd.DataFrame") -> "pd.DataFrame":
    """One row per label and category, and for all together: what passes.

    Returns:
        Index: label, category ("all" for both). Columns: prompts, and MEASURES, each a mean over
        prompts and seeds with its 95% bootstrap interval over prompts, as text.
    """
    import pandas as pd

    both = pd.concat([measured.assign(category="all"), measured])
    rows = {}
    parts = [(x, of) for x, of in both.groupby("label", sort=False)]
    each = [(x, c, own) for x, of in parts for c, own in of.groupby("category", sort=False)]
    for label, category, of in each:
        row: dict[str, Any] = {"prompts": of["prompt"].nunique()}
        for name in MEASURES:
            means = of.groupby("prompt")[name].mean()
            low, high = bootstrap(means)
            row[name] = f"{means.mean():.2f} [{low:.2f}, {high:.2f}]"
        rows[label, category] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["label", "category"])


def pass_at_k(measured: "pd.DataFrame", label: str = POLICY) -> "pd.DataFrame":
    """pass@k of a label whose samples are drawn alike, k = 1, 2, 4, ... by category.

    Returns:
        Columns: category ("all" for both), k, prompt, pass (by `metrics.pass_at_k`, seeds pooled).
    """
    import pandas as pd

    own = measured[measured["label"] == label]
    pooled = own.groupby(["category", "prompt"], sort=False)[["samples", "correct"]].sum()
    most = int(own["samples"].min())
    rows = [
        {
            "category": name,
            "k": 2**i,
            "prompt": prompt,
            "pass": metrics.pass_at_k(int(n), int(c), 2**i),
        }
        for (category, prompt), (n, c) in zip(pooled.index, pooled.to_numpy(), strict=True)
        for i in range(most.bit_length())
        for name in (category, "all")
    ]
    return pd.DataFrame(rows)


def sparseness(measured: "pd.DataFrame") -> "pd.DataFrame":
    """What so coarse a reward does to the weights, by label: means over runs.

    Returns:
        Columns: `all equal`, the share of iterations whose samples have one and the same reward, so
        that weights say nothing; `spread`, the standard deviation of the rewards in the other ones;
        `ESS` there, NaN for methods without weights; `first`, `last`, the share of samples that pass
        in the first and the last iteration.
    """
    import numpy as np
    import pandas as pd

    rows = {}
    for label, of in measured.groupby("label", sort=False):
        spread = np.array([h["reward_std"] for h in of["history"]])  # (runs, iterations)
        ess = np.array([pd.Series(h["ess"], dtype=float) for h in of["history"]])
        solved = np.array([h["solved"] for h in of["history"]]) / of["config"].iloc[0]["n"]
        told = spread > 1e-9
        rows[label] = {
            "all equal": 1 - told.mean(),
            "spread": spread[told].mean() if told.any() else float("nan"),
            "ESS": ess[told].mean() if told.any() else float("nan"),
            "first": solved[:, 0].mean(),
            "last": solved[:, -1].mean(),
        }
    return pd.DataFrame(rows).T
