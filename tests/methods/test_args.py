"""ARGS: each token is the one that logit plus weighted reward picks, and the calls are counted."""

from collections import Counter

import pytest
import torch

import aisp
from aisp.methods import configure
from aisp.state import generator

SIZE = dict(max_new_tokens=5, progress=False)


def vowels(prompt, response):
    """A reward that matters beside the logits of the tiny models."""
    return 3.0 * sum(response.count(v) for v in "aeiou") - 0.1 * len(response)


def by_hand(policy, prompt, reward, T, k, w, u=None):
    """The search again, one full forward pass per token; returns tokens and reward calls."""
    prefix, tokens, calls = policy.prefix(prompt), [], 0
    for t in range(T):
        with torch.inference_mode():
            logits = policy.model(torch.tensor([prefix + tokens]), use_cache=False).logits[0, -1]
        top = logits.double().topk(k)
        texts = [policy.decode([[*tokens, int(v)]])[0] for v in top.indices]
        scores = top.values + w * torch.tensor([reward(prompt, x) for x in texts])
        calls += k
        if u is None:
            pick = int(scores.argmax())
        else:
            pick = int((torch.softmax(scores, -1).cumsum(-1) <= u[t]).sum())
        tokens.append(int(top.indices[pick]))
        if tokens[-1] in policy.eos_ids:
            break
    return tokens, calls


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_greedy_search_is_the_definition(tiny, name):
    policy, prompts = tiny(name), ["Hi", "How do I learn to cook?"]
    outs = aisp.align(prompts, policy, vowels, method="args", k=7, w=20.0, **SIZE)
    for prompt, out in zip(prompts, outs, strict=True):
        tokens, calls = by_hand(policy, prompt, vowels, 5, 7, 20.0)
        assert out.response == policy.decode([tokens])[0]
        assert out.history["reward_calls"].tolist() == [calls + 1]
    plain = aisp.align(prompts, policy, vowels, method="args", k=7, w=0.0, **SIZE)
    greedy = aisp.align(prompts, policy, vowels, method="best_of_n", temperature=0.0, n=1, **SIZE)
    assert [o.response for o in plain] == [o.response for o in greedy]
    assert [o.response for o in plain] != [o.response for o in outs]


def test_stochastic_search_is_the_definition(tiny):
    policy, n = tiny(), 3
    out = aisp.align(
        "Hi", policy, vowels, method="args", n=n, kappa=2, k=6, w=0.5, temperature=1.0, **SIZE
    )
    for iteration in range(2):
        u = torch.rand(n, 5, generator=generator(0, "Hi", iteration, torch.device("cpu")))
        expected = [by_hand(policy, "Hi", vowels, 5, 6, 0.5, row) for row in u.double()]
        rows = out.candidates[out.candidates["iteration"] == iteration]
        assert rows["response"].tolist() == policy.decode([tokens for tokens, _ in expected])
        calls = sum(c for _, c in expected) + n
        assert out.history["reward_calls"][iteration] == calls
    assert out.candidates["response"].nunique() > 1


def test_rewards_are_asked_in_one_batch_per_step(tiny):
    sizes = []

    class Batched(aisp.Reward):
        def score(self, prompts, responses):
            sizes.append(len(responses))
            assert len(prompts) == len(responses)
            return torch.tensor([float(len(x)) for x in responses], dtype=torch.float64)

    policy = aisp.Policy(tiny().model, tiny().tokenizer, eos_ids=(257,))
    aisp.align(["Hi", "Yes"], policy, Batched(), method="args", k=4, **SIZE)
    assert sizes == [8] * 5 + [2]  # k candidates of two prompts per step, then the responses


def test_finished_responses_cost_no_reward_calls(tiny):
    """With every token an end, each of the two responses takes one step of k calls."""
    policy = aisp.Policy(tiny().model, tiny().tokenizer, eos_ids=tuple(range(258)))
    seen = Counter()

    def count(prompt, response):
        seen[prompt] += 1
        return 0.0

    outs = aisp.align(["Hi", "Yes"], policy, count, method="args", k=4, **SIZE)
    assert [o.history["reward_calls"][0] for o in outs] == [5, 5] == list(seen.values())


def test_a_rejected_candidate_is_never_taken(tiny):
    free = aisp.align("Hi", tiny(), lambda p, r: 0.0, method="args", **SIZE)

    def without(prompt, response):
        return -float("inf") if response == free.response[: len(response)] else 0.0

    out = aisp.align("Hi", tiny(), without, method="args", **SIZE)
    assert out.response[0] != free.response[0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"k": 0}, "k is 0; it must be a whole number >= 1"),
        ({"w": -1.0}, "w is -1.0; it must be >= 0"),
        ({"w": float("nan")}, "w is nan"),
        ({"top_p": 0.9}, "top_p is 0.9, but args looks at the k = 10 most"),
        ({"top_k": 5}, "leave out top_k and set k"),
    ],
)
def test_bad_parameters_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        configure("args", **bad)
