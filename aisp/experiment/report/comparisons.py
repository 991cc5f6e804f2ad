"""Tables and examples of notebook 06 that need no model: from records, with or without measures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aisp.experiment.report import tables
from aisp.experiment.report.findings import Contrast, contrast
from aisp.experiment.report.measures import MEASURES

if TYPE_CHECKING:
    import pandas as pd


def lead_by_samples(records: "pd.DataFrame", first: str, second: str) -> dict[int, Contrast]:
    """Samples used -> the difference of two labels had both stopped there; doubled from row to row.

    Args:
        records: with histories; both labels have the same n and kappa.
    """
    both = tables.finished(records[records["label"].isin([first, second])])
    longest = max((len(h["reward_best"]) for h in both["history"]), default=0)
    found = {}
    for power in range(longest.bit_length()):
        done = [h["reward_best"][: 2**power] for h in both["history"]]
        rewards = [best[-1] if len(best) == 2**power else float("nan") for best in done]
        samples = max(c["n"] for c in both["config"]) * 2**power
        found[samples] = contrast(both.assign(reward=rewards), first, second)
    return found


def ahead(records: "pd.DataFrame", first: str) -> "pd.DataFrame":
    """On how many prompts one label is ahead of each other one.

    Returns:
        Index: the other labels. Columns: ahead, level, behind (numbers of prompts).
    """
    import pandas as pd

    labels = list(records["label"].unique())
    means = tables.comparison(records, labels).set_index("prompt")[labels]
    rows = {}
    for other in (x for x in labels if x != first):
        gaps = (means[first] - means[other]).dropna()
        signs = {"ahead": gaps > 0, "level": gaps == 0, "behind": gaps < 0}
        rows[other] = {name: int(sign.sum()) for name, sign in signs.items()}
    return pd.DataFrame(rows).T.rename_axis(f"{first} against")


def extremes(records: "pd.DataFrame", first: str, second: str) -> list[str]:
    """Ids of the prompts with the largest loss and with the largest lead of first over second."""
    means = tables.comparison(records, [first, second]).set_index("prompt")
    gaps = (means[first] - means[second]).dropna()
    return [] if gaps.empty else list(dict.fromkeys([gaps.idxmin(), gaps.idxmax()]))


def by_measure(measured: "pd.DataFrame", first: str, second: str) -> list[Contrast]:
    """The difference of two labels in each of `measures.MEASURES`."""
    return [
        contrast(measured, first, second, column)._replace(measure=heading)
        for column, (heading, _) in MEASURES.items()
    ]


def temperature(records: "pd.DataFrame") -> "pd.DataFrame":
    """What lam is to be compared with, by label: means over prompts.

    Returns:
        Columns: spread (standard deviation of the rewards of the first iteration), ESS (mean over
        iterations; NaN where a method has no weights). Labels with a single response are left out.
    """
    import pandas as pd

    several = records[records["samples"] > 1]  # neither failed nor a single response
    found = several.assign(
        spread=[h["reward_std"][0] for h in several["history"]],
        ESS=[pd.Series(h["ess"], dtype=float).mean() for h in several["history"]],
    )
    return found.groupby("label", sort=False)[["spread", "ESS"]].mean()


def favorites(measured: "pd.DataFrame", share: float = 0.1) -> tuple[str, "pd.DataFrame"]:
    """What the reward likes: the responses with the highest rewards, beside all of them.

    Args:
        measured: records with measures.
        share: of the responses that count as favorites.

    Returns:
        A sentence on their lengths, and the favorites: label, reward, length, response, best first.
    """
    whole = tables.finished(measured).sort_values("reward", ascending=False, kind="stable")
    top = whole.head(max(1, round(share * len(whole))))
    lengths = [f"{of['length'].mean():.0f}" for of in (top, whole)]
    said = (
        f"The {len(top)} responses with the highest rewards have {lengths[0]} tokens in the mean, "
        f"all {len(whole)} have {lengths[1]}."
    )
    return said, top[["label", "reward", "length", "response"]].reset_index(drop=True)


def side_by_side(
    records: "pd.DataFrame", prompts: Sequence[str]
) -> "list[tuple[str, pd.DataFrame]]":
    """For each id of a prompt: the prompt and every label's reward and response.

    Prompts whose text the records do not hold are left out.
    """
    shown = []
    for prompt in prompts:
        rows = records[records["prompt"] == prompt]
        texts = rows["prompt_text"].dropna().unique()
        if len(texts):
            kept = rows.set_index("label")[["reward", "response"]].round(2)
            shown.append((str(texts[0]), kept))
    return shown


def proposals(records: "pd.DataFrame") -> "pd.DataFrame":
    """What became of the samples themselves: one row per label, means over prompts and seeds.

    Returns:
        Columns: samples, first and last (mean reward of the first and the last iteration's
        samples); ESS, last; KL, last (nats), NaN where a method has none.
    """
    import pandas as pd

    rows = {}
    for label, of in tables.finished(records).groupby("label", sort=False):
        ends = {"first": 0, "last": -1}
        row = {
            f"samples, {name}": pd.Series([h["reward_mean"][i] for h in of["history"]]).mean()
            for name, i in ends.items()
        }
        for column, name in {"ess": "ESS, last", "kl": "KL, last (nats)"}.items():
            row[name] = pd.Series([h[column][-1] for h in of["history"]], dtype=float).mean()
        rows[label] = row
    return pd.DataFrame(rows).T


def whole_seeds(records: "pd.DataFrame", labels: Sequence[str]) -> "pd.DataFrame":
    """The records of these labels, of the seeds in which each has finished every prompt of the file.

    A seed that is still being computed is left out as a whole, so that no comparison depends on
    which prompts or methods came first.
    """
    prompts = records["prompt"].nunique()
    of = tables.finished(records[records["label"].isin(labels)])
    done = of.groupby(["seed", "label"])["prompt"].nunique().unstack("label", fill_value=0)
    done = done.reindex(columns=list(labels), fill_value=0)
    seeds = done.index[(done == prompts).all(axis=1)]
    return of[of["seed"].isin(seeds)]
