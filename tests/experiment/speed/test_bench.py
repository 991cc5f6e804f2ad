"""The benchmark measures what it says: equal tokens on all sides, in turn, with the right ratios."""

import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from aisp.engine import decoding
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.experiment.speed import bench, engines, targets, timing


def test_times_are_medians_of_the_repeats_without_the_warm_up():
    calls = []

    def slow():
        calls.append("slow")
        time.sleep(0.2 if len(calls) == 1 else 0.02)  # the warm-up is slower still

    table = timing.timed({"slow": slow, "fast": lambda: calls.append("fast")}, 3)
    assert calls == ["slow", "fast"] * 4, "in turn, so that a drift of the machine hits both"
    table = table.set_index("name")
    assert 0.02 <= table.loc["slow", "low"] <= table.loc["slow", "seconds"]
    assert table.loc["slow", "high"] < 0.2, "the warm-up was counted"
    assert table.loc["fast", "seconds"] < table.loc["slow", "low"]


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(1.0, 0, 0.9)], ids=["greedy", "top-p"])
def test_generate_and_the_engine_decode_the_same_number_of_tokens(tiny, decoding):
    policy = timing.endless(tiny("llama"))
    ids = timing.prefix_of(policy, 30)
    assert len(ids) == 30
    out = timing.generate(policy, ids, 3, 7, decoding)
    assert out.shape == (3, 37)


def test_scaling_and_lower_bounds(tiny):
    table = bench.scaling(
        tiny("llama"),
        axes={"responses": (2, 4), "prefix": (20, 40)},
        base={"prompts": 1, "responses": 2, "tokens": 3, "prefix": 40},
        repeats=1,
    )
    assert list(zip(table["axis"], table["value"], strict=True)) == [
        ("responses", 2),
        ("responses", 4),
        ("prefix", 20),
        ("prefix", 40),
    ]
    assert (table["low"] <= table["tokens_per_second"]).all()
    assert (table["tokens_per_second"] <= table["high"]).all()
    bound = timing.lower_bounds(tiny("llama"), rows=4, length=16, repeats=1)
    assert bound["name"].tolist() == ["matrix products", "cache"]
    assert (bound["seconds"] > 0).all()


def test_every_profile_of_the_notebook_has_all_sizes():
    smoke, *others = bench.SIZES.values()
    assert list(bench.SIZES) == ["smoke", "gpu-smoke", "cpu", "gpu"]
    for size in others:
        assert size.keys() == smoke.keys()
        assert all(size[k].keys() == smoke[k].keys() for k in ("whole", "many", "base", "axes"))


@pytest.mark.slow
def test_peak_memory_of_a_run_of_its_own():
    assert 300 < bench.peak_memory("aisp", n=2, kappa=1, tokens=3) < 20_000  # MiB


def test_each_step_of_the_engine_is_taken_away_alone(tiny, monkeypatch):
    calls = []

    def counted(*args, take_token=decoding.take_token, **options):
        out = rollout(*args, take_token=take_token, **options)
        shares, packs = (options.get(x, True) for x in ("share_prefixes", "pack_weights"))
        calls.append((options.get("decoding"), (shares, packs), take_token, out.tokens))
        return out

    monkeypatch.setattr(timing, "rollout", counted)
    table = bench.engine_steps(tiny("llama"), responses=20, tokens=5, prefix=30, repeats=1)
    names = ["as it is", "copied prefixes", "plain products", "plain argmax", "whole batch"]
    assert table["name"].tolist() == names * 2
    assert table["decoding"].tolist() == ["perturbed greedy"] * 5 + ["top-p 0.9"] * 5
    assert table["slower_by"][[0, 5]].tolist() == [1, 1]
    assert table["tokens_per_second"][1] == pytest.approx(20 * 5 / table["seconds"][1])
    timed = calls[5:10], calls[15:]  # without the warm-up
    plain = (True, True)
    for five, how in zip(timed, (None, timing.TOP_P), strict=True):
        assert [c[0] for c in five] == [how] * 5
        assert [c[1] for c in five] == [plain, (False, True), (True, False), plain, plain]
        assert [c[2] is decoding.take_token for c in five] == [True] * 3 + [False] * 2
        for c in five:  # in float32 a step that is taken away changes the time and no token
            assert torch.equal(c[3], five[0][3])
    assert five[4][2].keywords == {"rows_at_once": 20}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: timing.timed({}, 0), "repeats is 0; it must be a whole number >= 1"),
        (lambda p: timing.prefix_of(p, 2.5), "prefix is 2.5; it must be a whole number >= 1"),
        (lambda p: engines.engines(p, responses=(2, "4")), "responses is '4'"),
        (lambda p: engines.engines(p, tokens=0), "tokens is 0"),
        (lambda p: bench.engine_steps(p, responses=True), "responses is True"),
        (
            lambda p: bench.scaling(p, base=dict.fromkeys(bench.AXES, 1), axes={"prompt": (1,)}),
            "axis is 'prompt'; known: prompts, responses, tokens, prefix",
        ),
        (
            lambda p: bench.scaling(p, base=dict.fromkeys(bench.AXES, 1), axes={"tokens": (0,)}),
            "tokens is 0",
        ),
        (lambda p: timing.lower_bounds(p, rows=4, length=-1), "length is -1"),
    ],
)
def test_sizes_that_cannot_be_measured_are_refused(tiny, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny("llama"))


def test_a_failed_run_says_why_it_has_no_peak_memory():
    with pytest.raises(RuntimeError, match=r"(?s)failed: .*unrecognized arguments: --sizes=3"):
        bench.peak_memory("aisp", sizes=3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_targets_for_cuda_are_printed_there_and_nowhere_else(tiny, monkeypatch, capsys, device):
    policy = SimpleNamespace(device=torch.device(device), tokenizer=None)
    row = {"responses": 1, "decoding": "T = 1", "name": "engine", "ratio": 1.0, "share": 1.0}
    row |= dict.fromkeys(("tokens_per_second", "seconds", "low", "high"), 1.0)
    table = pd.DataFrame([row])
    monkeypatch.setattr(bench, "load_policy", lambda *args, **options: policy)
    monkeypatch.setattr(bench, "load_reward", lambda *args, **options: None)
    monkeypatch.setattr(bench, "machine", lambda policy: "a machine")
    monkeypatch.setattr(bench, "engines", lambda *args, **options: table)
    monkeypatch.setattr(bench, "whole_runs", lambda *args, **options: table)
    monkeypatch.setattr(bench, "peak_memory", lambda *args, **options: 1.0)
    found = [
        targets.SECONDS.row("a shape", 14.0, "16 x 16"),
        targets.not_measured("another", "why"),
    ]
    monkeypatch.setattr(targets, "table", lambda *args: pd.DataFrame(found))
    monkeypatch.setattr(sys, "argv", ["bench"])
    bench.main()
    *_, one, other = capsys.readouterr().out.splitlines()
    if device == "cuda":
        assert one == "a shape, time: 16 x 16" and other == "another: why"
    else:
        assert other == "further targets are for CUDA, and are not measured on cpu"
