"""Win rates: both orders asked, ties counted, and what the judges read."""

import math

import pytest
import torch
from tiny import llama

import aisp
from aisp.intervals import bootstrap
from aisp.metrics import comparison
from aisp.rewards import RewardError, load_reward

TURNS = [
    {"role": "user", "content": "Is tea hot?"},
    {"role": "assistant", "content": "Usually."},
    {"role": "user", "content": "And coffee?"},
]


def test_win_rate_asks_both_orders_and_counts_ties_half():
    asked = []
    verdicts = {  # what the judge says when a stands first, and when b does
        "win": (2.0, -0.1),
        "loss": (-1, 3),
        "tie": (0, 0),
        "first": (1, 1),
        "half": (1, 0),
    }

    def judge(prompt, first, second):
        asked.append((prompt, first, second))
        return verdicts[prompt][first == "b"]

    prompts = [*verdicts, "same"]
    got = comparison.win_rate(prompts, ["a"] * 6, ["b"] * 5 + ["a"], judge, draws=500, seed=3)
    expected = [1, 0, 0.5, 0.5, 0.75, 0.5]
    assert asked == [pair for p in verdicts for pair in ((p, "a", "b"), (p, "b", "a"))]
    assert got["wins"] == pytest.approx(sum(expected) / 6) and got["prompts"] == 6
    assert got["agreement"] == pytest.approx(4 / 6)
    assert (got["low"], got["high"]) == bootstrap(expected, draws=500, seed=3)
    back = comparison.win_rate(
        prompts, ["b"] * 5 + ["a"], ["a"] * 6, lambda p, x, y: verdicts[p][x == "b"]
    )
    assert back["wins"] == pytest.approx(1 - got["wins"])


@pytest.mark.parametrize("value", [math.nan, None, True, "A", torch.tensor(math.nan)])
def test_a_judge_returns_a_number(value):
    with pytest.raises(ValueError, match=r"the judge returned .* on prompt 'Tea\?'; it must"):
        comparison.win_rate(["Tea?"], ["a"], ["b"], lambda *_: value)


def test_win_rate_takes_matching_lists():
    judge = comparison.reward_judge(load_reward(lambda p, r: len(r)))
    with pytest.raises(ValueError, match="no prompts"):
        comparison.win_rate([], [], [], judge)
    for a, b in ((["x"], ["y", "z"]), (["x", "y"], ["z"])):
        with pytest.raises(ValueError, match=r"2 prompts and \d responses"):
            comparison.win_rate(["p"] * 2, a, b, judge)
    with pytest.raises(TypeError, match="not a single string"):
        comparison.win_rate(["p"], "x", ["y"], judge)


def test_reward_judge_prefers_the_higher_reward_in_both_orders():
    scored = []

    def longer(prompt, response):
        scored.append((prompt, response))
        return -math.inf if response == "rejected" else float(len(response))

    judge = comparison.reward_judge(load_reward(longer))
    assert judge("p", "b", "aaa") == -2 and judge("p", "aaa", "b") == 2
    assert scored == [("p", "aaa"), ("p", "b")] * 2  # always in one order
    assert judge("p", "ab", "cd") == 0 and judge("p", "b", "rejected") == math.inf
    assert judge("p", "rejected", "rejected") == 0
    got = comparison.win_rate(["p"] * 3, ["aaa", "c", "ab"], ["b", "aa", "cd"], judge)
    assert got["wins"] == 0.5 and got["agreement"] == 1
    with pytest.raises(RewardError, match="raised ZeroDivisionError"):
        comparison.reward_judge(load_reward(lambda p, r: 1 / 0))("p", "a", "b")


def next_token_logits(policy, question):
    with torch.no_grad():
        return policy.model(torch.tensor([policy.prefix(question)])).logits[0, -1].double()


def test_language_model_judge_reads_the_next_token(byte_tokenizer):
    policy = aisp.Policy(llama(max_position_embeddings=600), byte_tokenizer)
    judge = comparison.language_model_judge(policy)
    question = comparison.QUESTION.format(
        conversation="User: Is tea hot?\n\nAssistant: Usually.\n\nUser: And coffee?",
        first="Yes {it} is.",
        second="No.",
    )
    probs = next_token_logits(policy, question).softmax(-1)
    a, b = (byte_tokenizer(letter)["input_ids"] for letter in "AB")
    expected = (probs[a] / probs[b]).log().item()
    assert judge(TURNS, "Yes {it} is.", "No.") == pytest.approx(expected, rel=1e-4)
    assert judge(TURNS, "No.", "Yes {it} is.") != pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match="of the 600 positions"):
        judge("Hi", "x" * 600, "y")


def test_language_model_judge_counts_a_letter_after_a_space_too(embedded):
    question = comparison.QUESTION.format(conversation="User: Hi", first="Hello!", second="No.")
    probs = next_token_logits(embedded, question).softmax(-1)
    vocabulary = embedded.tokenizer.get_vocab()
    ids = [[vocabulary[x], vocabulary["Ġ" + x]] for x in "AB"]
    assert [comparison._letter_ids(embedded.tokenizer, x) for x in "AB"] == ids
    a, b = (probs[pair].sum() for pair in ids)
    judge = comparison.language_model_judge(embedded)
    assert judge("Hi", "Hello!", "No.") == pytest.approx((a / b).log().item(), rel=1e-4)


def test_language_model_judge_needs_letters_that_are_tokens(tiny):
    class Pieces:
        def __call__(self, text, **_):
            return {"input_ids": [1, 2, 3][: 1 + (text.strip() == "B")]}

    with pytest.raises(ValueError, match="'B' is not one token"):
        comparison.language_model_judge(type("P", (), {"tokenizer": Pieces()})())


def test_win_rate_checks_its_numbers():
    judge = comparison.reward_judge(load_reward(lambda p, r: len(r)))
    for name, wrong in (("draws", 0), ("draws", 10.5), ("seed", -1), ("seed", True)):
        with pytest.raises(ValueError, match=f"{name} is {wrong}; it must be a whole number"):
            comparison.win_rate(["p"], ["x"], ["yy"], judge, **{name: wrong})
    with pytest.raises(ValueError, match=r"the judge returned \(1\+1j\)"):
        comparison.win_rate(["p"], ["x"], ["yy"], lambda *_: 1 + 1j)
