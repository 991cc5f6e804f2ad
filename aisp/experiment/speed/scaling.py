"""How experiments on several workers scale: measured on this machine, and simulated for many.

The simulation takes the times of batches from stored records, as uneven as they were, and gives each
batch to the worker that is free first, as `aisp.experiment.spread.cluster` does.

    python -m aisp.experiment.speed.scaling

measures 1 and 2 workers on an idle machine (some ten minutes on 2 cores), and writes
data/results/cpu/workers.json.
"""

import argparse
import heapq
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from aisp import provenance
from aisp.checks import whole
from aisp.experiment import records as experiment
from aisp.experiment.profiles import records_path
from aisp.policy import load_policy
from aisp.prompts import load_prompts
from aisp.rewards.load import load_reward

if TYPE_CHECKING:
    import pandas as pd

COUNTS = (1, 2, 4, 8, 16, 32, 64)
FILES = ("main_results_shp.jsonl", "main_results_hh.jsonl", "main_results.jsonl")
PAPER = 6 * 1000 // 8  # batches of 8 prompts: a setting of the paper, six methods on 1,000 prompts


def batch_seconds(records: "pd.DataFrame") -> np.ndarray:
    """Seconds of each batch that a file's records were computed in, (batches,), in their order.

    An iteration's time is divided equally among the prompts of a batch, so records that follow one
    another with the same number there are of one batch. Records that failed are left out.
    """
    rows = records[records["error"].isna()].to_dict("records")
    batches = groupby(rows, lambda x: (x["label"], x["seed"], x["run"], x["history"]["seconds"][0]))
    return np.array([sum(row["seconds"] for row in batch) for _, batch in batches])


def makespan(seconds: Sequence[float] | np.ndarray, workers: int, *, start: float = 0.0) -> float:
    """When the last of these batches is done, each given to the worker that is free first.

    Args:
        start: seconds that each worker takes to load its models.
    """
    free = [start] * whole("workers", workers, least=1)
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def simulated(
    seconds: np.ndarray, counts: Sequence[int] = COUNTS, *, overhead: float = 0.0
) -> "pd.DataFrame":
    """Time and speed-up of one set of batches on more and more workers.

    Args:
        overhead: seconds added to each batch for handing it out.

    Returns:
        One row per count: workers, batches, hours, speedup (over one worker), efficiency (speedup
        over workers), longest (the longest batch over the mean load of a worker: above 1, it alone
        bounds the time).
    """
    import pandas as pd

    each = seconds + overhead
    total = each.sum()
    rows = []
    for workers in counts:
        time = makespan(each, workers)
        row = {"workers": workers, "batches": len(each), "hours": time / 3600}
        row |= {"speedup": total / time, "efficiency": total / time / workers}
        rows.append(row | {"longest": each.max() / (total / workers)})
    return pd.DataFrame(rows)


def of_the_papers_size(
    seconds: np.ndarray, batches: int = PAPER, repeats: int = 20, **options: Any
) -> "pd.DataFrame":
    """`simulated` for a larger table, whose batches are drawn from the stored ones; means of draws."""
    import pandas as pd

    rng = np.random.default_rng(0)
    draws = [simulated(rng.choice(seconds, batches), **options) for _ in range(repeats)]
    return pd.concat(draws).groupby("workers", as_index=False).mean()


def simulations(*records: "pd.DataFrame") -> "dict[str, pd.DataFrame]":
    """What notebook 08 simulates from the records of the main tables: name -> table."""
    seconds = np.concatenate([batch_seconds(of) for of in records])
    return {
        "the three stored tables together": simulated(seconds),
        "one of the paper's size": of_the_papers_size(seconds),
    }


def bounds(table: "pd.DataFrame", name: str) -> str:
    """What the simulation says at its largest count, and what bounds it there, in a sentence."""
    row = table.iloc[-1]
    workers, batches = int(row["workers"]), int(row["batches"])
    said = (
        f"**{name}** ({batches} batches): {workers} workers are {row['speedup']:.1f} times as fast as "
        f"one, an efficiency of {row['efficiency']:.0%}"
    )
    if batches < workers:
        return f"{said}; bounded by the number of batches, which is below that of workers."
    if row["longest"] > 1:
        return f"{said}; bounded by the longest batch, {row['longest']:.1f} times a worker's share."
    return (
        f"{said}; the longest batch is {row['longest']:.2f} of a worker's share, and workers wait for "
        "the last ones to end."
    )


# -- measured -------------------------------------------------------------------------------------

TINY = {"method": "best_of_n", "n": 1, "kappa": 1, "max_new_tokens": 1}
REAL = {"method": "aisp", "n": 8, "kappa": 2, "max_new_tokens": 32}


