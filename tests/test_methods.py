"""What holds for every method: one call, one result type, budgets, interrupts, bad input."""

import inspect
import re

import numpy as np
import pytest
import torch

import aisp
from aisp.decoding import Decoding
from aisp.methods import METHODS, available, configure
from aisp.rollout import rollout

PROMPTS = ["Hi", "How do I learn to cook?"]
SMALL = dict(n=4, kappa=3, max_new_tokens=6, progress=False)
CANDIDATES = ["iteration", "sample", "response", "reward", "log_weight"]
HISTORY = [
    "iteration",
    "reward_mean",
    "reward_std",
    "reward_max",
    "reward_best",
    "ess",
    "kl",
    "tokens",
    "seconds",
]
each_method = pytest.mark.parametrize("method", sorted(METHODS))


def reward(prompt, response):
    return len(set(response)) + 0.01 * len(response)


def test_the_known_methods_are_listed():
    assert {"aisp", "best_of_n"} <= set(available())


@each_method
def test_the_signature_is_one_and_the_same(method):
    run, config = METHODS[method]
    assert list(inspect.signature(run).parameters) == [
        "prompts",
        "policy",
        "reward",
        "config",
        "seed",
        "progress",
    ]
    for name in inspect.signature(config).parameters:  # the one place where they are documented
        assert any(re.search(rf"\b{name}\b", c.__doc__ or "") for c in config.__mro__), name


@each_method
def test_result_type_and_accounting(tiny, method):
    out = aisp.align("Hi", tiny(), reward, method=method, seed=5, **SMALL)
    assert list(out.candidates) == CANDIDATES and list(out.history) == HISTORY
    assert len(out.candidates) == 12 and len(out.history) == 3
    assert out.method == method and out.seed == 5 and not out.interrupted
    assert out.config == configure(method, **{k: v for k, v in SMALL.items() if k != "progress"})
    best = out.candidates.loc[out.candidates["reward"].idxmax()]
    assert (out.response, out.reward) == (best["response"], best["reward"])
    assert out.reward == reward("Hi", out.response)
    for k, h in out.history.iterrows():
        rows = out.candidates[out.candidates["iteration"] == k]
        assert rows["sample"].tolist() == [0, 1, 2, 3]
        np.testing.assert_allclose(h.reward_mean, rows["reward"].mean())
        np.testing.assert_allclose(h.reward_std, rows["reward"].std(ddof=0), atol=1e-12)
        assert h.reward_max == rows["reward"].max()
        seen = out.candidates[out.candidates["iteration"] <= k]
        assert h.reward_best == seen["reward"].max()
        assert 4 <= h.tokens <= 4 * 6 and h.seconds > 0
    assert repr(out).startswith(f"Alignment({method}, reward=")


@each_method
def test_batched_equals_alone_and_seeds_reproduce(tiny, method):
    together = aisp.align(PROMPTS, tiny(), reward, method=method, **SMALL)
    assert isinstance(together, list) and len(together) == 2
    for prompt, one in zip(PROMPTS, together, strict=True):
        alone = aisp.align(prompt, tiny(), reward, method=method, **SMALL)
        assert alone.candidates["response"].tolist() == one.candidates["response"].tolist()
    other = aisp.align("Hi", tiny(), reward, method=method, seed=1, **SMALL)
    assert other.candidates["response"].tolist() != together[0].candidates["response"].tolist()


@each_method
def test_no_gradient_and_no_weight_changes(tiny, method):
    policy = tiny()
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    aisp.align("Hi", policy, reward, method=method, **SMALL)
    assert all(p.grad is None and not p.requires_grad for p in policy.model.parameters())
    for name, value in policy.model.state_dict().items():
        assert torch.equal(value, before[name])


