"""What the records of notebook 07 say: dial by dial, and along the iterations of its long runs.

A dial is a `Question` of `ablations`. Two differences answer it, both prompt by prompt: AISP at a
setting minus AISP at the standard setting (does the dial matter?), and AISP minus noise only at the
same setting (is it adaptation?).
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aisp.experiment.report import tables
from aisp.experiment.report.findings import Contrast, contrast, gap, grouped, moved
from aisp.experiment.studies.ablations import AISP, BEST, NOISE, TEMPERATURE, Question

if TYPE_CHECKING:
    import pandas as pd

DIALS = ("sigma", "lam", "alpha", "tau", "split", "decoding", "drift")


def changes(records: "pd.DataFrame", question: Question) -> dict[str, Contrast]:
    """Setting -> AISP there minus AISP at the standard setting of the question."""
    runs = {name: series[AISP] for name, series in question.settings.items() if AISP in series}
    standard = question.standard
    if standard is None or standard not in runs:
        raise ValueError(f"standard is {standard!r}; settings of AISP are: {', '.join(runs)}")
    return {
        name: contrast(records, label, runs[standard])._replace(first=name, second=standard)
        for name, label in runs.items()
        if name != standard
    }


def adaptation(records: "pd.DataFrame", question: Question) -> dict[str, Contrast]:
    """Setting -> AISP minus noise only with the same perturbations."""
    return {
        name: contrast(records, series[AISP], series[NOISE])._replace(first=AISP, second=NOISE)
        for name, series in question.settings.items()
        if {AISP, NOISE} <= set(series)
    }


def over_best_of_n(records: "pd.DataFrame", question: Question) -> dict[str, Contrast]:
    """Setting -> AISP minus best-of-n at the same budget."""
    return {
        name: contrast(records, series[AISP], series[BEST])._replace(first=AISP, second=BEST)
        for name, series in question.settings.items()
        if {AISP, BEST} <= set(series)
    }


def cooler(records: "pd.DataFrame", question: Question) -> list[Contrast]:
    """Is greedy noise more than sampling at a lower temperature? From the question "decoding"."""
    cool = question.settings[f"T = {TEMPERATURE:g}"][BEST]
    nucleus, noise = question.settings["top-p 0.9"][BEST], question.settings["greedy"][NOISE]
    return [
        contrast(records, cool, nucleus)._replace(second=f"{BEST}, top-p 0.9"),
        contrast(records, noise, cool)._replace(first=f"{NOISE}, greedy"),
    ]


def sentences(records: "pd.DataFrame", question: Question) -> list[str]:
    """The computed answer to a question: does the dial matter, and is it adaptation?"""

    def spoken(name: str) -> str:
        symbol = re.split(r" of | \(", question.axis)[0]
        return f"{symbol} = {name}" if re.fullmatch(r"[\d.]+( x \d+)?", name) else name

    found = [changes(records, question), adaptation(records, question)]
    change, gain = ({spoken(name): c for name, c in of.items()} for of in found)
    standard = f"AISP at {spoken(question.standard or '')}"
    return [
        grouped(f"**AISP minus {standard}**", change),
        grouped(f"**AISP minus {NOISE}** with the same noise", gain),
    ]


def effects(records: "pd.DataFrame", questions: Mapping[str, Question]) -> "pd.DataFrame":
    """All dials as one table, for `figures.dials`.

    Returns:
        One row per dial, setting and kind ("change" or "adaptation"): dial, axis, setting, kind,
        standard (whether the setting is), prompts, difference, low, high, verdict. The standard
        setting has a change of 0.
    """
    import pandas as pd

    rows = []
    for dial in (name for name in DIALS if name in questions):
        question = questions[dial]
        kinds = {"change": changes(records, question), "adaptation": adaptation(records, question)}
        for kind, found in kinds.items():
            for setting in question.settings:
                about: dict[str, Any] = {
                    "dial": dial,
                    "axis": question.axis,
                    "setting": setting,
                    "kind": kind,
                }
                about["standard"] = setting == question.standard
                if setting in found:
                    c = found[setting]
                    known = {k: getattr(c, k) for k in ("prompts", "difference", "low", "high")}
                    rows.append(about | known | {"verdict": c.verdict})
                elif about["standard"] and kind == "change":
                    rows.append(about | dict.fromkeys(("difference", "low", "high"), 0.0))
    return pd.DataFrame(rows)


def overview(table: "pd.DataFrame") -> "pd.DataFrame":
    """One row per dial, in words.

    Args:
        table: from `effects`.

    Returns:
        Index: what is varied. Columns: settings (the standard one marked by an asterisk), "differ
        from the standard", "adaptation shows a gain at"; "-" where there is none.
    """
    import pandas as pd

    def named(rows: "pd.DataFrame") -> str:
        return ", ".join(f"{r.setting} ({r.difference:+.2f})" for r in rows.itertuples()) or "-"

    shown = {}
    for axis, of in table.groupby("axis", sort=False):
        settings = of.drop_duplicates("setting")
        listed = [f"{r.setting}*" if r.standard else r.setting for r in settings.itertuples()]
        change, gain = (of[of["kind"] == kind] for kind in ("change", "adaptation"))
        shown[axis] = {
            "settings (* standard)": ", ".join(listed),
            "differ from the standard": named(change[change["verdict"].isin(["higher", "lower"])]),
            "adaptation shows a gain at": named(gain[gain["verdict"] == "higher"]),
        }
    return pd.DataFrame(shown).T.rename_axis("varied")


def conclusions(table: "pd.DataFrame") -> list[str]:
    """Which dials matter, by the intervals of `effects`."""
    change = table[(table["kind"] == "change") & ~table["standard"]]
    gain = table[table["kind"] == "adaptation"]
    decided = change[change["verdict"] != "undecided"]
    named = [
        f"**{_short(axis)}** ("
        + ", ".join(f"{r.setting} {r.verdict}, {r.difference:+.2f}" for r in of.itertuples())
        + ")"
        for axis, of in decided.groupby("axis", sort=False)
    ]
    others = [_short(x) for x in change["axis"].unique() if x not in set(decided["axis"])]
    best = change.loc[change["difference"].idxmax()]
    return [
        f"Dials with a setting that differs from the standard one: {'; '.join(named) or 'none'}.",
        f"Dials without one: {', '.join(others) or 'none'}.",
        f"Adaptation shows a gain at {(gain['verdict'] == 'higher').sum()} and a loss at "
        f"{(gain['verdict'] == 'lower').sum()} of {len(gain)} settings.",
        f"The largest rise over a standard setting is that of {best['setting']} "
        f"({_short(best['axis'])}): {best['difference']:+.2f} [{best['low']:+.2f}, "
        f"{best['high']:+.2f}]. Of {len(change)} settings one is the best by chance, and about "
        f"{len(change) / 20:.1f} intervals exclude 0 by chance.",
    ]


def _short(axis: str) -> str:
    """The name of what is varied, without what is held."""
    return axis.split(" (")[0]


# -- along the iterations -------------------------------------------------------------------------


def travel(records: "pd.DataFrame", question: Question) -> "pd.DataFrame":
    """How the proposal of AISP moves at each setting: means over prompts.

    Returns:
        Index: settings. Columns: ESS, second (the first iteration that U has moved) and last; KL,
        last (nats); mean reward of the samples, first and last.
    """
    import pandas as pd

    rows = {}
    for name, series in question.settings.items():
        if AISP in series:
            mean = along(records, series[AISP])
            rows[name] = {
                "ESS, second": mean["ess"].iloc[min(1, len(mean) - 1)],
                "ESS, last": mean["ess"].iloc[-1],
                "KL, last (nats)": mean["kl"].iloc[-1],
                "reward of a sample, first": mean["reward_mean"].iloc[0],
                "last": mean["reward_mean"].iloc[-1],
            }
    return pd.DataFrame(rows).T.rename_axis(question.axis)


def along(records: "pd.DataFrame", label: str) -> "pd.DataFrame":
    """History of one label by iteration (counted from 1), means over its runs.

    Returns:
        Columns: reward_mean, reward_std, reward_max, ess, kl.
    """
    import pandas as pd

    columns = ["reward_mean", "reward_std", "reward_max", "ess", "kl"]
    histories = tables.finished(records[records["label"] == label])["history"]
    steps = pd.concat([pd.DataFrame(h).set_index("iteration")[columns] for h in histories])
    mean = steps.astype(float).groupby(level=0).mean()
    return mean.set_axis(mean.index + 1).rename_axis("iteration")


def drifted(mean: "pd.DataFrame") -> list[str]:
    """How the proposal moves over the iterations of `along`, in words."""
    second, last = mean.iloc[min(1, len(mean) - 1)], mean.iloc[-1]
    span = f"from the second iteration to the last (of {len(mean)})"
    best = mean["reward_mean"].idxmax()
    return [
        moved(f"The effective sample size, {span},", second["ess"], last["ess"], 1),
        moved(f"The KL of the proposal, {span},", second["kl"], last["kl"], 0),
        moved(
            "The standard deviation of the rewards", mean["reward_std"].iloc[0], last["reward_std"]
        ),
        f"{moved('The mean reward of the samples', mean['reward_mean'].iloc[0], last['reward_mean'])} "
        f"It is highest in iteration {best} ({mean['reward_mean'][best]:.2f}).",
    ]


# -- along the budget -----------------------------------------------------------------------------


def lead(table: "pd.DataFrame", other: str, samples: int, measure: str = "reward") -> Contrast:
    """AISP minus another series at one budget.

    Args:
        table: from `ablations.by_budget`.
    """
    wide = _by_prompt(table, measure)
    return gap(wide[AISP, samples] - wide[other, samples], AISP, other, _named(measure))


def rise(
    table: "pd.DataFrame", label: str, few: int, many: int, measure: str = "reward"
) -> Contrast:
    """What a series gains from few to many samples."""
    wide = _by_prompt(table, measure)
    names = (f"{label} at {many} samples", f"{label} at {few}")
    return gap(wide[label, many] - wide[label, few], *names, _named(measure))


def lead_change(
    table: "pd.DataFrame", other: str, few: int, many: int, measure: str = "reward"
) -> Contrast:
    """How AISP's lead over another series changes from few to many samples."""
    wide = _by_prompt(table, measure)
    gains = {x: wide[x, many] - wide[x, few] for x in (AISP, other)}
    names = (f"AISP's lead over {other} at {many} samples", f"its lead at {few}")
    return gap(gains[AISP] - gains[other], *names, _named(measure))


