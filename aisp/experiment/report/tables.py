r"""From the records of experiments to tables: means with intervals, paired differences, wins.

From what `aisp.experiment.load` returns, `summary`, `paired` and `comparison` make
tables of numbers; `table` makes one for print, which `markdown` and `latex` lay out. Records
that failed, and those of prompts that were interrupted, at a smaller budget than the others, enter
no mean; `summary` and `table` count them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aisp.display import printable
from aisp.intervals import bootstrap

if TYPE_CHECKING:
    import pandas as pd

_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    # At the start of a row, `\\` would take these two as its arguments.
    | {"[": "{[}", "*": "{*}"}
)


def finished(records: "pd.DataFrame") -> "pd.DataFrame":
    """The records that neither failed nor were interrupted."""
    whole = records["reward"].notna()
    if "interrupted" in records:
        whole &= ~records["interrupted"].astype(bool)
    return records[whole]


def stopped_after(records: "pd.DataFrame", iterations: int) -> "pd.DataFrame":
    """Records as if their runs had stopped after this many iterations.

    No method depends on the number of iterations to come, so the first iterations of a long run
    are a short run.

    Args:
        records: from `load`, with the column `improvements`; shorter ones and failed ones drop out.
    """
    import pandas as pd

    rows = []
    for one in finished(records).to_dict("records"):
        done = len(one["history"]["iteration"])
        if done < iterations:
            continue
        history = {name: column[:iterations] for name, column in one["history"].items()}
        samples = one["samples"] * iterations // done
        calls = history.get("reward_calls")  # without: every sample is scored once
        better = [x for x in one["improvements"] if x["iteration"] < iterations]
        rows.append(
            one
            | {"config": one["config"] | {"kappa": iterations}}
            | {"reward": better[-1]["reward"], "response": better[-1]["response"]}
            | {"samples": samples, "reward_calls": samples if calls is None else sum(calls)}
            | {"tokens": sum(history["tokens"]), "seconds": sum(history["seconds"])}
            | {"history": history, "improvements": better}
        )
    return pd.DataFrame(rows, columns=records.columns)


def with_histories(records: "pd.DataFrame", columns: Mapping[str, str]) -> "pd.DataFrame":
    """Records with columns of their histories, each the mean over the record's iterations.

    Args:
        records: from `load`.
        columns: column of the history -> its name in the table. A record without one has NaN there.
    """
    import pandas as pd

    means = {
        name: [pd.Series((h or {}).get(column), dtype=float).mean() for h in records["history"]]
        for column, name in columns.items()
    }
    return records.assign(**means)


def summary(records: "pd.DataFrame", *, draws: int = 10_000, seed: int = 0) -> "pd.DataFrame":
    """Mean best reward per label with a bootstrap 95% interval over prompts.

    Seeds of one prompt are averaged first: the statistical unit is the prompt, not the run.

    Returns:
        One row per label: prompts, reward, low, high; samples, reward_calls, tokens, seconds (means
        per record); failed (records that failed or were interrupted, and count in none of these).
    """
    import pandas as pd

    rows = {}
    for label, group in records.groupby("label", sort=False):
        whole = finished(group)
        by_prompt = whole.groupby("prompt")["reward"].mean()
        low, high = bootstrap(by_prompt.to_numpy(), draws=draws, seed=seed)
        rows[label] = {
            "prompts": len(by_prompt),
            "reward": by_prompt.mean(),
            "low": low,
            "high": high,
            **whole[["samples", "reward_calls", "tokens", "seconds"]].mean(),
            "failed": len(group) - len(whole),
        }
    return pd.DataFrame(rows).T


def paired(
    records: "pd.DataFrame", first: str, second: str, *, draws: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Mean difference of best reward, first minus second, over the prompts that both have.

    Returns:
        prompts; difference, with low and high; wins, the fraction of prompts where first is better,
        ties counted half, with wins_low and wins_high. Intervals are bootstrap 95% over prompts.

    Raises:
        ValueError: a label that the records do not have.
    """
    means = _by_prompt(records, list(dict.fromkeys([first, second])))  # a label itself: all 0
    difference = (means[first] - means[second]).dropna().sort_index().to_numpy()
    better = (difference > 0) + 0.5 * (difference == 0)
    low, high = bootstrap(difference, draws=draws, seed=seed)
    wins_low, wins_high = bootstrap(better, draws=draws, seed=seed)
    none = len(difference) == 0
    return {
        "prompts": len(difference),
        "difference": float("nan") if none else float(difference.mean()),
        "low": low,
        "high": high,
        "wins": float("nan") if none else float(better.mean()),
        "wins_low": wins_low,
        "wins_high": wins_high,
    }


