"""Findings in words, computed from records: what an interval supports, and nothing else.

A notebook states its results through these functions, so that a re-execution on another model, reward
or seed states the findings of that run. `Contrast.sentence` says what one difference supports;
`shown` hands sentences to Jupyter as a list.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aisp.experiment.report.tables import finished, paired
from aisp.experiment.store.reading import load, provenance_of
from aisp.intervals import bootstrap, verdict
from aisp.provenance import checkout

if TYPE_CHECKING:
    import pandas as pd


class Contrast(NamedTuple):
    """The mean difference of two labels, prompt by prompt."""

    first: str
    second: str
    prompts: int
    difference: float  # first minus second
    low: float  # of a 95% interval over prompts
    high: float
    measure: str = "reward"

    @property
    def verdict(self) -> str:
        """ "higher", "lower" or "undecided", see `aisp.intervals.verdict`."""
        return verdict(self.low, self.high)

    @property
    def signed(self) -> str:
        """Such as "+0.74 [+0.54, +0.95]"."""
        return f"{self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    def sentence(self) -> str:
        """What the interval supports, in one sentence of Markdown."""
        by = {"reward": "", "judge": "By the judge, "}.get(self.measure, f"In {self.measure}, ")
        first = f"{by}**{self.first}**"
        over = f"({self.prompts} prompt{'s' * (self.prompts != 1)})"
        if self.prompts == 0:
            return f"{first} and {self.second} share no prompt that both finished."
        if self.verdict == "undecided":
            return (
                f"{first} is not distinguishable from {self.second} at this number of prompts: "
                f"{self.signed} {over}."
            )
        near, far = sorted((abs(self.low), abs(self.high)))
        size = f"{abs(self.difference):.2f} [{near:.2f}, {far:.2f}]"
        where = "above" if self.verdict == "higher" else "below"
        return f"{first} is {where} {self.second} by {size} {over}."


def contrast(
    records: "pd.DataFrame", first: str, second: str, measure: str = "reward", **options: Any
) -> Contrast:
    """The difference of two labels, over the prompts that both have, seeds averaged first.

    Args:
        records: from `aisp.experiment.load`, or with further columns from `measures.measured`.
        measure: the column that is compared, such as "reward" or "judged".
        **options: of `aisp.experiment.paired`.

    Raises:
        ValueError: a label or a column that the records do not have.
    """
    if measure not in records:
        raise ValueError(f"measure is {measure!r}; the records have: {', '.join(records.columns)}")
    found = paired(records.assign(reward=records[measure]), first, second, **options)
    size = (found["difference"], found["low"], found["high"])
    names = {"judged": "judge", "at_length": "judge at equal length"}
    name = names.get(measure, measure)
    return Contrast(first, second, int(found["prompts"]), *size, name)


def origin(path: Path, records: "pd.DataFrame | None" = None) -> Any:
    """One paragraph for the top of results: what they are of, and from which records.

    Args:
        path: the records file.
        records: those of the file that are shown; None is all of them.

    Returns:
        Markdown for Jupyter: policy, reward, prompts, budget, seeds, commits, how many records, and
        how long it took to compute them.
    """
    from IPython.display import Markdown

    shown = load(path) if records is None else records
    runs = provenance_of(path)
    made = [of if isinstance(of, dict) else {} for of in shown.get("made_with", [{}] * len(shown))]
    about = [runs.get(run, {}) | own for run, own in zip(shown["run"], made, strict=True)]

    def several(name: str) -> str:
        return ", ".join(sorted({str(one[name]) for one in about if name in one})) or "unknown"

    splits = sorted({(c["n"], c["kappa"]) for c in shown["config"]})
    lengths = sorted({c["max_new_tokens"] for c in shown["config"]})
    budget = f"n x kappa = {', '.join(f'{n} x {k}' for n, k in splits)}"
    sources = sorted({source for one in about for source in one.get("prompts", ())})
    commits = sorted({str(one.get("commit"))[:7] for one in about if one.get("commit")})
    inside = path.resolve().is_relative_to(checkout())
    place = path.resolve().relative_to(checkout()) if inside else path.name
    return Markdown(
        f"*Policy {several('policy')} (template {several('template')}, {several('dtype')}), reward "
        f"{several('reward')}; {shown['prompt'].nunique()} prompts of {', '.join(sources)}; "
        f"{budget}, at most {', '.join(map(str, lengths))} tokens; seeds {', '.join(map(str, sorted(shown['seed'].unique())))}; "
        f"commits {', '.join(commits) or 'unknown'}. Read {len(shown):,} records from {place}; "
        f"delete or rename that file to compute them anew (about {_length(shown['seconds'].sum())} "
        "on the machine that computed them).*"
    )


def _length(seconds: float) -> str:
    """A length of time in the unit that reads best, such as "24 minutes"."""
    if seconds >= 90 * 60:
        return f"{seconds / 3600:.1f} hours"
    number, unit = (seconds / 60, "minute") if seconds >= 90 else (max(1, seconds), "second")
    return f"{number:.0f} {unit}{'s' * (round(number) != 1)}"


def shown(sentences: Sequence[str | Contrast]) -> Any:
    """Sentences as a list that Jupyter shows as Markdown."""
    from IPython.display import Markdown

    lines = [s.sentence() if isinstance(s, Contrast) else s for s in sentences]
    return Markdown("\n".join(f"- {line}" for line in lines))


def gap(differences: "pd.Series", first: str, second: str, measure: str = "reward") -> Contrast:
    """A contrast of what are differences already, first minus second, one per prompt.

    Args:
        differences: indexed by prompt; NaN where one of the two is missing.
    """
    values = differences.dropna().sort_index().to_numpy(dtype=float)
    mean = float(values.mean()) if len(values) else float("nan")
    return Contrast(first, second, len(values), mean, *bootstrap(values), measure)


def contrasts(records: "pd.DataFrame", first: str, measure: str = "reward") -> dict[str, Contrast]:
    """Every other label of the records -> `contrast` of the first one with it."""
    others = [label for label in records["label"].unique() if label != first]
    return {other: contrast(records, first, other, measure) for other in others}


VERDICTS = {
    "higher": "above 0 for",
    "lower": "below 0 for",
    "undecided": "not distinguishable from 0, at this number of prompts, for",
}


def grouped(what: str, found: Mapping[str, Contrast]) -> str:
    """One sentence about several differences, sorted by what their intervals support.

    Args:
        what: the differences that are meant, such as "AISP minus another method".
        found: what each one is called -> the difference.
    """
    if not found:
        return f"{what}: there is nothing to compare."
    parts = []
    for kind, words in VERDICTS.items():
        of = [f"{name} ({c.signed})" for name, c in found.items() if c.verdict == kind]
        if of:
            parts.append(f"{words} {', '.join(of)}")
    return f"{what} is {'; '.join(parts)}{_over(found.values())}."


def across(by_set: Mapping[str, Contrast]) -> str:
    """One sentence about the same difference on several sets of prompts.

    Args:
        by_set: name of the set -> the difference on it; the last one is that of all together.
    """
    *sets, (_, last) = by_set.items()
    alone = "; ".join(f"{name} {c.signed}, {c.verdict}" for name, c in sets)
    return f"{last.sentence()} Set by set: {alone}." if len(sets) > 1 else last.sentence()


def leader(records: "pd.DataFrame", measure: str = "reward") -> str:
    """Which label has the highest mean, and which others its interval cannot tell from it."""
    whole = finished(records)
    means = whole.groupby(["label", "prompt"], sort=False)[measure].mean()
    by_label = means.groupby("label", sort=False).mean()
    if by_label.dropna().empty:
        return f"No label has a {measure}."
    best = by_label.idxmax()
    low, high = bootstrap(means[best].dropna().sort_index().to_numpy())
    name = {"judged": "score by the judge"}.get(measure, measure)
    said = f"**{best}** has the highest mean {name}, {by_label[best]:.2f} [{low:.2f}, {high:.2f}]"
    close = {x: c for x, c in contrasts(whole, best, measure).items() if c.verdict != "higher"}
    if not close:
        return f"{said}, and its difference from every other one is above 0."
    listed = ", ".join(f"{x} ({c.signed})" for x, c in close.items())
    return f"{said}; not distinguishable from it at this number of prompts: {listed}."


def confirmed(
    what: str, by_reward: Mapping[str, Contrast], by_judge: Mapping[str, Contrast]
) -> str:
    """For which differences an independent judge sees what the reward shows.

    Args:
        what: the differences that are meant, such as "AISP minus another method".
        by_reward, by_judge: what each one is called -> the difference, under either.
    """
    kinds: dict[str, list[str]] = {}
    for name, reward in by_reward.items():
        if reward.verdict == "undecided" or name not in by_judge:
            continue
        judge = by_judge[name].verdict
        said = "confirms" if judge == reward.verdict else "contradicts"
        kinds.setdefault("does not show" if judge == "undecided" else said, []).append(name)
    if not kinds:
        return f"{what}: the reward shows no difference that the judge could confirm."
    order = [kind for kind in ("confirms", "does not show", "contradicts") if kind in kinds]
    parts = [
        f"{kind} {'it' if i else 'what the reward shows'} for {', '.join(kinds[kind])}"
        for i, kind in enumerate(order)
    ]
    return f"{what}: the judge {'; it '.join(parts)}."


def moved(what: str, first: float, last: float, digits: int = 2) -> str:
    """How a number ends that began elsewhere: a description of these runs, without an interval."""
    start, end = f"{first:,.{digits}f}", f"{last:,.{digits}f}"
    if start == end:
        return f"{what} begins and ends at {end}."
    return f"{what} {'rises' if last > first else 'falls'} from {start} to {end}."


def caution(records: "pd.DataFrame", fewest: int = 16) -> list[str]:
    """A sentence that belongs to conclusions from few prompts; empty where there are enough."""
    prompts = records["prompt"].nunique()
    if prompts >= fewest:
        return []
    return [f"With {prompts} prompt{'s' * (prompts != 1)}, **none of this is evidence**."]


def _over(found: Iterable[Contrast]) -> str:
    counts = sorted({c.prompts for c in found})
    if not counts:
        return ""
    several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f" ({several} prompt{'s' * (counts[-1] != 1)})"


def tally(contrasts: Sequence[Contrast]) -> str:
    """How many of several intervals exclude 0, beside how many would by chance."""
    clear = sum(c.verdict != "undecided" for c in contrasts)
    excludes = f"{clear or 'None'} of the {len(contrasts)} intervals exclude{'s' * (clear < 2)} 0"
    return (
        f"{excludes}. If nothing differed, {0.05 * len(contrasts):.1f} of {len(contrasts)} such "
        "intervals would, on average."
    )


def highest(values: "pd.Series", what: str) -> str:
    """Which of several settings, in their order, has the highest value; and whether it ends the range.

    Args:
        values: setting -> value. NaN cannot be highest.
        what: the value in words, such as "mean reward".
    """
    if values.isna().all():
        return f"No setting has a {what}."
    best = values.idxmax()
    end = best in (values.index[0], values.index[-1]) and len(values) > 1
    beyond = ", at the end of the range tried: still higher ones may lie beyond" if end else ""
    count = f"{len(values)} setting{'s' * (len(values) != 1)}"
    return f"Of {count}, **{best}** has the highest {what}, {values[best]:.2f}{beyond}."


def association(records: "pd.DataFrame", first: str, second: str) -> str:
    """Whether two columns go together among the responses to one prompt.

    Args:
        records: several labels or seeds per prompt; prompts where a column does not vary drop out.

    Returns:
        A sentence with the mean over prompts of Spearman's rank correlation, decided by its
        bootstrap 95% interval over prompts.
    """
    groups = finished(records).sort_values("prompt").groupby("prompt")
    ranks = [g[[first, second]].dropna().rank() for _, g in groups]
    varied = [r for r in ranks if len(r) > 1 and (r.std() > 0).all()]
    values = [r[first].corr(r[second]) for r in varied]
    if not values:
        return f"No prompt has responses that vary in {first} and in {second}."
    low, high = bootstrap(values)
    words = {
        "higher": f"the higher the {second}, the higher the {first}",
        "lower": f"the higher the {second}, the lower the {first}",
        "undecided": f"{first} and {second} are not distinguishable from unrelated",
    }[verdict(low, high)]
    mean = sum(values) / len(values)
    return (
        f"Among responses to one prompt, {words}: rank correlation {mean:+.2f} "
        f"[{low:+.2f}, {high:+.2f}] ({len(values)} prompt{'s' * (len(values) != 1)})."
    )
