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
    allowed = score(reward, ["One?", "Two?"], [["a", "no"], ["no", "no"]], [False, True])
    assert allowed[1].tolist() == [-float("inf")] * 2
    with pytest.raises(RewardError, match="all 2 candidates of prompt 'Two"):
        score(reward, ["One?", "Two?"], [["a", "no"], ["no", "no"]], [True, False])


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


@pytest.mark.parametrize("value", [1 + 2j, torch.tensor(1 + 2j), "numpy"], ids=type)
def test_complex_numbers_are_no_rewards(value):
    import numpy as np

    value = np.complex64(1 + 2j) if value == "numpy" else value
    with pytest.raises(RewardError, match=r"candidate 0: reward .* returned .*2.*j.*one number"):
        score(load_reward(lambda p, r: value), ["One?"], [["a"]])


def test_complex_batches_are_no_rewards():
    with pytest.raises(RewardError, match=r"complex numbers .torch.complex64.; a reward is a real"):
        score(Batched(torch.zeros(4, dtype=torch.complex64)), ["a", "b"], [["1", "2"], ["3", "4"]])


def test_a_reward_cannot_change_the_prompt(tiny):
    """Neither the caller's messages nor what the next response is scored with."""
    from aisp.prompts import Prompt

    seen = []

    def reward(prompt, response):
        messages = prompt if isinstance(prompt, list) else prompt.messages
        seen.append(messages[-1]["content"])
        messages[-1]["content"] += " changed"
        if isinstance(prompt, list):
            prompt.append({"role": "assistant", "content": response})
        return float(len(response))

    messages = [{"role": "user", "content": "Hi"}]
    prompt = Prompt("p", [{"role": "user", "content": "Hi"}], "test")
    options = dict(n=2, kappa=2, max_new_tokens=3, progress=False)

    class OfAClass(Reward):
        name = "changes"

        def score(self, prompts, responses):
            return torch.tensor([reward(p, r) for p, r in zip(prompts, responses, strict=True)])

    for changing in (load_reward(reward), OfAClass()):
        seen.clear()
        aisp.align([messages, prompt], tiny(), changing, **options)
        assert messages == list(prompt.messages) == [{"role": "user", "content": "Hi"}]
        assert seen == ["Hi"] * 8


def test_an_error_names_the_prompt_whatever_the_reward_did_to_it():
    def reward(prompt, response):
        prompt.clear()
        return None

    messages = [{"role": "user", "content": "Hi"}]
    for call in (lambda r: r.score([messages], ["a"]), lambda r: score(r, [messages], [["a"]])):
        with pytest.raises(RewardError, match=r"returned None .* on prompt 'Hi', response 'a'"):
            call(load_reward(reward))
    assert messages == [{"role": "user", "content": "Hi"}]


def test_a_name_given_to_a_callable_stays():
    assert CallableReward(len).name == "len"
    assert CallableReward(lambda p, r: 0.0).name == "<lambda>"
    assert CallableReward(len, name="length in characters").name == "length in characters"
    assert CallableReward(len, name="x").function is len


def test_control_characters_of_model_text_do_not_reach_the_terminal():
    def reward(prompt, response):
        raise ValueError(f"cannot parse {response}")

    with pytest.raises(RewardError) as caught:
        score(load_reward(reward), ["One\x1b[2J?"], [["a\x1b[31m\nb\x9bm"]])
    text = str(caught.value)
    assert text.isprintable() and r"cannot parse a\x1b[31m\nb\x9bm, on" in text
    with pytest.raises(RewardError) as caught:
        score(Batched(ValueError("\x1b[31m")), ["a"], [["\x1b[31m"]])
    assert str(caught.value).isprintable()