def paired_by_iteration(records: "pd.DataFrame", first: str, second: str) -> "pd.DataFrame":
    """`paired`, had the runs stopped after their first, second, ... iteration.

    Args:
        records: whose labels share n; runs of fewer iterations keep their last best reward.

    Returns:
        One row per iteration: samples, difference, low, high.
    """
    import pandas as pd

    two = finished(records[records["label"].isin([first, second])])
    longest = max((len(h["reward_best"]) for h in two["history"]), default=0)
    rows = []
    for i in range(longest):
        so_far = [h["reward_best"][: i + 1][-1] for h in two["history"]]
        found = paired(two.assign(reward=so_far), first, second)
        samples = (i + 1) * two["config"].iloc[0]["n"]
        rows.append({"samples": samples} | {k: found[k] for k in ("difference", "low", "high")})
    return pd.DataFrame(rows)


def comparison(records: "pd.DataFrame", labels: Sequence[str]) -> "pd.DataFrame":
    """One row per prompt: its text, the reward of each label, samples and seconds of all.

    Raises:
        ValueError: a label that the records do not have.
    """
    index = ["prompt", "prompt_text"] if records["prompt_text"].notna().all() else ["prompt"]
    means = _by_prompt(records, labels, index)
    per_prompt = finished(records).groupby("prompt", sort=False)
    order = means.index.get_level_values("prompt")
    means["samples"] = per_prompt["samples"].max().loc[order].to_numpy()
    means["seconds"] = per_prompt["seconds"].sum().loc[order].to_numpy()
    return means.reset_index()


def table(
    records: "pd.DataFrame", against: str | None = None, *, draws: int = 10_000, seed: int = 0
) -> "pd.DataFrame":
    """`summary`, and `paired` against one of the labels, as the cells of a table for print.

    Args:
        records: from `load`.
        against: the label that every other one is compared with.

    Returns:
        Strings, one row per label. Every interval is a bootstrap 95% interval over prompts.

    Raises:
        ValueError: `against` is no label of the records.
    """
    import pandas as pd

    totals = summary(records, draws=draws, seed=seed)
    cells = pd.DataFrame(index=totals.index.rename("method"))
    cells["prompts"] = totals["prompts"].map("{:.0f}".format)
    cells["reward [95%]"] = [
        f"{t.reward:.2f} [{t.low:.2f}, {t.high:.2f}]" for t in totals.itertuples()
    ]
    if against is not None:
        pairs = [
            None if label == against else paired(records, label, against, draws=draws, seed=seed)
            for label in totals.index
        ]
        cells[f"minus {against} [95%]"] = [
            p and f"{p['difference']:+.2f} [{p['low']:+.2f}, {p['high']:+.2f}]" for p in pairs
        ]
        cells["wins [95%]"] = [
            p and f"{p['wins']:.0%} [{p['wins_low']:.0%}, {p['wins_high']:.0%}]" for p in pairs
        ]
    for column in ("samples", "reward_calls", "tokens"):
        cells[column.replace("_", " ")] = totals[column].map("{:.0f}".format)
    cells["seconds"] = totals["seconds"].map("{:.1f}".format)
    if totals["failed"].any():
        cells["failed or interrupted"] = totals["failed"].map("{:.0f}".format)
    return cells.fillna("").replace(r"^\+?nan.*", "", regex=True)  # of a label that only failed


def markdown(cells: "pd.DataFrame") -> str:
    """A table of strings in GitHub's Markdown, the index as first column."""

    def row(values):
        shown = (re.sub(r"([\\|*_`<])", r"\\\1", printable(value)) for value in values)
        return "| " + " | ".join(shown) + " |"

    rule = "|---|" + "---:|" * len(cells.columns)
    rows = [row([label, *values]) for label, values in zip(cells.index, cells.values, strict=True)]
    return "\n".join([row([cells.index.name, *cells.columns]), rule, *rows])


def latex(cells: "pd.DataFrame") -> str:
    """A table of strings as a LaTeX tabular with the rules of the booktabs package."""

    def row(first, others):
        # A minus is no hyphen: in the cells, which are numbers, it is set in math mode.
        others = [re.sub(r"-(?=\d)", "$-$", cell.replace("%", r"\%")) for cell in others]
        return " & ".join([printable(first).translate(_LATEX), *others]) + r" \\"

    names = [cells.index.name, *cells.columns]
    header = " & ".join(printable(name).translate(_LATEX) for name in names) + r" \\"
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            rf"\begin{{tabular}}{{l{'r' * len(cells.columns)}}}",
            r"\toprule",
            header,
            r"\midrule",
            *(row(x, values) for x, values in zip(cells.index, cells.values, strict=True)),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _by_prompt(
    records: "pd.DataFrame", labels: Sequence[str], index: Sequence[str] = ("prompt",)
) -> "pd.DataFrame":
    """Mean reward over seeds, one row per prompt and one column per label, NaN where all failed."""
    known = records["label"].unique()
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise ValueError(f"no records of {unknown}; labels are: {', '.join(map(repr, known))}")
    means = finished(records).pivot_table(
        index=list(index), columns="label", values="reward", aggfunc="mean", sort=False
    )
    return means.reindex(columns=list(labels))