@each_method
def test_budgets_stop_early(tiny, method):
    few = aisp.align("Hi", tiny(), reward, method=method, token_budget=1, **SMALL)
    assert len(few.history) == 1 and not few.interrupted
    some = aisp.align("Hi", tiny(), reward, method=method, **SMALL)
    tokens = some.history["tokens"]
    two = aisp.align("Hi", tiny(), reward, method=method, token_budget=int(tokens[0]) + 1, **SMALL)
    assert len(two.history) == 2
    quick = aisp.align("Hi", tiny(), reward, method=method, second_budget=1e-9, **SMALL)
    assert len(quick.history) == 1
    # A prompt that has spent its budget leaves the batch; the others are not disturbed.
    budget = dict(method=method, token_budget=int(tokens[0]))
    together = aisp.align(PROMPTS, tiny(), reward, **budget, **SMALL)
    for prompt, one in zip(PROMPTS, together, strict=True):
        alone = aisp.align(prompt, tiny(), reward, **budget, **SMALL)
        assert alone.candidates["response"].tolist() == one.candidates["response"].tolist()


@each_method
def test_an_interrupt_returns_what_there_is(tiny, method):
    calls = []

    def impatient(prompt, response):
        calls.append(response)
        if len(calls) > 10:  # in the third iteration
            raise KeyboardInterrupt
        return reward(prompt, response)

    out = aisp.align("Hi", tiny(), impatient, method=method, **SMALL)
    assert out.interrupted and len(out.history) == 2 and len(out.candidates) == 8
    assert out.reward == out.candidates["reward"].max()

    calls.extend("x" * 20)  # now in the first iteration: there is nothing to return
    with pytest.raises(KeyboardInterrupt):
        aisp.align("Hi", tiny(), impatient, method=method, **SMALL)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "must contain text"),
        ("   ", "must contain text"),
        ([], "empty"),
        (["Hi", ""], "must contain text"),
        ([{"role": "user", "content": ""}], "must contain text"),
        ([{"role": "assistant", "content": "Hi"}], "user"),
        ([{"text": "Hi"}], "role"),
    ],
)
def test_bad_prompts_are_refused(tiny, prompt, message):
    with pytest.raises(ValueError, match=message):
        aisp.align(prompt, tiny(), reward, **SMALL)


def test_other_bad_calls_are_refused(tiny):
    with pytest.raises(TypeError, match="prompts is 7"):
        aisp.align(7, tiny(), reward)
    with pytest.raises(ValueError, match="unknown method 'bon'; known: aisp, best_of_n"):
        aisp.align("Hi", tiny(), reward, method="bon")
    with pytest.raises(ValueError, match="best_of_n has no parameter 'sigma'; it takes: n, kappa"):
        aisp.align("Hi", tiny(), reward, method="best_of_n", sigma=0.5)
    with pytest.raises(ValueError, match="shorten either"):
        aisp.align("x" * 250, tiny(), reward)


def test_best_of_n_samples_the_policy(tiny):
    """Its candidates are the engine's samples at the stated decoding, nothing else."""
    from aisp.alignment import generator

    out = aisp.align("Hi", tiny(), reward, method="best_of_n", seed=2, **SMALL)
    policy = tiny()
    for k in range(3):
        texts = rollout(
            policy,
            [policy.prefix("Hi")],
            4,
            6,
            decoding=Decoding(1.0, 0, 0.9),
            generators=[generator(2, "Hi", k, torch.device("cpu"))],
        ).texts[0]
        assert out.candidates[out.candidates["iteration"] == k]["response"].tolist() == texts
    assert out.candidates["log_weight"].isna().all() and out.history["ess"].isna().all()


def test_a_prompt_object_is_a_prompt(tiny):
    prompts = aisp.load_prompts("builtin", limit=2)
    outs = aisp.align(prompts, tiny(), reward, **SMALL)
    assert [o.prompt for o in outs] == prompts
    same = aisp.align(list(prompts[0].messages), tiny(), reward, **SMALL)
    assert same.response == outs[0].response


def test_the_progress_bar_can_be_switched_off(tiny, capsys):
    aisp.align("Hi", tiny(), reward, **SMALL)
    assert capsys.readouterr().err == ""
    aisp.align("Hi", tiny(), reward, **{**SMALL, "progress": True})
    assert "aisp" in capsys.readouterr().err
