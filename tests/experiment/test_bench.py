"""The benchmark measures what it says: equal tokens on all sides, in turn, with the right ratios."""

import time

import pytest

from aisp.engine.decoding import Decoding
from aisp.experiment import bench
from aisp.rewards import load_reward


def test_times_are_medians_of_the_repeats_without_the_warm_up():
    calls = []

    def slow():
        calls.append("slow")
        time.sleep(0.2 if len(calls) == 1 else 0.02)  # the warm-up is slower still

    table = bench.timed({"slow": slow, "fast": lambda: calls.append("fast")}, 3)
    assert calls == ["slow", "fast"] * 4, "in turn, so that a drift of the machine hits both"
    table = table.set_index("name")
    assert 0.02 <= table.loc["slow", "low"] <= table.loc["slow", "seconds"]
    assert table.loc["slow", "high"] < 0.2, "the warm-up was counted"
    assert table.loc["fast", "seconds"] < table.loc["slow", "low"]


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(1.0, 0, 0.9)], ids=["greedy", "top-p"])
def test_generate_and_the_engine_decode_the_same_number_of_tokens(tiny, decoding):
    policy = bench.endless(tiny("llama"))
    ids = bench.prefix_of(policy, 30)
    assert len(ids) == 30
    out = bench.generate(policy, ids, 3, 7, decoding)
    assert out.shape == (3, 37)
    table = bench.against_generate(
        tiny("llama"), responses=(2, 3), tokens=5, prefix=30, repeats=1, decoding=decoding
    )
    sides = ["generate", "engine"]
    assert table["name"].tolist() == [*sides, *sides, "generate, static cache"]
    for responses, group in table.groupby("responses"):
        group = group.set_index("name")
        assert group.loc["engine", "tokens_per_second"] == pytest.approx(
            responses * 5 / group.loc["engine", "seconds"]
        )
        rivals = group.drop("engine")["seconds"]
        assert group.loc["engine", "ratio"] == pytest.approx(
            rivals.min() / group.loc["engine", "seconds"]
        )
        assert group.loc[rivals.idxmin(), "ratio"] == 1


def test_whole_runs_use_equal_budgets(tiny):
    seen = []

    def reward(prompt, response):
        seen.append(prompt)
        return len(response)

    table = bench.whole_runs(
        tiny("llama"), load_reward(reward), n=3, kappa=2, tokens=4, repeats=1, prompts=2
    )
    assert table["name"].tolist() == ["AISP", "best-of-n", "best-of-n by generate"]
    assert table.set_index("name").loc["best-of-n", "ratio"] == 1
    assert len(seen) == 3 * (2 * 3 * 2), "sides x (prompts x n x kappa), once"
    assert len(set(seen)) == 2


def test_scaling_and_limit(tiny):
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
    bound = bench.limit(tiny("llama"), rows=4, length=16, repeats=1)
    assert bound["name"].tolist() == ["matrix products", "cache"]
    assert (bound["seconds"] > 0).all()


def test_every_profile_of_the_notebook_has_all_sizes():
    smoke, *others = bench.SIZES.values()
    assert list(bench.SIZES) == ["smoke", "cpu", "gpu"]
    for size in others:
        assert size.keys() == smoke.keys()
        assert all(size[k].keys() == smoke[k].keys() for k in ("whole", "many", "base", "axes"))


@pytest.mark.slow
def test_peak_memory_of_a_run_of_its_own():
    assert 300 < bench.peak_memory("aisp", n=2, kappa=1, tokens=3) < 20_000  # MiB
