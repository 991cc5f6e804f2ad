"""KAD: its rules against brute force, and the method's own contract.

That both decoders follow the law of its cascade is tested in engine/test_mixture.py.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from laws import CASES, brute_force, laws
from tiny import reward

import aisp
from aisp import figures
from aisp.methods import configure
from aisp.methods.kad import RULES, cascade

# -- rules and the cascade ------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_rules_follow_their_definition(rule):
    p, q = laws(200, 6, 0), laws(200, 6, 1)
    for amount in (0.0, 0.1, 0.35, 0.8, 1.0):
        d = RULES[rule](p, q, amount)
        assert d.shape == p.shape and d.dtype == torch.bool
        if rule == "primal" and amount in (0, 1):
            assert bool((d == bool(amount)).all())
        else:
            assert d.tolist() == [brute_force(rule, *row, amount) for row in zip(p, q, strict=True)]


def test_the_primal_stops_at_the_first_token_that_does_not_fit():
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.75, 0.25, 0.0, 0.0]])
    d = RULES["primal"](p, p, 0.5)  # the last three weigh 0.5 exactly, and fit
    assert d.tolist() == [[False, True, True, True], [False, True, True, True]]
    d = RULES["primal"](p, p, 0.375)  # 0.25 does not fit on top of 0.25
    assert d.tolist() == [[False, False, True, True], [False, True, True, True]]


def test_the_primal_approximates_the_knapsack():
    """Within budget; optimal for the mass used; short of the optimum by (B - mass) * -log p(c)."""
    rng = np.random.default_rng(3)
    subsets = np.array(list(itertools.product([0, 1], repeat=6)), dtype=float)
    short = []
    for p in laws(300, 6, 2).double().numpy().clip(1e-9):
        budget = rng.uniform(0.02, 0.98)
        d = RULES["primal"](torch.tensor(p)[None], None, budget)[0].numpy()
        mass, value = subsets @ p, subsets @ (-p * np.log(p))
        used, got = p[d].sum(), (-p * np.log(p))[d].sum()
        assert used <= budget + 1e-9
        assert got == pytest.approx(value[mass <= used + 1e-9].max(), abs=1e-9)
        critical = p[~d].min()
        gap = value[mass <= budget].max() - got
        assert gap <= (budget - used) * -math.log(critical) + 1e-9
        assert gap < -critical * math.log(critical) + 1e-9 <= 1 / math.e + 1e-8
        short.append(gap)
    assert max(short) > 0.05  # greedy it is, not optimal


def test_primal_and_dual_correspond():
    p = laws(200, 6, 4)
    for budget in (0.2, 0.5, 0.9):
        d = RULES["primal"](p, p, budget)
        for row, mask in zip(p, d, strict=True):
            critical = float(row[~mask].min())
            assert RULES["dual"](row[None], None, critical)[0].tolist() == mask.tolist()
            back = RULES["primal"](row[None], None, float(row[mask].double().sum()) + 1e-6)
            assert back[0].tolist() == mask.tolist()


def test_the_cascade_is_a_law_and_exact_at_its_ends():
    p, q = laws(50, 6, 5), laws(50, 6, 6)
    for rule, amount in CASES:
        d = RULES[rule](p, q, amount)
        pi, mass = cascade(p, q, d)
        np.testing.assert_allclose(pi.sum(-1), 1, atol=1e-6)
        for y in range(6):
            given = sum(p[:, v] * d[:, v] for v in range(6))
            np.testing.assert_allclose(pi[:, y], p[:, y] * ~d[:, y] + q[:, y] * given, atol=1e-6)
        np.testing.assert_allclose(mass, given, atol=1e-6)
    for ends, same in ((0.0, p), (1.0, q)):
        pi, mass = cascade(p, q, RULES["primal"](p, q, ends))
        assert torch.equal(pi, same) and bool((mass == ends).all())


SMALL = dict(n=3, kappa=2, max_new_tokens=9, progress=False)


@pytest.mark.parametrize("window", [0, 1, 4])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_batched_equals_alone(tiny, name, window):
    large = replace(tiny(name), template="continuation")
    prompts = ["Hi", "How do I learn to cook?", "a b"]
    together = aisp.align(prompts, large, reward, "kad", window=window, **SMALL)
    for prompt, one in zip(prompts, together, strict=True):
        alone = aisp.align(prompt, large, reward, "kad", window=window, **SMALL)
        assert alone.candidates["response"].tolist() == one.candidates["response"].tolist()
        columns = ["tokens", "deferred", "large_passes"] + ["acceptance_length"] * bool(window)
        np.testing.assert_allclose(
            alone.history[columns].astype(float), one.history[columns].astype(float), rtol=1e-4
        )


# -- the method's own contract --------------------------------------------------------------------


def test_history_says_what_was_deferred_and_how_fast(tiny):
    large = replace(tiny(), template="continuation")
    own = ["deferred", "large_passes", "tokens_per_second"]
    for window in (0, 2):
        outs = aisp.align(["Hi", "Hello"], large, reward, "kad", window=window, **SMALL)
        for out in outs:
            assert set(own) | ({"acceptance_length"} if window else set()) <= set(out.history)
            assert ((out.history["deferred"] > 0) & (out.history["deferred"] < 0.5)).all()
            assert (out.history["tokens_per_second"] > 0).all()
    assert outs[0].config.describe()["budget"] == 0.5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (dict(rule="greedy"), "rule is 'greedy'; known: primal, dual"),
        (dict(budget=1.5), "budget is 1.5; it must lie in \\[0, 1\\], for rule 'primal'"),
        (dict(budget=float("nan")), "budget is nan"),
        (dict(threshold=0.1), "threshold is 0.1, but rule 'primal' has none; give budget"),
        (dict(rule="dual"), "threshold is None; it must lie in .*, for rule 'dual'"),
        (dict(rule="nudging", threshold=-0.1), "threshold is -0.1"),
        (dict(rule="dual", threshold=0.1, budget=0.5), "budget is 0.5, but rule 'dual' has none"),
        (dict(window=-1), "window is -1; it must be a whole number >= 0"),
        (dict(window=1.5), "window is 1.5"),
        (dict(aligned="embedded"), "aligned is 'embedded'; it must be a Policy"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        configure("kad", **parameters)


def test_models_that_do_not_fit_are_refused(tiny, pairs):
    with pytest.raises(ValueError, match="its chat template, but that is the policy itself"):
        aisp.align("Hi", tiny(), reward, "kad", **SMALL)
    with pytest.raises(ValueError, match="different vocabularies \\(258 and 5 tokens"):
        aisp.align("Hi", tiny(), reward, "kad", aligned=pairs["models"][1], **SMALL)
    sliding = replace(tiny("gemma3"), template="continuation")
    with pytest.raises(ValueError, match=r"sliding window.*window=0"):
        aisp.align("Hi", sliding, reward, "kad", window=2, **SMALL)
    assert aisp.align("Hi", sliding, reward, "kad", **SMALL).response, "it decodes in lockstep"
    long = replace(tiny(), template=lambda messages: "x" * 250)
    with pytest.raises(ValueError, match="shorten either"):
        aisp.align("Hi", replace(tiny(), template="continuation"), reward, "kad",
                   aligned=long, **SMALL)  # fmt: skip


def test_the_record_names_model_and_template_of_the_aligned_policy(tiny):
    assert configure("kad", aligned=tiny()).describe()["aligned"] == "tiny-llama (chat)"
    assert configure("kad").describe()["aligned"] is None
    custom = replace(tiny(), template=lambda messages: "a")
    assert configure("kad", aligned=custom).describe()["aligned"] == "tiny-llama (custom)"


def test_figure_of_reward_against_deferred_mass():
    rows = []
    for rule, amounts in (("primal", (0.0, 0.5, 1.0)), ("dual", (0.2,))):
        for amount, prompt in itertools.product(amounts, ("x", "y", "z")):
            shift = amount + (prompt == "x")
            history = {"deferred": [amount, amount], "reward_mean": [shift, shift + 1]}
            rows.append(
                {"label": f"{rule} {amount}", "prompt": prompt, "config": {"rule": rule},
                 "reward": shift + 2, "history": history}
            )  # fmt: skip
    rows = rows[:-1]  # dual lacks a prompt: it is left out for all
    fig = figures.deferral(pd.DataFrame(rows))
    single, best = fig.axes
    x, y = single.containers[0].lines[0].get_data()
    np.testing.assert_allclose(x, [0, 0.5, 1])
    np.testing.assert_allclose(y, [1, 1.5, 2])  # of x and y: 0.5 + 0.5 + amount
    np.testing.assert_allclose(best.containers[0].lines[0].get_data()[1], [2.5, 3, 3.5])
    assert [c.get_label() for c in single.containers] == ["primal", "dual"]
    assert "2 prompts" in single.get_title(loc="left")
