"""The main comparison on all of its sets of prompts: their records, and findings over all of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from aisp.experiment.report.findings import Contrast, contrast
from aisp.experiment.store.reading import load
from aisp.experiment.studies.main_results import in_order

if TYPE_CHECKING:
    import pandas as pd

SETS = {"built-in": "main_results", "SHP": "main_results_shp", "HH-RLHF": "main_results_hh"}
TOGETHER = "together"


def stored_sets(folder: Path) -> "dict[str, pd.DataFrame]":
    """The records of every set that the folder has, with their measures where those are stored.

    Args:
        folder: data/results/<profile>/.

    Returns:
        Name of the set -> its records, in the order of SETS; then TOGETHER -> all of them.
    """
    import pandas as pd

    found = {}
    for name, file in SETS.items():
        path = folder / f"{file}.jsonl"
        if path.exists():
            records, measures = in_order(load(path)), path.with_suffix(".measures.csv")
            if measures.exists():
                known = pd.read_csv(measures).drop(columns="reward")
                records = records.merge(known, on=["label", "prompt", "seed"], how="left")
            found[name] = records
    if found:
        found[TOGETHER] = in_order(pd.concat(found.values(), ignore_index=True))
    return found


def by_set(
    found: "dict[str, pd.DataFrame]", first: str, second: str, measure: str = "reward"
) -> dict[str, Contrast]:
    """The difference of two labels on every set that has both, as `findings.across` takes it."""
    return {
        name: contrast(records, first, second, measure)
        for name, records in found.items()
        if {first, second} <= set(records["label"]) and measure in records
    }


def differences(
    found: "dict[str, pd.DataFrame]", pairs: Iterable[tuple[str, str]], measure: str = "reward"
) -> "pd.DataFrame":
    """One row per pair of labels, one column per set: the mean difference with its interval, as text.

    Pairs that no set has are left out; a set that lacks one of the two has an empty cell.
    """
    import pandas as pd

    rows = {
        f"{first} minus {second}": {name: c.signed for name, c in of.items()}
        for first, second in pairs
        if (of := by_set(found, first, second, measure))
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(found)).fillna("")


def by_pair(
    records: "pd.DataFrame", pairs: Iterable[tuple[str, str]], measure: str = "reward"
) -> dict[str, Contrast]:
    """The differences of one set, as `findings.grouped` takes them: those pairs that it has."""
    there = set(records["label"]) if measure in records else set()
    return {
        f"{first} minus {second}": contrast(records, first, second, measure)
        for first, second in pairs
        if {first, second} <= there
    }
