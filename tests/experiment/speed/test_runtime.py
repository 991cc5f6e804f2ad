"""Sentences about timings: what a range supports, and what is noise."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from aisp.experiment.speed import bench, runtime, targets


def timings(**seconds):
    rows = [{"name": k, "seconds": s, "low": lo, "high": hi} for k, (s, lo, hi) in seconds.items()]
    return pd.DataFrame(rows)


def test_a_range_that_holds_one_supports_no_difference():
    table = timings(a=(10.0, 9.0, 11.0), b=(9.5, 9.0, 10.0), c=(20.0, 19.0, 21.0))
    assert "do not tell them apart" in runtime.longer(table, "a", "b")
    assert runtime.longer(table, "c", "b") == "**c** takes 2.11 times [1.90, 2.33] as long as b."


def test_the_engine_is_compared_with_the_faster_setting_of_generate():
    table = timings(
        generate=(40.0, 40.0, 40.0),
        engine=(10.0, 10.0, 10.0),
        vLLM=(11.0, 10.0, 12.0),
        **{"generate, static cache": (30.0, 30.0, 30.0)},
    ).assign(responses=8, decoding="T = 1", share=0.5)
    tables = {"engines": table}
    (sentence,) = runtime.against(tables, "generate")
    assert sentence.startswith("8 responses, T = 1:") and "3.00 times [3.00, 3.00]" in sentence
    assert "generate, static cache, the faster of its two settings" in sentence
    (sentence,) = runtime.against(tables, "vLLM")
    assert sentence.endswith("the engine is 1.10 times [1.00, 1.20] as fast as vLLM.")
    (sentence,) = runtime.against({"engines": table[table["name"] != "vLLM"]}, "vLLM")
    assert "was not measured" in sentence
    assert runtime.shares(tables) == ["**T = 1**: 50% at 8 responses of the machine's bound."]


def test_a_step_within_the_noise_of_the_table_is_said_to_be_so():
    rows = [(d, n, 1.0) for d in ("perturbed greedy", "top-p 0.9") for n in NAMES]
    table = pd.DataFrame(rows, columns=["decoding", "name", "slower_by"])
    table.loc[3, "slower_by"] = 0.8  # whole batch does nothing in greedy decoding
    table.loc[1, "slower_by"], table.loc[2, "slower_by"] = 1.6, 1.2
    assert runtime.noise_of_steps(table) == pytest.approx(1.25)
    noise, copied, argmax, *_ = runtime.steps(table)
    assert "0.80 (whole batch, perturbed greedy)" in noise and "below 1.25" in noise
    assert copied.endswith("1.60 times as long.") and argmax.endswith("within that noise.")


NAMES = ("as it is", "copied prefixes", "plain argmax", "whole batch")


def test_the_same_case_in_several_panels_tells_the_noise():
    rows = [
        ("prompts", 1, 100.0),
        ("prompts", 8, 180.0),
        ("tokens", 32, 125.0),
        ("tokens", 64, 150.0),
    ]
    tables = {"scaling": pd.DataFrame(rows, columns=["axis", "value", "tokens_per_second"])}
    tables["base"] = pd.DataFrame([{"prompts": 1, "tokens": 32}])
    noise, prompts, tokens = runtime.scaling(tables)
    assert "reads 100, 125 tokens/s" in noise and "factor of 1.25" in noise
    assert prompts.endswith("1.80 times the speed.") and "within that noise" in tokens


def test_what_is_stored_is_read_with_its_machine_and_date_and_named_when_missing(tmp_path):
    path = tmp_path / "runtime.json"
    with pytest.raises(FileNotFoundError, match="measure = True"):
        runtime.read(path)
    about = {"device": "cpu", "threads": 2, "dtype": "torch.bfloat16", "date": "2026-01-02"}
    about |= {"packages": {"torch": "2.0"}, "repeats": 3, "commit": "abcdefghij"}
    memory = [{"name": "aisp", "MiB": 1100.0}, {"name": "best_of_n", "MiB": 1000.0}]
    path.write_text(json.dumps(about | {"tables": {"memory": memory}}))
    stored = runtime.read(path)
    said = runtime.origin(path, stored).data
    assert "CPU, 2 threads, bfloat16" in said and "2026-01-02" in said and "abcdefg" in said
    assert "not measured now" in said and "no evidence" not in said
    stored.about["repeats"], stored.about["note"] = 1, "But for memory."
    said = runtime.origin(path, stored, now=True).data
    assert (
        "commit abcdefg. But for memory. Measured now" in said
        and "1 run of each side" in said
        and "no evidence" in said
    )
    assert "1.100 times" in runtime.memory(stored.tables["memory"])


@pytest.fixture
def nothing_measured(monkeypatch):
    one = pd.DataFrame([{"name": "x", "seconds": 1.0}])
    monkeypatch.setattr(runtime.engines, "engines", lambda *args, **kwargs: one)
    monkeypatch.setattr(runtime, "whole_runs", lambda *args, **kwargs: one)
    for name in ("engine_steps", "scaling"):
        monkeypatch.setattr(bench, name, lambda *args, **kwargs: one)
    monkeypatch.setattr(bench, "peak_memory", lambda *args, **kwargs: 1.0)
    monkeypatch.setattr(runtime.timing, "lower_bounds", lambda *args: one)


def test_measuring_writes_every_table_that_the_notebook_shows(tmp_path, nothing_measured):
    path = tmp_path / "cpu" / "runtime.json"
    runtime.measure(path, "smoke", dtype="float32", device="cpu", command="a command")
    made = runtime.read(path)
    committed = runtime.read(runtime.provenance.checkout() / "data/results/cpu/runtime.json")
    assert set(made.tables) == set(committed.tables)
    assert set(made.about) == set(committed.about) and made.about["repeats"] == 1
    with pytest.raises(ValueError, match="repeats"):
        runtime.measure(path, "smoke", repeats=0, command="")


@pytest.mark.parametrize(
    ("device", "profile"), [("cuda", "gpu"), ("cuda", "smoke"), ("cpu", "gpu")]
)
def test_on_cuda_the_targets_are_stored_too(
    tmp_path, monkeypatch, nothing_measured, device, profile
):
    policy = SimpleNamespace(device=torch.device(device), dtype=torch.bfloat16, tokenizer=None)
    monkeypatch.setattr(runtime, "load_policy", lambda *args, **options: policy)
    monkeypatch.setattr(runtime, "load_reward", lambda *args, **options: None)
    monkeypatch.setattr(runtime.provenance, "environment", lambda device: {})
    rows = [targets.SECONDS.row("fits", 14.0), targets.not_measured("does not", "why")]
    monkeypatch.setattr(targets, "table", lambda *args: pd.DataFrame(rows))
    path = tmp_path / "runtime.json"
    runtime.measure(path, profile, command="a command")
    assert "NaN" not in path.read_text(), "no JSON"
    tables = runtime.read(path).tables
    assert ("targets" in tables) == ((device, profile) == ("cuda", "gpu"))
    if "targets" in tables:
        assert tables["targets"]["met"].tolist() == ["yes", "not measured"]
        assert tables["targets"]["measured"].isna().tolist() == [False, True]


def test_targets_alone_are_stored_shape_by_shape(tmp_path, monkeypatch):
    shapes = [[targets.not_measured("one", "why")], [targets.not_measured("two", "why not")]]
    path, seen = tmp_path / "gpu" / "targets.json", []

    def by_shape(tokenizer, device, sizes):
        for rows in shapes:
            if path.exists():
                seen.append(runtime.read(path).tables["targets"]["shape"].tolist())
            yield rows

    monkeypatch.setattr(targets, "by_shape", by_shape)
    runtime.measure_targets(path, torch.device("cpu"), "a command")
    stored = runtime.read(path)
    assert seen == [["one"]] and stored.tables["targets"]["shape"].tolist() == ["one", "two"]
    assert "bfloat16" in runtime.origin(path, stored).data and stored.about["device"] == "cpu"


def test_without_a_gpu_no_target_is_measured(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SystemExit):
        runtime.main([])
    assert "finds no GPU" in capsys.readouterr().err


def test_targets_that_are_met_missed_and_not_measured_are_told_apart():
    rows = [targets.SECONDS.row("Llama-3-8B", 14.0, "why"), targets.SHARE.row("Llama-3-8B", 0.41)]
    rows.append(targets.not_measured("LFM2-1.2B", "it does not fit this GPU's memory"))
    about = {"device": "NVIDIA X", "dtype": "torch.bfloat16", "packages": {"torch": "2.11.0"}}
    about |= {"date": "2026-01-01", "command": "a command", "commit": "0123456789", "note": ""}
    stored = runtime.Stored(about, {"targets": pd.DataFrame(rows)})
    where, *_, left = runtime.of_targets(stored)
    assert where == (
        "Random weights on NVIDIA X, bfloat16, torch 2.11.0; measured on 2026-01-01 by `a command`, "
        "commit 0123456."
    )
    assert left == "Llama-3.2-1B: not measured."
    assert runtime.targets_met(stored) == (
        "Of 2 targets for CUDA, 1 are met on NVIDIA X; missed: Llama-3-8B, share of the bandwidth's "
        "bound (0.41 of 1, at least 0.6 wanted)."
    )