def measure(path: Path, *, seeds: int = 2, prompts: int = 8, repeats: int = 3) -> "pd.DataFrame":
    """Time this process, one worker and two workers on the embedded model, and write the file.

    Each is timed with the prompts once and so many seeds more; the difference is the time of the
    additional ones, without that of starting. Starting, and what a record costs, are measured on
    batches of one that have almost nothing to compute.

    Args:
        repeats: of what a record costs.

    Returns:
        One row per way: way, threads, start, seconds (per prompt), overhead (seconds per record over
        this process, medians of the repeats) with its low and high; NaN where there is none.
    """
    import pandas as pd

    seeds, prompts = whole("seeds", seeds, least=2), whole("prompts", prompts, least=1)
    policy = load_policy("embedded", device="cpu", dtype="float32")
    reward = load_reward("embedded", policy=policy)
    asked = load_prompts("builtin", split="test", limit=prompts)
    cores = torch.get_num_threads()

    def timed(parameters: dict[str, Any], count: int, batch: int, **how: Any) -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            options = {"seeds": range(count), "batch": batch, "progress": False, **how}
            methods = {"timed": parameters}
            experiment.run(Path(folder) / "t.jsonl", methods, asked, policy, reward, **options)
            return time.perf_counter() - began

    def per_record(**how: Any) -> tuple[float, float]:
        """Seconds of starting, and of a record."""
        few, many = (timed(TINY, count, 1, **how) for count in (1, 1 + 10 * seeds))
        each = (many - few) / (prompts * 10 * seeds)
        return few - prompts * each, each

    rows: list[dict[str, Any]] = []
    ways = {
        "this process": {},
        "1 worker": {"workers": 1, "cpus_per_worker": cores},
        "2 workers": {"workers": 2, "cpus_per_worker": max(1, cores // 2)},
    }
    here: list[float] = []
    for way, how in ways.items():
        once, more = (timed(REAL, count, 4, **how) for count in (1, seeds))
        each = (more - once) / (prompts * (seeds - 1))
        starts, costs = zip(*(per_record(**how) for _ in range(repeats)), strict=True)
        row = {"way": way, "threads": how.get("cpus_per_worker", cores)}
        row |= {"start": median(starts), "seconds": each}
        here = here or list(costs)
        if way == "1 worker":  # with two, records overlap
            row["overhead"] = median(costs) - median(here)
            row |= {"low": min(costs) - max(here), "high": max(costs) - min(here)}
        rows.append(row)
    table = pd.DataFrame(rows)
    _store(path, table, policy.device, seeds * prompts)
    return table


def _store(path: Path, table: "pd.DataFrame", device: Any, prompts: int) -> None:
    about: dict[str, Any] = {
        "command": "python -m aisp.experiment.speed.scaling",
        "date": date.today().isoformat(),
    }
    about |= provenance.git_state() | provenance.environment(device)
    about |= {"prompts": prompts, "table": json.loads(table.to_json(orient="records"))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with provenance.replacing(path) as new:
        new.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def stored(path: Path) -> "pd.DataFrame":
    """The table that `measure` wrote."""
    import pandas as pd

    return pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["table"])


def origin(path: Path) -> str:
    """When and where that was measured, in a sentence."""
    about = json.loads(path.read_text(encoding="utf-8"))
    return (
        f"Measured on {about['date']} on a {about['device'].upper()} with {about['threads']} threads, "
        f"the embedded model in float32, torch {about['packages']['torch']}, commit "
        f"{str(about['commit'])[:7]}."
    )


def sentences(table: "pd.DataFrame") -> list[str]:
    """What was measured, in words."""
    of = table.set_index("way")
    one, two = of.loc["1 worker"], of.loc["2 workers"]
    return [
        f"**Two workers** of {two['threads']:.0f} thread each take {two['seconds']:.2f} s per prompt, one "
        f"of {one['threads']:.0f} takes {one['seconds']:.2f} s: {one['seconds'] / two['seconds']:.2f} "
        "times as fast on the same cores.",
        f"**Handing out** a batch and writing its record takes {1e3 * one['overhead']:.0f} ms "
        f"[{1e3 * one['low']:.0f}, {1e3 * one['high']:.0f}] more than in one process; starting takes {one['start']:.0f} s with one worker, {two['start']:.0f} s with two.",
    ]


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m aisp.experiment.speed.scaling", description=__doc__
    )
    parser.add_argument(
        "--out", type=Path, default=records_path("workers", "cpu").with_suffix(".json")
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    given = parser.parse_args(arguments)
    table = measure(given.out, seeds=given.seeds, prompts=given.prompts)
    say(table.round(4).to_string(index=False))
    for sentence in sentences(table):
        say(sentence)


if __name__ == "__main__":
    main()
