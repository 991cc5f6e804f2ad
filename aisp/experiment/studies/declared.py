"""Declared contrasts: one that is primary, and others whose p-values are adjusted for their number.

Intervals are a bootstrap over prompts, then seeds within a prompt; differences are taken within a
prompt and seed first, as two methods share their noise there.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from aisp.experiment.report.findings import Contrast, contrast
from aisp.experiment.report.tables import finished
from aisp.intervals import holm, nested_bootstrap

if TYPE_CHECKING:
    import pandas as pd


class Tested(NamedTuple):
    """A contrast and its p-value."""

    contrast: Contrast
    p: float


def nested(
    records: "pd.DataFrame",
    first: str,
    second: str,
    measure: str = "reward",
    *,
    draws: int = 10_000,
) -> Tested:
    """First minus second, over the prompts and seeds that both finished.

    Args:
        records: from `aisp.experiment.load`, or with further columns from `measures.measured`.
        measure: the column that is compared, such as "reward" or "judged".

    Raises:
        ValueError: a label or a column that the records do not have.
    """
    named = contrast(records, first, second, measure, draws=2)  # checks, and the names
    two = finished(records).pivot_table(index=["prompt", "seed"], columns="label", values=measure)
    gaps = (two[first] - two[second]).dropna() if {first, second} <= set(two) else None
    by_prompt = [] if gaps is None else [of.tolist() for _, of in gaps.groupby(level="prompt")]
    found = nested_bootstrap(by_prompt, draws=draws)
    size = (len(by_prompt), found.mean, found.low, found.high)
    return Tested(Contrast(first, second, *size, named.measure), found.p)


def outcome(primary: Contrast, judged: Contrast | None = None) -> str:
    """What became of the primary contrast, which was declared to be above 0.

    Args:
        judged: the same pair by the judge, which says whether a gain is one in the reward only.
    """
    words = {"higher": "confirmed", "undecided": "left undecided", "lower": "refuted"}
    said = f"The primary contrast is **{words[primary.verdict]}**: {primary.sentence()}"
    if judged is None:
        return said
    said += f" {judged.sentence()}"
    if primary.verdict == "higher" and judged.verdict != "higher":
        said += " So it is a gain **in the reward only**: the judge does not confirm it."
    return said


def secondary(
    records: "pd.DataFrame",
    pairs: Iterable[tuple[str, str]],
    primary: tuple[str, str] | None = None,
    measures: Sequence[str] = ("reward", "judged"),
) -> "pd.DataFrame":
    """The secondary contrasts: each pair by each measure, and a primary one by all but the first.

    Returns:
        Index: "FIRST minus SECOND, by MEASURE". Columns: difference, low, high (not adjusted); p;
        p_holm, adjusted for the number of rows; verdict, "higher" or "lower" where p_holm < 0.05.
    """
    import pandas as pd

    asked = [(*pair, measure) for measure in measures for pair in pairs]
    asked += [(*primary, measure) for measure in measures[1:] if primary]
    there = set(finished(records)["label"])
    rows = {}
    for first, second, measure in asked:
        if {first, second} <= there and measure in records:
            found, p = nested(records, first, second, measure)
            row = {"difference": found.difference, "low": found.low, "high": found.high, "p": p}
            rows[f"{first} minus {second}, by {found.measure}"] = row
    columns = ["difference", "low", "high", "p"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    table["p_holm"] = pd.Series(holm(table["p"].to_dict()), dtype=float)
    sign = table["difference"].map(lambda x: "higher" if x > 0 else "lower")
    table["verdict"] = sign.where(table["p_holm"] < 0.05, "undecided")
    return table


def p_value(p: float) -> str:
    """As it is quoted; a bootstrap of 10,000 draws has none below 0.0002."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def summed_up(table: "pd.DataFrame") -> list[str]:
    """What the secondary contrasts support once their number is accounted for.

    Those told from 0 have their p-values, not adjusted.
    """
    said = [f"{len(table)} secondary contrasts, p-values adjusted by Holm at 5% for all together."]
    words = {"higher": "Above 0", "lower": "Below 0", "undecided": "Not distinguishable from 0"}
    for verdict, what in words.items():
        of = table[table["verdict"] == verdict]
        listed = [
            f"{name} ({row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"
            f"{'' if verdict == 'undecided' else f', {p_value(row.p)}'})"
            for name, row in zip(of.index, of.itertuples(), strict=True)
        ]
        said.append(f"{what}: {'; '.join(listed) or 'none'}.")
    return said