def over_optimized(table: "pd.DataFrame", label: str, few: int, many: int) -> str:
    """Whether the judge sees what the reward gains from few to many samples, in one sentence."""
    reward, judge = (rise(table, label, few, many, x) for x in ("reward", "judged"))
    words = {
        ("higher", "higher"): "both rise",
        ("higher", "undecided"): "the reward rises, and the judge shows no change",
        ("higher", "lower"): "the reward rises while the judge falls, a sign of over-optimization",
    }
    said = words.get((reward.verdict, judge.verdict), "the reward shows no rise")
    return (
        f"**{label}** from {few} to {many} samples: {said} (reward {reward.signed}, judge "
        f"{judge.signed}; {reward.prompts} prompt{'s' * (reward.prompts != 1)})."
    )


def budget_table(table: "pd.DataFrame") -> "pd.DataFrame":
    """One row per budget: means of each measure and series, and AISP's lead with its interval."""
    import pandas as pd

    series = list(dict.fromkeys(table["label"]))
    rows: dict[int, dict[tuple[str, str], str]] = {}
    for samples, of in table.groupby("samples"):
        row: dict[tuple[str, str], str] = {}
        for measure in ("reward", "judged", "surprisal"):
            means = of.groupby("label")[measure].mean()
            row |= {(_named(measure), x): f"{means[x]:.2f}" for x in series}
        for other in (x for x in series if x != AISP):
            row["AISP minus", other] = lead(table, other, samples).signed
        rows[samples] = row
    return pd.DataFrame(rows).T.rename_axis("samples")


def _named(measure: str) -> str:
    return {"judged": "judge"}.get(measure, measure)


def _by_prompt(table: "pd.DataFrame", measure: str) -> "pd.DataFrame":
    return table.pivot_table(index="prompt", columns=["label", "samples"], values=measure)
