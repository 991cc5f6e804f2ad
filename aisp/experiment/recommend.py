"""With a budget of N samples, which method? README's answer, computed from the records of notebook 11."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aisp.experiment.report.comparisons import whole_seeds
from aisp.experiment.report.findings import Contrast
from aisp.experiment.report.tables import finished
from aisp.experiment.store.reading import load
from aisp.experiment.studies import declared, passing, verified
from aisp.experiment.studies.contenders import (
    AISP,
    BEST,
    CONTENDERS,
    GROUPS,
    NOISE,
    PRIMARY,
    SECONDARY,
    SHOWN,
    TRAINED,
    trial_table,
)
from aisp.experiment.studies.places import NAMES, TOGETHER, UNSEEN, Stored, in_order, name
from aisp.experiment.studies.standing import Standing, advisable, astray, by_measure, standing

if TYPE_CHECKING:
    import pandas as pd

WORDS = {"higher": "above", "undecided": "not told from", "lower": "below"}
NAMED = 4  # as many rows are named one by one, where more cannot be told from the highest


def checked(folder: Path) -> "pd.DataFrame | None":
    """The records of notebook 12 with their measures, of whole seeds; None where there are none."""
    path = verified.path_of("test", folder=folder)
    if not path.exists():
        return None
    records = verified.whole(load(path))
    return passing.measured(records, verified.prompts_of("test")) if len(records) else None


def answer(
    found: Mapping[tuple[str, int], "pd.DataFrame"], checked: "pd.DataFrame | None" = None
) -> str:
    """A table in Markdown: budgets and sets against what stands highest by reward and by judge.

    Where the highest row is not `advisable`, the highest of those that are is named too. Without a
    judge's scores, their column is empty.

    Args:
        checked: records under a program's checks, with their measures: a column of their own, where
            the budget is theirs.
    """
    last = " soonest where a program checks (prompts, seeds) |" if checked is not None else ""
    judge = {by for of in found.values() for by, x in by_measure(of).items() if x != "reward"}
    heading = f"highest{min(judge, default=' by the judge')}"
    lines = [
        f"| samples | prompts, seeds | highest by the reward | {heading} |{last}",
        "|---|---|---|---|" + "---|" * bool(last),
    ]
    for (which, samples), records in in_order(found):
        whole = finished(records)
        seeds = whole["seed"].nunique()
        cells = [
            _cell(records, measure, list(CONTENDERS)) if measure in records else ""
            for measure in by_measure(records).values()
        ]
        size = f"{NAMES[which]} {whole['prompt'].nunique()}, {seeds}"
        if checked is not None:
            same = (which, samples) == ("builtin", checked["samples"].max())
            cells.append(_checked_cell(checked) if same else "")
        lines.append(f"| {samples} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _checked_cell(checked: "pd.DataFrame") -> str:
    size = f"{checked['prompt'].nunique()}, {checked['seed'].nunique()}"
    return f"{_cell(checked, 'soon', list(verified.ROWS))} ({size})"


def _cell(records: "pd.DataFrame", measure: str, labels: Sequence[str]) -> str:
    top, able = standing(records, measure, labels), advisable(records)
    if top.first in able:
        return _said(top)
    others = standing(records, measure, [x for x in labels if x in able])
    return f"{_said(top)}; of the rows that can be advised {_said(others)}"


def _said(found: Standing) -> str:
    bold = "**" * (found.lead.verdict == "higher")
    said = f"{bold}{found.first}{bold}, {found.lead.signed} over {found.lead.second}"
    return said + (f" (not told from it: {_listed(found.level)})" if found.level else "")


def _listed(level: Sequence[str]) -> str:
    """Rows by name; of many only how many they are, and best-of-n if it is one."""
    if len(level) <= NAMED:
        return ", ".join(f"*{x}*" for x in level)
    named = [BEST] if BEST in level else []
    return " and ".join([*named, f"{len(level) - len(named)} other rows"])


def outcome(found: Mapping[tuple[str, int], "pd.DataFrame"]) -> str:
    """What became of the primary contrast, and of the same pair by the judge."""
    return declared.outcome(*_primary_pair(found["builtin", 128]))


def elsewhere(
    found: Mapping[tuple[str, int], "pd.DataFrame"], which: str, samples: int
) -> dict[str, list[str]]:
    """The declared contrasts at every set and budget but this one, in sentences, by `name`.

    Secondary contrasts are adjusted within their group of rows, set and budget.
    """
    said = {}
    for place, records in in_order(found):
        if place == (which, samples):
            continue
        pair = [x.sentence() for x in _primary_pair(records)]
        sentences = [f"The pair of the primary contrast: {' '.join(pair)}"]
        for group, pairs in SECONDARY.items():
            table = declared.secondary(records, pairs, PRIMARY if group == "first" else None)
            if len(table):
                one, *rest = declared.summed_up(table)
                sentences += [f"Of the {group} group: {one}", *rest]
        said[name(*place)] = sentences
    return said


def _primary_pair(records: "pd.DataFrame") -> tuple[Contrast, Contrast]:
    """By the reward, and by the judge."""
    by_reward, by_judge = (
        declared.nested(records, *PRIMARY, x).contrast for x in ("reward", "judged")
    )
    return by_reward, by_judge


def leads(found: Mapping[tuple[str, int], "pd.DataFrame"]) -> "pd.DataFrame":
    """The rows of `contenders.SHOWN` over best-of-n: single sets, all together, every budget.

    Returns:
        Columns: place (`name`), prompts, seeds, label, measure ("reward", "judged" or "at_length"),
        difference, low, high (95%, over prompts and seeds, not adjusted), verdict.
    """
    import pandas as pd

    rows = []
    for place, records in in_order({x: of for x, of in found.items() if x[0] != UNSEEN}):
        there = set(records["label"])
        for label in (x for x in SHOWN if x != BEST and x in there):
            for measure in (x for x in ("reward", "judged", "at_length") if x in records):
                gap = declared.nested(records, label, BEST, measure).contrast
                seeds = records["seed"].nunique()
                about = {"place": name(*place), "prompts": gap.prompts, "seeds": seeds}
                about |= {"label": label, "measure": measure, "difference": gap.difference}
                rows.append(about | {"low": gap.low, "high": gap.high, "verdict": gap.verdict})
    return pd.DataFrame(rows)


def advice(found: Stored, checked: "pd.DataFrame | None" = None) -> list[str]:
    """The table's answer at the main budget, by the reward and by the judge, in a first paragraph.

    It is of `advisable` rows, and of all sets together where these are stored, else of the built-in one.
    Then, one by one: rows that stand higher and are not advised; where the row that it names first, and
    those that are not told from it, stand on UNSEEN sets, at larger budgets, and where a program checks;
    and what is highest where more rows are stored.

    Args:
        checked: as `answer` takes it.
    """
    main = _main(found)
    records = found[main]
    able, (judged_by, judge) = advisable(records), list(by_measure(records).items())[1]
    by_reward = standing(records, "reward", able)
    leads = [
        declared.nested(records, x, BEST, judge).contrast
        for x in able
        if x != BEST and x in set(records["label"])
    ]
    above = [f"{x.first} ({x.signed})" for x in leads if x.verdict == "higher"]
    length = " and at equal length" * (judge == "at_length")
    nothing = by_reward.first == BEST or by_reward.lead.verdict != "higher"
    if nothing:
        said = "By the reward no row is told from best-of-n at its tuned temperature: run that."
    else:
        others = f" (not told from it: {_listed(by_reward.level)})" * bool(by_reward.level)
        said = f"**If a learned reward is what you want**, run {by_reward.first}{others}."
    if not above:
        said += (
            " **If it only stands in for what you want**, best-of-n at a tuned temperature will do: "
            f"by a judge that was not optimized{length}, no row is above it."
        )
    else:
        said += (
            f" **By a judge that was not optimized**{length}, above best-of-n: {', '.join(above)}."
        )
    said += f" This is from {name(*main)} ({_counted(records)})."
    if nothing:
        return [said]
    few = len(by_reward.level) < NAMED and BEST not in by_reward.level
    rows = [by_reward.first, *(by_reward.level if few else [])]
    further = [" ".join([said, *(_texts(x, records) for x in rows)]).rstrip()]
    ahead = declared.nested(records, rows[0], BEST).contrast.difference
    for x in astray(records):
        if declared.nested(records, x, BEST).contrast.difference > ahead:
            further.append(_stray(x, records, judged_by, judge))
    if (UNSEEN, 128) in found:
        where = f"On {NAMES[UNSEEN]} alone, which no choice of rows saw"
        further.append(_against_best(rows, where, found[UNSEEN, 128]))
    for samples in sorted(n for which, n in found if which == "builtin" and n > 128):
        where = f"At {samples:,} samples of the built-in set"
        further.append(_against_best(rows, where, found["builtin", samples]))
    if checked is not None:
        where = "Where a program checks, by how soon a response passes"
        further.append(_against_best(rows, where, checked, {"": "soon"}))
    first = found["builtin", 128]
    more = sorted(set(first["label"]) - set(records["label"]) - set(TRAINED))
    if more:
        tops = {by: standing(first, x, advisable(first)) for by, x in by_measure(first).items()}
        told = "; ".join(f"highest{by} is {_said(top)}" for by, top in tops.items())
        said = f"Of all rows of the built-in set that can be advised, {told}."
        unlike = dict.fromkeys(x.first for x in tops.values() if x.first not in (*rows, BEST))
        further.append(" ".join([said, *(_texts(x, first) for x in unlike)]).rstrip())
    return further


def _texts(row: str, records: "pd.DataFrame") -> str:
    """How the responses of a row differ from those of best-of-n, where that was measured."""
    columns = ("coherence", "per_token", "length")
    if not set(columns) <= set(records):
        return ""
    coherence, surprisal, length = (
        declared.nested(records, row, BEST, x).contrast.signed for x in columns
    )
    return (
        f"Responses of {row} differ from those of best-of-n by {coherence} in coherence with the "
        f"prompt, by {surprisal} nats per token in surprisal under the policy, and by {length} tokens."
    )


def _stray(row: str, records: "pd.DataFrame", judged_by: str, judge: str) -> str:
    """Why a row is not advised that stands higher than the one that is."""
    by_reward, by_judge = (
        declared.nested(records, row, BEST, x).contrast for x in ("reward", judge)
    )
    means = finished(records).groupby("label")[["per_token", "length"]].mean()
    own, best = means.loc[row], means.loc[BEST]
    return (
        f"**Not advised: {row}.** It stands higher by the reward ({by_reward.signed} over best-of-n), "
        f"but its responses leave what the policy says: {own['per_token']:.1f} nats per token in "
        f"surprisal, where best-of-n has {best['per_token']:.1f}, and {own['length']:.0f} tokens for "
        f"{best['length']:.0f};{judged_by} it is {WORDS[by_judge.verdict]} best-of-n ({by_judge.signed})."
    )


def _main(found: Stored) -> tuple[str, int]:
    """All sets together at 128 samples where they are stored, else the built-in one."""
    return (TOGETHER, 128) if (TOGETHER, 128) in found else ("builtin", 128)


def _counted(records: "pd.DataFrame") -> str:
    whole = finished(records)
    prompts, seeds = whole["prompt"].nunique(), whole["seed"].nunique()
    return f"{prompts} prompts, {seeds} seed{'s' * (seeds != 1)}"


def _against_best(
    rows: Sequence[str],
    where: str,
    records: "pd.DataFrame",
    measures: Mapping[str, str] | None = None,
) -> str:
    """Rows against best-of-n somewhere, in a sentence; by the reward and the judge if nothing else is given."""
    measures = by_measure(records) if measures is None else measures
    said, there = [], set(records["label"])
    for row in (x for x in rows if x in there):
        gaps = {by: declared.nested(records, row, BEST, x).contrast for by, x in measures.items()}
        told = (f"{WORDS[gap.verdict]} it{by} ({gap.signed})" for by, gap in gaps.items())
        said.append(f"{row} is {', and '.join(told)}")
    said += [f"{x} is not stored" for x in rows if x not in there]
    return f"{where} ({_counted(records)}), against best-of-n, {'; '.join(said)}."


def published(found: Stored) -> str:
    """AISP as published against best-of-n at its tuned temperature and noise only, in sentences."""
    main = _main(found)
    table = declared.secondary(found[main], SECONDARY["first"], PRIMARY)
    pairs = {
        (AISP, BEST): "minus best-of-n at its tuned temperature",
        (AISP, NOISE): "minus noise only",
    }
    where = f"**AISP as published**, in {name(*main)} ({_counted(found[main])})"
    said = f"{where}: {_told(table, pairs)}"
    if "at_length" in found[main]:
        gap = declared.nested(found[main], AISP, BEST, "at_length").contrast
        said += f" At equal length, which was not declared, the judge has it {WORDS[gap.verdict]} "
        said += f"best-of-n: {gap.signed}."
    return said


def parts(found: Stored) -> str:
    """What the control variate owes to alpha = 1 alone, in two sentences; empty if it is not stored."""
    records = found["builtin", 128]
    table = declared.secondary(records, SECONDARY["fourth"])
    if not len(table):
        return ""
    pairs = {(x, y): f"*{x}* minus *{y}*" for x, y in SECONDARY["fourth"]}
    where = f"**What the control variate owes to alpha = 1**, built-in set ({_counted(records)})"
    return f"{where}, AISP having its own tuned sigma: {_told(table, pairs)}"


def _told(table: "pd.DataFrame", pairs: Mapping[tuple[str, str], str]) -> str:
    """Contrasts of a table of secondary ones by both measures, and which of them are told from 0."""
    own = table.loc[[f"{x} minus {y}, by {m}" for x, y in pairs for m in ("reward", "judge")]]
    signed = [f"{r.difference:+.2f} [{r.low:+.2f}, {r.high:+.2f}]" for r in own.itertuples()]
    said = [
        f"{what}, {signed[2 * i]} by the reward and {signed[2 * i + 1]} by the judge"
        for i, what in enumerate(pairs.values())
    ]
    told = [x for x, verdict in own["verdict"].items() if verdict != "undecided"]
    return (
        f"{'; '.join(said)}. Adjusted by Holm with the {len(table)} secondary contrasts, told from 0 "
        f"of these: {', '.join(told) or 'none'}."
    )


def tuned_gain(found: Stored) -> str:
    """AISP as published minus best-of-n at its tuned temperature, by the reward and by the judge."""
    main = _main(found)
    gaps = {x: declared.nested(found[main], AISP, BEST, x).contrast for x in ("reward", "judged")}
    return f"{gaps['reward'].signed} by the reward, {gaps['judged'].signed} by the judge"


class Further(NamedTuple):
    """Rows of another group than the first, as far as they are stored."""

    seeds: list[int]
    trials: "pd.DataFrame"  # from `contenders.trial_table`
    contrasts: "pd.DataFrame"  # from `declared.secondary`


def further(measured: "pd.DataFrame", trials: "pd.DataFrame") -> dict[str, Further]:
    """Group -> what its rows say against the first group's, in the seeds in which all are whole.

    Args:
        measured: records of one set and budget, of all groups, with their measures.
        trials: records of the trials.
    """
    found = {}
    for group, labels in GROUPS.items():
        there = [x for x in labels if x in set(measured["label"])]
        if group == "first" or not there:
            continue
        whole = whole_seeds(measured, [*dict.fromkeys([*GROUPS["first"], *there])])
        if len(whole):
            seeds = sorted(whole["seed"].unique().tolist())
            contrasts = declared.secondary(whole, SECONDARY[group])
            found[group] = Further(seeds, trial_table(trials, there), contrasts)
    return found
