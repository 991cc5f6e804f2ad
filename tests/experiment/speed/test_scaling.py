"""How experiments on several workers scale: the batches of records, and greedy work on them."""

from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_runs import PROMPTS, run_fake

from aisp.experiment.speed import scaling
from aisp.experiment.store.reading import load

CPU = Path(__file__).parents[3] / "data" / "results" / "cpu"


def test_batches_of_stored_records_are_found_again():
    """By their times, also where the records do not name their batch: 9 labels, 32 prompts, 8 each."""
    seconds = scaling.batch_seconds(load(CPU / "main_results_shp.jsonl"))
    assert len(seconds) == 36
    named = pd.read_json(CPU / "beyond_builtin_128.jsonl", lines=True)
    found = scaling.batch_seconds(load(CPU / "beyond_builtin_128.jsonl"))
    assert len(found) == len(named) / 8 and np.isclose(found.sum(), named["seconds"].sum())


def test_records_that_failed_are_of_no_batch(fake, tmp_path):
    fake.guilty = {PROMPTS[0].id}
    records = run_fake(tmp_path / "e.jsonl", PROMPTS[:3], {"A": {"method": "aisp"}})
    assert records["error"].notna().sum() == 1
    assert len(scaling.batch_seconds(load(tmp_path / "e.jsonl"))) == 2


@pytest.mark.parametrize(
    "seconds, workers, expected",
    [([3, 1, 1, 1], 2, 3), ([1, 1, 1, 3], 2, 4), ([5], 8, 5), ([2, 2, 2], 1, 6), ([], 2, 0)],
)
def test_a_batch_goes_to_the_worker_that_is_free_first(seconds, workers, expected):
    assert scaling.makespan(seconds, workers) == expected
    assert scaling.makespan(seconds, workers, start=1.5) == expected + 1.5


def test_speed_up_is_bounded_by_workers_and_by_the_longest_batch():
    seconds = np.array([1.0] * 30 + [10.0])
    table = scaling.simulated(seconds, overhead=0.5).set_index("workers")
    assert table.loc[1, "speedup"] == 1 and (table["speedup"] <= table.index).all()
    assert table["speedup"].is_monotonic_increasing
    assert table.loc[64, "speedup"] <= (seconds + 0.5).sum() / 10.5 + 1e-9
    assert table.loc[1, "hours"] == pytest.approx((seconds + 0.5).sum() / 3600)
    assert "below that of workers" in scaling.bounds(table.reset_index(), "x")
    long = scaling.simulated(np.append(np.ones(99), 50.0), [8])
    assert "bounded by the longest batch, 2.7 times a worker's share" in scaling.bounds(long, "x")
    even = scaling.bounds(scaling.simulated(np.ones(640), [64]), "Even")
    assert "64.0 times as fast as one, an efficiency of 100%" in even


def test_a_larger_table_of_the_same_batches_scales_further():
    seconds = scaling.batch_seconds(load(CPU / "main_results_shp.jsonl"))
    few = scaling.simulated(seconds).iloc[-1]
    many = scaling.of_the_papers_size(seconds, repeats=3).iloc[-1]
    assert many["batches"] == 750 and many["efficiency"] > 2 * few["efficiency"]


def test_what_was_measured_is_stored_and_said(tmp_path):
    nothing = (None, None, None)
    rows = [("this process", 2, 0.1, 1.0, *nothing), ("1 worker", 2, 9.0, 1.1, 0.004, 0.001, 0.01)]
    columns = ["way", "threads", "start", "seconds", "overhead", "low", "high"]
    table = pd.DataFrame([*rows, ("2 workers", 1, 12.0, 0.6, *nothing)], columns=columns)
    scaling._store(tmp_path / "workers.json", table, "cpu", 48)
    read = scaling.stored(tmp_path / "workers.json")
    assert read["seconds"].tolist() == [1.0, 1.1, 0.6] and read["overhead"].isna().tolist()[0]
    two, cost = scaling.sentences(read)
    assert "1.83 times as fast" in two and "takes 4 ms [1, 10] more" in cost
    today = date.today().isoformat()
    said = scaling.origin(tmp_path / "workers.json")
    assert said.startswith(f"Measured on {today} on a CPU with {torch.get_num_threads()} threads")


@pytest.mark.slow
def test_the_command_measures_this_machine(tmp_path):
    pytest.importorskip("ray")
    said = []
    out = tmp_path / "workers.json"
    scaling.main(["--out", str(out), "--seeds", "2", "--prompts", "2"], said.append)
    table = scaling.stored(out)
    assert table["way"].tolist() == ["this process", "1 worker", "2 workers"]
    assert (table["seconds"] > 0).all() and "Two workers" in said[1]
