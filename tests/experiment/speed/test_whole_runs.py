"""Whole runs of AISP and of best-of-n are compared at equal numbers of samples."""

import pytest
from tiny import reward

from aisp.experiment.speed.whole_runs import whole_runs
from aisp.rewards import load_reward


def test_whole_runs_use_equal_budgets(tiny):
    seen = []

    def reward(prompt, response):
        seen.append(prompt)
        return len(response)

    table = whole_runs(
        tiny("llama"), load_reward(reward), n=3, kappa=2, tokens=4, repeats=1, prompts=2
    )
    sides = ["AISP", "best-of-n", "best-of-n, by iteration", "best-of-n by generate"]
    assert table["name"].tolist() == sides
    assert table.set_index("name").loc["best-of-n", "ratio"] == 1
    assert len(seen) == 4 * (2 * 3 * 2), "sides x (prompts x n x kappa), once"
    assert len(set(seen)) == 2


def test_only_the_sides_that_are_asked_for_are_timed(tiny):
    sides = ["best-of-n", "AISP", "best-of-n, by iteration"]
    size = {"n": 2, "tokens": 3, "repeats": 1, "sides": sides}
    table = whole_runs(tiny("llama"), load_reward(reward), kappa=2, **size)
    assert set(table["name"]) == set(sides)
    table = whole_runs(tiny("llama"), load_reward(reward), kappa=1, **size)
    assert set(table["name"]) == {"best-of-n", "AISP"}, "one iteration is all of them"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": 0}, "prompts is 0"),
        ({"sides": ["AISP"]}, r"sides are \['AISP'\]; best-of-n, .* is not among them"),
        ({"sides": ["best-of-n", "vLLM"]}, "side is 'vLLM'; known: AISP, best-of-n"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tiny, given, message):
    with pytest.raises(ValueError, match=message):
        whole_runs(tiny("llama"), None, **given)
