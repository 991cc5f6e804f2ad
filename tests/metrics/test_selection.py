"""Rules of selection against enumeration: every subset of a small pool, every outcome of a rule."""

from functools import partial
from itertools import combinations
from math import exp, factorial

import numpy as np
import pytest
import torch

from aisp.metrics import selection

REWARDS = torch.tensor([0.3, -1.2, 2.0, 0.9, 1.7, -0.4, 0.35], dtype=torch.float64)
TIED = torch.tensor([1.0, 0.0, 1.0, -2.0, 0.0, 1.0], dtype=torch.float64)
JUDGE = torch.tensor([0.1, 0.7, -0.5, 1.1, 0.2, -0.9, 0.4])


def hard(rewards):
    """The highest takes all, ties share; in plain Python."""
    best = [r == max(rewards) for r in rewards]
    return [b / sum(best) for b in best]


def soft(rewards, lam=0.7):
    powers = [exp(r / lam) for r in rewards]
    return [x / sum(powers) for x in powers]


def cautious(rewards, beta=0.4):
    """The definition of pessimism, c by bisection: the weights max(0, (r - c) / beta) have mean 1."""
    low, high = min(rewards) - beta, max(rewards)
    for _ in range(200):
        c = (low + high) / 2
        mean = sum(max(0.0, (r - c) / beta) for r in rewards) / len(rewards)
        low, high = (c, high) if mean > 1 else (low, c)
    return [max(0.0, (r - c) / beta) / len(rewards) for r in rewards]


def enumerated(rule, rewards, n):
    """Mean over all subsets of size n of what a rule does on them."""
    found, subsets = np.zeros(len(rewards)), list(combinations(range(len(rewards)), n))
    for subset in subsets:
        for i, p in zip(subset, rule([float(rewards[j]) for j in subset]), strict=True):
            found[i] += p / len(subsets)
    return torch.from_numpy(found)


