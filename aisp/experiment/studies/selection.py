"""What other rules would have returned from the same candidates: judge against reward (notebook 11).

A rule's expected reward and judge's score at a budget of n samples, for every run of a pool
(`aisp.experiment.studies.pool`). Where the candidates of a run are exchangeable (best-of-n, noise only), the
budget is an average over subsets of n of them; where later ones depend on earlier ones, as in an
adaptive search, it is the first n. A rule over-optimizes the reward where its judge's score falls
while its reward rises.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from aisp.experiment.report.findings import Contrast, grouped
from aisp.experiment.report.measures import computed_once
from aisp.experiment.studies.pool import Candidates, read
from aisp.intervals import Nested, nested_bootstrap
from aisp.metrics import selection

if TYPE_CHECKING:
    import pandas as pd

BEST = "best-of-n"


class Rule(NamedTuple):
    """How one of n candidates is chosen; at most one of these is given, and none is best-of-n.

    Attributes:
        lam: of soft best-of-n.
        beta: of inference-time pessimism.
        k: of the ensemble: best-of-n by the refits' mean minus k times their spread.
        poisson: best-of-n where n is random with the budget as its mean.
    """

    lam: float | None = None
    beta: float | None = None
    k: float | None = None
    poisson: bool = False


RULES: dict[str, Rule] = {
    BEST: Rule(),
    "best-of-Poisson": Rule(poisson=True),
    **{f"soft best-of-n, lam = {lam:g}": Rule(lam=lam) for lam in (0.1, 0.3, 1.0)},
    **{f"pessimism, beta = {beta:g}": Rule(beta=beta) for beta in (0.01, 0.03, 0.1)},
    **{f"ensemble, k = {k:g}": Rule(k=k) for k in (1.0, 2.0, 4.0)},
}


def probabilities(
    rule: Rule, rewards: Tensor, members: Tensor, n: int, *, any_order: bool
) -> Tensor | None:
    """With which probability each candidate is returned at a budget of n samples.

    Args:
        rewards: (S,); members: (S, K), the rewards by refits.
        any_order: whether the candidates are exchangeable; False takes the first n. (The mean that the
            ensemble's members are brought to is over all candidates, or over the first n.)

    Returns:
        (S,) float64; None where the pool is too small for best-of-Poisson, which is also left out
        of searches whose candidates have an order.
    """
    S = len(rewards)
    if not any_order:
        rewards, members = rewards[:n], members[:n]
    scores = rewards if rule.k is None else selection.pessimistic(members, rule.k)
    choose = partial(selection.best_of_n, n=n)
    if rule.lam is not None:
        choose = partial(selection.soft, lam=rule.lam)
    elif rule.beta is not None:
        choose = partial(selection.pessimism, beta=rule.beta)
    if not any_order:
        if rule.poisson:
            return None
        return torch.nn.functional.pad(choose(scores), (0, S - n))
    if rule.poisson:
        try:
            return selection.best_of_poisson(scores, n)
        except ValueError:  # so large a mean needs more candidates than there are
            return None
    if rule.lam is None and rule.beta is None:
        return choose(scores)
    return selection.over_subsets(choose, scores, n)


def curves(
    runs: Sequence[Candidates],
    exchangeable: Mapping[str, bool],
    rules: Mapping[str, Rule] = RULES,
    budgets: Sequence[int] | None = None,
) -> "pd.DataFrame":
    """Expected reward and judge's score of what each rule returns, by budget.

    Args:
        runs: of a pool.
        exchangeable: for each label, as the pool's note says.
        budgets: numbers of samples; None is 1, 2, 4, ... and all.

    Returns:
        One row per run, rule and budget: label, rule, prompt, seed, samples, reward, judged (NaN
        where a candidate has no judge's score). Rows that a pool is too small for are left out.
    """
    import pandas as pd

    rows = []
    for run in runs:
        reward, judged, members = (
            torch.from_numpy(getattr(run, name)).double()
            for name in ("reward", "judged", "members")
        )
        S = len(reward)
        powers = [2**i for i in range(S.bit_length()) if 2**i < S]
        for n in [*powers, S] if budgets is None else [n for n in budgets if n <= S]:
            for name, rule in rules.items():
                any_order = exchangeable[run.label]
                p = probabilities(rule, reward, members, n, any_order=any_order)
                if p is not None:
                    about = dict(zip(("label", "prompt", "seed"), run.key, strict=True))
                    found = {
                        column: selection.expected(p, values).item()
                        for column, values in {"reward": reward, "judged": judged}.items()
                    }
                    rows.append(about | {"rule": name, "samples": n} | found)
    columns = ["label", "rule", "prompt", "seed", "samples", "reward", "judged"]
    return pd.DataFrame(rows, columns=columns)


def stored_curves(path: Path, rules: Mapping[str, Rule] = RULES) -> "pd.DataFrame":
    """`curves` of a pool, kept in NAME.curves.csv beside it, and read from there the next time.

    Raises:
        FileNotFoundError: no pool.
    """
    runs, note = read(path), json.loads(path.with_name(path.name + ".json").read_text())
    orders = {label: of["exchangeable"] for label, of in note["labels"].items()}
    made = {"rules": {name: rule._asdict() for name, rule in rules.items()}, "any order": orders}
    compute = partial(curves, runs, orders, rules)
    return computed_once(path.with_suffix(".curves.csv"), [path], compute, **made)


def means(curves: "pd.DataFrame") -> "pd.DataFrame":
    """Means over prompts of the prompts' means over seeds, by label, rule and samples, in order."""
    names = ["label", "rule", "samples"]
    by_prompt = curves.groupby([*names, "prompt"], sort=False)[["reward", "judged"]].mean()
    return by_prompt.groupby(names, sort=False).mean().reset_index()


def table(curves: "pd.DataFrame", label: str, samples: int) -> "pd.DataFrame":
    """Every rule at one number of samples from one method's candidates, as text for print.

    Intervals are 95%, a bootstrap over prompts, then seeds within a prompt.

    Returns:
        Index: rules. Columns: reward, judge, and each minus best-of-n on the same candidates.

    Raises:
        ValueError: no rows of this label and number of samples.
    """
    import pandas as pd

    rows = curves[(curves["label"] == label) & (curves["samples"] == samples)]
    if rows.empty:
        own = curves[curves["label"] == label]
        raise ValueError(
            f"no rows of {label!r} at {samples} samples; there are labels "
            f"{', '.join(curves['label'].unique())}, and of this one {own['samples'].unique().tolist()}"
        )
    by_run = rows.set_index(["rule", "prompt", "seed"])[["reward", "judged"]]
    best, cells = by_run.loc[BEST], {}
    for rule in rows["rule"].unique():
        own = by_run.loc[rule]
        cell = {
            name: "{0.mean:.2f} [{0.low:.2f}, {0.high:.2f}]".format(_over_prompts(own[column]))
            for name, column in {"reward": "reward", "judge": "judged"}.items()
        }
        for name, column in {"reward": "reward", "judge": "judged"}.items():
            if rule != BEST:
                gap = _over_prompts((own - best)[column])
                cell[f"{name} minus {BEST}"] = f"{gap.mean:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]"
        cells[rule] = cell
    return pd.DataFrame.from_dict(cells, orient="index").rename_axis("rule").fillna("")


def sentences(curves: "pd.DataFrame", label: str, samples: int) -> list[str]:
    """What the table's intervals support: which rules differ from best-of-n, by reward and by judge.

    Args:
        curves, label, samples: as `table` takes them.
    """
    rows = curves[(curves["label"] == label) & (curves["samples"] == samples)]
    by_run = rows.set_index(["rule", "prompt", "seed"])[["reward", "judged"]]
    said = []
    for column, measure in {"reward": "reward", "judged": "judge"}.items():
        found = {}
        for rule in (x for x in rows["rule"].unique() if x != BEST):
            gap = _over_prompts((by_run.loc[rule] - by_run.loc[BEST])[column])
            size = (rows["prompt"].nunique(), gap.mean, gap.low, gap.high)
            found[rule] = Contrast(rule, BEST, *size, measure)
        what = f"By the {measure}, on the candidates of {label}, **another rule minus best-of-n**"
        said.append(grouped(what, found))
    return said


def _over_prompts(values: "pd.Series") -> Nested:
    return nested_bootstrap([of.tolist() for _, of in values.groupby(level="prompt")])
