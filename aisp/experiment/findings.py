"""Findings in words, computed from records: what an interval supports, and nothing else.

A notebook states its results through these functions, so that a re-execution on another model, reward
or seed states the findings of that run. `Contrast.sentence` says what one difference supports;
`shown` hands sentences to Jupyter as a list.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aisp.experiment.tables import paired
from aisp.intervals import verdict

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

    def sentence(self) -> str:
        """What the interval supports, in one sentence of Markdown."""
        by = "" if self.measure == "reward" else f"By the {self.measure}, "
        first = f"{by}**{self.first}**"
        over = f"({self.prompts} prompt{'s' * (self.prompts != 1)})"
        if self.prompts == 0:
            return f"{first} and {self.second} share no prompt that both finished."
        if self.verdict == "undecided":
            signed = f"{self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
            return (
                f"{first} is not distinguishable from {self.second} at this number of prompts: "
                f"{signed} {over}."
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
        records: from `aisp.experiment.load`, or with further columns from `main_results.measure`.
        measure: the column that is compared, such as "reward" or "judged".
        **options: of `aisp.experiment.paired`.

    Raises:
        ValueError: a label or a column that the records do not have.
    """
    if measure not in records:
        raise ValueError(f"measure is {measure!r}; the records have: {', '.join(records.columns)}")
    found = paired(records.assign(reward=records[measure]), first, second, **options)
    size = (found["difference"], found["low"], found["high"])
    name = {"judged": "judge"}.get(measure, measure)
    return Contrast(first, second, int(found["prompts"]), *size, name)


def shown(sentences: Sequence[str | Contrast]) -> Any:
    """Sentences as a list that Jupyter shows as Markdown."""
    from IPython.display import Markdown

    lines = [s.sentence() if isinstance(s, Contrast) else s for s in sentences]
    return Markdown("\n".join(f"- {line}" for line in lines))