@pytest.mark.parametrize("rewards", [REWARDS, TIED], ids=["distinct", "tied"])
def test_best_of_n_is_the_mean_over_all_subsets(rewards):
    for n in range(1, len(rewards) + 1):
        exact = enumerated(hard, rewards, n)
        torch.testing.assert_close(selection.best_of_n(rewards, n), exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rewards", [REWARDS, TIED], ids=["distinct", "tied"])
def test_best_of_poisson_mixes_over_the_number_of_draws(rewards):
    """n - 1 is Poisson: at a mean of 1.01, more than 6 draws happen once in 10^14."""
    for mean in (1.0, 1.01, 1.05):
        weights = [exp(1 - mean) * (mean - 1) ** k / factorial(k) for k in range(len(rewards))]
        exact = sum(w * enumerated(hard, rewards, k + 1) for k, w in enumerate(weights))
        found = selection.best_of_poisson(rewards, mean)
        torch.testing.assert_close(found, exact, atol=1e-6, rtol=0)
    large = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rank = large.argsort().argsort()

    def law(F):  # the law of the paper, of n draws with replacement: F exp(mu (F - 1))
        return F * torch.exp(7.0 * (F - 1))

    limit = law((rank + 1) / 400) - law(rank / 400)
    found = selection.best_of_poisson(large, 8.0)
    assert (found - limit).abs().max() < 0.06 * limit.max() and abs(found.sum() - 1) < 1e-12
    with pytest.raises(
        ValueError, match=r"mean is 390; n would exceed the pool of 400 with probability 0.3"
    ):
        selection.best_of_poisson(large, 390)


@pytest.mark.parametrize("rewards", [REWARDS, TIED], ids=["distinct", "tied"])
def test_soft_and_pessimistic_probabilities_are_those_of_their_definitions(rewards):
    listed = rewards.tolist()
    for lam in (0.05, 0.7, 30.0):
        exact = torch.tensor(soft(listed, lam), dtype=torch.float64)
        torch.testing.assert_close(selection.soft(rewards, lam), exact, atol=1e-12, rtol=0)
    for beta in (1e-3, 0.1, 0.4, 5.0):
        exact = torch.tensor(cautious(listed, beta), dtype=torch.float64)
        torch.testing.assert_close(selection.pessimism(rewards, beta), exact, atol=1e-9, rtol=0)


def test_the_ends_of_every_dial_are_best_of_n_and_a_plain_draw():
    best, plain = selection.best_of_n(REWARDS, 7), torch.full((7,), 1 / 7, dtype=torch.float64)
    assert best.tolist() == hard(REWARDS.tolist())
    for rule in (selection.soft, selection.pessimism):
        torch.testing.assert_close(rule(REWARDS, 1e-4), best, atol=1e-9, rtol=0)
        torch.testing.assert_close(rule(REWARDS, 1e9), plain, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("rule", "reference"),
    [
        (partial(selection.soft, lam=0.7), soft),
        (partial(selection.pessimism, beta=0.4), cautious),
        (lambda r: selection.best_of_n(r, r.shape[-1]), hard),
    ],
    ids=["soft", "pessimism", "best"],
)
def test_subsets_average_to_the_enumeration(rule, reference):
    """At 4,000 permutations within 5 standard errors; at n = 1 and n = N exactly."""
    for n in range(1, 8):
        exact = enumerated(reference, REWARDS, n)
        found = selection.over_subsets(rule, REWARDS, n, permutations=4000)
        bound = 1e-9 if n in (1, 7) else 5 * 0.5 / (4000 * (7 // n)) ** 0.5
        assert (found - exact).abs().max() < bound
        assert abs(found.sum() - 1) < 1e-12


def test_blocks_leave_less_noise_than_single_subsets():
    """What cutting whole permutations is for: every candidate has its turn."""
    g = torch.Generator().manual_seed(1)
    pool = torch.randn(256, generator=g, dtype=torch.float64)
    rule, exact = partial(selection.soft, lam=1.0), []
    for seed in range(40):
        p = selection.over_subsets(rule, pool, 8, permutations=8, seed=seed)
        exact.append(selection.expected(p, pool).item())
    values = torch.stack([pool[torch.randperm(256, generator=g)[:8]] for _ in range(4000)])
    single = selection.expected(rule(values), values)
    assert abs(np.mean(exact) - single.mean()) < 5 * single.std() / 4000**0.5
    assert np.std(exact) < 0.6 * single.std() / 256**0.5  # 8 x 32 subsets each


def test_pools_of_several_prompts_are_each_their_own():
    both = torch.stack([REWARDS, REWARDS.flip(0) ** 3])
    rule = partial(selection.pessimism, beta=0.4)
    for of in (partial(selection.best_of_n, n=3), partial(selection.best_of_poisson, mean=1.01)):
        torch.testing.assert_close(of(both), torch.stack([of(row) for row in both]))
    found = selection.over_subsets(rule, both, 3, permutations=4000)
    for row, rewards in zip(found, both, strict=True):
        assert (row - enumerated(cautious, rewards, 3)).abs().max() < 5 * 0.5 / 8000**0.5


def test_expected_values_and_draws_follow_the_probabilities():
    p = selection.soft(REWARDS, 0.7)
    value = selection.expected(torch.stack([p, p.flip(0)]), torch.stack([JUDGE, JUDGE.flip(0)]))
    exact = sum(a * b for a, b in zip(p.tolist(), JUDGE.tolist(), strict=True))
    torch.testing.assert_close(value, torch.full((2,), exact, dtype=torch.float64))
    drawn = selection.picked(p.expand(20_000, 7), torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=7) / 20_000
    assert (shares - p).abs().max() < 5 * (0.25 / 20_000) ** 0.5


def test_an_ensemble_that_disagrees_lowers_a_reward():
    members = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 4.0], [2.0, 0.0, -2.0]])
    assert selection.pessimistic(members, 0).tolist() == [1.0, 2.0, 0.0]
    assert selection.pessimistic(members, 1.5).tolist() == [1.0, -1.0, -3.0]  # spreads 0, 2, 2
    shifted = members + torch.tensor([5.0, -7.0, 2.0])  # what no pair of responses can tell
    torch.testing.assert_close(
        selection.pessimistic(torch.stack([shifted, members]), 1.5),
        selection.pessimistic(torch.stack([members, members]), 1.5),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: selection.best_of_n(REWARDS, 8),
            r"n is 8; it must be .* from 1 to 7 \(the pool\)",
        ),
        (lambda: selection.best_of_n(REWARDS, 0), "n is 0"),
        (lambda: selection.soft(REWARDS, 0), "lam is 0; it must be > 0"),
        (lambda: selection.pessimism(REWARDS, float("nan")), "beta is nan"),
        (lambda: selection.pessimistic(JUDGE[:, None], -1), "k is -1; it must be >= 0"),
        (lambda: selection.best_of_poisson(REWARDS, 0.5), "mean is 0.5; it must be >= 1"),
        (lambda: selection.soft(JUDGE[:0], 1), r"shape \(0,\) are empty or not all finite"),
        (lambda: selection.soft(JUDGE.log(), 1), r"shape \(7,\) are empty or not all finite"),
        (lambda: selection.over_subsets(hard, REWARDS, 2, permutations=0), "permutations is 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pass_at_k_is_best_of_n_of_rewards_that_are_0_or_1():
    for correct in range(8):
        rewards = [1.0] * correct + [0.0] * (7 - correct)
        for k in range(1, 8):
            found = selection.pass_at_k(7, correct, k)
            subsets = [max(s) for s in combinations(rewards, k)]
            assert found == pytest.approx(sum(subsets) / len(subsets))
            pool = torch.tensor(rewards)
            assert found == pytest.approx(
                float(selection.expected(selection.best_of_n(pool, k), pool))
            )


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, 1, 5), (4, -1, 1), (4, 1, 0)])
def test_pass_at_k_refuses_counts_that_cannot_be(n, correct, k):
    with pytest.raises(ValueError, match=r"correct|n is 4|k is 0"):
        selection.pass_at_k(n, correct, k)
