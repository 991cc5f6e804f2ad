"""Sets of prompts and budgets of notebook 11 that are stored: single ones, and sets pooled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aisp.experiment.report import measures
from aisp.experiment.report.comparisons import whole_seeds
from aisp.experiment.store.reading import load
from aisp.experiment.studies.beyond import BUDGETS, SETS, length_path, paths
from aisp.experiment.studies.contenders import GROUPS

if TYPE_CHECKING:
    import pandas as pd

UNSEEN, TOGETHER = "unseen", "together"
POOLED = {UNSEEN: ("shp", "hh"), TOGETHER: tuple(SETS)}  # UNSEEN: no choice of rows saw them
NAMES = {"builtin": "built-in", "shp": "SHP", "hh": "HH-RLHF"}
NAMES |= {UNSEEN: "SHP and HH-RLHF", TOGETHER: "all three sets"}
Stored = dict[tuple[str, int], "pd.DataFrame"]


def stored(folder: Path) -> Stored:
    """(set, samples) -> records with their measures, of the seeds that a folder holds as a whole.

    A row of another group than the first joins where it is whole in all seeds that the first is.
    For POOLED sets that are all stored, (UNSEEN, samples) and (TOGETHER, samples) have the rows and
    seeds common to them. Further columns: `per_token`, surprisal in nats per token of the response, and
    `at_length` where that is stored (`measures.at_length`).

    Args:
        folder: data/results/<profile>/.
    """
    import pandas as pd

    found: Stored = {}
    for samples in BUDGETS:
        for which in SETS:
            there = [
                path for path in paths(which, samples, folder=folder).values() if path.exists()
            ]
            parts = [measures.kept(load(path), path) for path in there]
            judged = [of for of in parts if of is not None]
            if judged:
                records = comparable(pd.concat(judged, ignore_index=True))
                if len(records):
                    beside = length_path(paths(which, samples, folder=folder)["first"])
                    found[which, samples] = _with_columns(records, beside)
        for pool, sets in POOLED.items():
            each = [found[which, samples] for which in sets if (which, samples) in found]
            if len(each) == len(sets) and len(common := _common(each)):
                found[pool, samples] = common
    return found


def _with_columns(records: "pd.DataFrame", beside: Path) -> "pd.DataFrame":
    import pandas as pd

    if {"surprisal", "length"} <= set(records):
        records = records.assign(per_token=records["surprisal"] / records["length"])
    if not beside.exists():
        return records
    keys = ["label", "prompt", "seed"]
    return records.merge(pd.read_csv(beside), on=keys, how="left", validate="1:1")


def _common(each: "Sequence[pd.DataFrame]") -> "pd.DataFrame":
    """The records of several sets, of the rows and seeds that all of them have."""
    import pandas as pd

    labels, seeds = (
        set.intersection(*(set(of[column]) for of in each)) for column in ("label", "seed")
    )
    every = pd.concat(each, ignore_index=True)
    return every[every["label"].isin(labels) & every["seed"].isin(seeds)]


def comparable(records: "pd.DataFrame") -> "pd.DataFrame":
    """The rows that are whole in all seeds in which the first group is, in these seeds."""
    import pandas as pd

    first = whole_seeds(records, GROUPS["first"])
    seeds = set(first["seed"])
    own = records[records["seed"].isin(seeds)]
    others = [x for x in own["label"].unique() if x not in GROUPS["first"]]
    rows = [whole_seeds(own, [x]) for x in others]
    return pd.concat([first, *(of for of in rows if set(of["seed"]) == seeds)])


def in_order(
    found: Mapping[tuple[str, int], "pd.DataFrame"],
) -> "list[tuple[tuple[str, int], pd.DataFrame]]":
    """By budget, then in the order of NAMES."""
    return sorted(found.items(), key=lambda x: (x[0][1], list(NAMES).index(x[0][0])))


def name(which: str, samples: int) -> str:
    """A set and budget in words."""
    return f"{NAMES[which]}, {samples:,} samples"
