"""Rewards: what is accepted, what is refused, and that models score what they should."""

import pytest
import torch

import aisp
from aisp.rewards import CallableReward, Reward, RewardError, load_reward, score


def test_a_callable_gets_the_prompt_as_given():
    messages = [{"role": "user", "content": "Hi"}]
    seen = []
    reward = load_reward(lambda p, r: seen.append((p, r)) or len(r))
    values = reward.score(["Hi", messages], ["a", "bcd"])
    assert seen == [("Hi", "a"), (messages, "bcd")]
    assert values.dtype == torch.float64 and values.tolist() == [1.0, 3.0]


def test_numbers_of_any_kind_are_numbers():
    import numpy as np

    kinds = iter([1, 2.5, np.float32(3.5), torch.tensor(4.5), np.array([5.5]).item()])
    reward = CallableReward(lambda p, r: next(kinds))
    assert reward.score(["p"] * 5, list("abcde")).tolist() == [1, 2.5, 3.5, 4.5, 5.5]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "is nan for candidate 1"),
        (float("inf"), "is inf for candidate 1"),
        ("good", "candidate 1: reward .* returned 'good'"),
        (None, "candidate 1: reward .* returned None"),
        ([1.0, 2.0], r"candidate 1: reward .* returned \[1.0, 2.0\]"),
        (True, "candidate 1: reward .* returned True"),
        (ZeroDivisionError("oh"), "candidate 1: reward .* raised ZeroDivisionError: oh"),
    ],
)
def test_bad_values_name_prompt_and_candidate(value, message):
    def reward(prompt, response):
        if response != "bad":
            return 1.0
        if isinstance(value, Exception):
            raise value
        return value

    with pytest.raises(RewardError, match=message) as caught:
        score(load_reward(reward), ["One?", "Two?"], [["a", "b"], ["c", "bad"]])
    assert "'Two?'" in str(caught.value) and "'bad'" in str(caught.value)


def test_rejection_of_some_is_fine_and_of_all_names_the_prompt():
    reward = load_reward(lambda p, r: -float("inf") if r == "no" else 1.0)
    assert score(reward, ["One?"], [["a", "no"]]).tolist() == [[1.0, -float("inf")]]
    with pytest.raises(RewardError, match="all 2 candidates of prompt 'Two"):
        score(reward, ["One?", "Two?"], [["a", "no"], ["no", "no"]])


class Batched(Reward):
    name = "batched"

    def __init__(self, values):
        self.values = values

    def score(self, prompts, responses):
        if isinstance(self.values, Exception):
            raise self.values
        return self.values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(3), r"returned \(3,\) for 4 responses; return a tensor of shape \(4,\)"),
        (torch.zeros(4, 1), r"returned \(4, 1\) for 4 responses"),
        ([1.0] * 4, "returned list for 4 responses"),
        (KeyError("x"), "raised KeyError: 'x', on a batch of 4 responses"),
    ],
)
def test_batches_of_the_wrong_form_are_refused(values, message):
    with pytest.raises(RewardError, match=message):
        score(Batched(values), ["a", "b"], [["1", "2"], ["3", "4"]])


def test_a_batch_reward_is_taken_as_it_is():
    reward = Batched(torch.arange(4))
    assert load_reward(reward) is reward
    assert score(reward, ["a", "b"], [["1", "2"], ["3", "4"]]).tolist() == [[0, 1], [2, 3]]


def test_an_unknown_reward_says_what_was_tried():
    with pytest.raises(ValueError, match=r"cannot load 'no-such/reward'.*hub"):
        load_reward("no-such/reward", dtype="float32")


def test_a_failing_reward_leaves_the_candidates_reachable(tiny):
    calls = []

    def reward(prompt, response):
        calls.append(response)
        if len(calls) > 9:  # the second iteration's second prompt
            raise RuntimeError("out of credit")
        return float(len(calls))

    with pytest.raises(RewardError, match="raised RuntimeError: out of credit") as caught:
        aisp.align(["Hi", "Ho"], tiny(), reward, n=4, kappa=3, max_new_tokens=5, progress=False)
    table = caught.value.candidates
    assert len(table) == 16 and set(table["prompt"]) == {0, 1} and set(table["iteration"]) == {0, 1}
    first = table[table["iteration"] == 0]
    assert sorted(first["reward"]) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert table[table["iteration"] == 1]["reward"].isna().all()
    assert table["response"].map(lambda r: isinstance(r, str)).all()
