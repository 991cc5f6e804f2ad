"""What stands highest in notebook 11, by which measure, and which rows can be advised at all."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from aisp.experiment.report.findings import Contrast
from aisp.experiment.report.tables import finished
from aisp.experiment.studies import declared
from aisp.experiment.studies.contenders import BEST, CONTENDERS, SHOWN, TRAINED

if TYPE_CHECKING:
    import pandas as pd

STRAY = 2.0  # times best-of-n's surprisal per token: beyond it a row is not advised


class Standing(NamedTuple):
    """Where the rows stand by one measure: the highest, and those that cannot be told from it."""

    first: str
    lead: Contrast  # of the first one over best-of-n; over itself if best-of-n is first
    level: list[str]


def standing(records: "pd.DataFrame", measure: str, labels: Sequence[str]) -> Standing:
    """The row that is highest over best-of-n, within prompts and seeds.

    Args:
        records: with `measure`; of one set and budget.
        measure: a column, such as "reward", "judged" or "at_length".
        labels: the rows that are compared; those without records are left out.
    """
    there = set(finished(records)["label"])
    leads = {
        x: declared.nested(records, x, BEST, measure).contrast
        for x in labels
        if x in there and x != BEST
    }
    if not leads:
        return Standing(BEST, declared.nested(records, BEST, BEST, measure).contrast, [])
    first = max(leads, key=lambda x: leads[x].difference)
    if not leads[first].difference > 0:
        first = BEST
    others = [x for x in (BEST, *leads) if x != first]
    gaps = {x: declared.nested(records, first, x, measure).contrast for x in others}
    level = [x for x, gap in gaps.items() if gap.verdict != "higher"]
    # A lead of best-of-n is shown over the row that comes next.
    lead = leads[first] if first != BEST else min(gaps.values(), key=lambda gap: gap.difference)
    return Standing(first, lead, level)


def astray(records: "pd.DataFrame") -> list[str]:
    """Rows whose responses leave the policy: over STRAY times best-of-n's surprisal per token."""
    if "per_token" not in records:
        return []
    means = finished(records).groupby("label")["per_token"].mean()
    return [x for x in CONTENDERS if x in means and means[x] > STRAY * means[BEST]]


def advisable(records: "pd.DataFrame") -> list[str]:
    """The rows that the advice is of: those that need no training, and do not go astray."""
    left = {*TRAINED, *astray(records)}
    return [x for x in CONTENDERS if x not in left]


def by_measure(records: "pd.DataFrame") -> dict[str, str]:
    """The two measures of the answer, in words: the judge at equal length where that is stored."""
    if "at_length" in records:
        return {" by the reward": "reward", " by the judge at equal length": "at_length"}
    return {" by the reward": "reward", " by the judge": "judged"}


def texts(records: "pd.DataFrame") -> "pd.DataFrame":
    """What the responses of the shown rows are like, beside those of best-of-n.

    Args:
        records: from `places.stored`, of one set and budget.

    Returns:
        Index: rows. Columns: judge and judge at equal length, minus best-of-n, with intervals, as text;
        nats per token, coherence and tokens, means.
    """
    import pandas as pd

    means = finished(records).groupby("label")[["per_token", "coherence", "length"]].mean()
    means.columns = ["nats per token", "coherence", "tokens"]
    judged = [x for x in ("judged", "at_length") if x in records]
    rows = {}
    for label in (x for x in SHOWN if x in means.index):
        gaps = [] if label == BEST else [declared.nested(records, label, BEST, x) for x in judged]
        rows[label] = {gap.contrast.measure: gap.contrast.signed for gap in gaps}
    return pd.DataFrame.from_dict(rows, orient="index").join(means.round(2)).fillna("")


def text_findings(records: "pd.DataFrame") -> list[str]:
    """Which shown rows the judge still prefers at equal length, and which leave the policy."""
    said = []
    if {"judged", "at_length"} <= set(records):
        there = [x for x in SHOWN if x in set(records["label"]) and x != BEST]
        gaps = [declared.nested(records, x, BEST, "at_length").contrast for x in there]
        kinds = {"higher": "above best-of-n", "lower": "below it", "undecided": "not told from it"}
        parts = []
        for verdict, words in kinds.items():
            of = [f"{x.first} ({x.signed})" for x in gaps if x.verdict == verdict]
            parts.append(f"{words}: {', '.join(of) or 'none'}")
        said.append(f"By the judge at equal length, {'; '.join(parts)}.")
        shortest = finished(records).groupby("label")["length"].mean()[there].idxmin()
        moved = records.assign(moved=records["judged"] - records["at_length"])
        gain = declared.nested(moved, shortest, BEST, "moved").contrast
        said.append(
            f"Cutting both to equal length moves the judge by {gain.signed} in favor of best-of-n, "
            f"against {shortest}, the row of the shortest responses."
        )
    means = finished(records).groupby("label")["per_token"].mean()
    left = ", ".join(f"{x} ({means[x]:.1f})" for x in astray(records)) or "none"
    said.append(
        f"Over {STRAY:g} times best-of-n's surprisal per token ({means[BEST]:.1f} nats): {left}."
    )
    return said
