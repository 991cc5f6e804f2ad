"""Sections 2 and 3 of the theory notebook: no law beats the free energy; the best Gaussian mean."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_systems import (
    LAM,
    LIMIT,
    SIGMA,
    TOYS,
    draws_around,
    f64,
    lams,
    reward_values,
    rng,
    toy_of_each_kind,
)

from aisp import control
from aisp.theory import toys

# -- section 2: free energy ------------------------------------------------------------------------
probabilities = st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=8)


def normalized(values: list[float]) -> torch.Tensor:
    x = torch.tensor(values, **f64)
    return x / x.sum()


@given(st.data(), probabilities, lams)
@settings(deadline=None)
def test_no_law_beats_the_free_energy_and_the_gap_is_a_kl(data, p, lam):
    same = {"min_size": len(p), "max_size": len(p)}
    r = torch.tensor(data.draw(st.lists(reward_values, **same)), **f64)
    q = normalized(data.draw(st.lists(st.floats(1e-3, 1.0), **same)))
    p = normalized(p)
    bound = lam * torch.log((p * torch.exp((r - r.max()) / lam)).sum()) + r.max()
    gap = bound - toys.objective(q, p, r, lam)
    star = toys.tilt(p, r, lam)
    assume(star.min() > 0)  # below the smallest double the gap cannot be seen
    scale = 1 + abs(bound.item()) + lam
    assert gap.item() >= -1e-12 * scale
    assert gap.item() == pytest.approx(lam * toys.kl(q, star).item(), abs=1e-10 * scale)
    assert toys.objective(star, p, r, lam).item() == pytest.approx(bound.item(), abs=1e-10 * scale)


@given(st.lists(st.tuples(st.integers(1, 20), reward_values), min_size=1, max_size=8), lams)
@settings(deadline=None)
def test_free_energy_of_the_method_is_that_of_the_empirical_law(points, lam):
    counts = torch.tensor([c for c, _ in points])
    r = torch.tensor([x for _, x in points], **f64)
    got = control.free_energy(r.repeat_interleave(counts), lam).item()
    p = counts / counts.sum().double()
    assert got == pytest.approx(toys.objective(toys.tilt(p, r, lam), p, r, lam).item(), abs=1e-9)
    assert (p * r).sum() - 1e-9 <= got <= r.max() + 1e-9


@toy_of_each_kind
def test_no_gaussian_beats_the_free_energy(toy):
    star = toy.tilted_mean()
    for scale in (0.0, 0.5, 1.0, 2.0):
        U = scale * star
        if isinstance(toy, toys.ToyLM):
            value = toy.law(U).p @ toy.rewards
        else:
            value = (toy.a * U - toy.c * (U**2 + toy.sigma**2) / 2).sum()
        reached = value - toy.lam * control.gaussian_kl(U, toy.sigma)
        assert reached <= toy.lam * toy.log_partition() + 1e-9


# -- section 3: the best Gaussian mean -------------------------------------------------------------
@toy_of_each_kind
def test_missing_the_best_mean_costs_its_squared_distance(toy):
    star, g = toy.tilted_mean(), rng(2)
    for _ in range(5):
        U = torch.randn(toy.shape, generator=g, **f64)
        extra = toy.kl_from_target(U) - toy.kl_from_target(star)
        assert extra.item() == pytest.approx(
            float((U - star).square().sum() / (2 * SIGMA**2)), abs=1e-7
        )


def test_kl_to_the_gaussian_target_is_the_textbook_one():
    toy, U = TOYS["quadratic"], torch.randn(3, 2, generator=rng(4), **f64)
    normal = torch.distributions.Normal
    target = normal(toy.tilted_mean(), toy.variance.sqrt())
    expected = torch.distributions.kl_divergence(target, normal(U, SIGMA)).sum()
    torch.testing.assert_close(toy.kl_from_target(U), expected)


def test_kl_to_the_target_of_the_language_model_by_monte_carlo():
    lm = TOYS["lm2"]
    U = 0.5 * torch.randn(lm.shape, generator=rng(6), **f64)
    V = draws_around(torch.zeros_like(U), 200_000)
    # KL(Q* || Q_U) = E_P[w (log w + log p / q_U)] with w = exp(r / lam) / E_P[exp(r / lam)]
    log_w = lm.reward(V) / LAM - lm.log_partition()
    base = torch.distributions.Normal(0.0, SIGMA).log_prob(V).sum((1, 2))
    moved = torch.distributions.Normal(U, SIGMA).log_prob(V).sum((1, 2))
    terms = log_w.exp() * (log_w + base - moved)
    error = terms.mean() - lm.kl_from_target(U)
    assert abs(error) < LIMIT * terms.std() / len(V) ** 0.5


def test_a_linear_reward_has_its_mean_in_closed_form():
    toy = TOYS["linear"]
    torch.testing.assert_close(toy.tilted_mean(), SIGMA**2 * toy.a / LAM)
    curved = TOYS["quadratic"]
    torch.testing.assert_close(
        curved.tilted_mean(), SIGMA**2 * curved.a / (curved.c * SIGMA**2 + LAM)
    )


def test_the_minimizer_of_j_is_better_in_j_and_the_best_mean_in_the_other_kl():
    lm = TOYS["lm2"]
    best, star = lm.best_control(), lm.tilted_mean()

    def value(U):
        return lm.law(U).p @ lm.rewards - LAM * control.gaussian_kl(U, SIGMA)

    assert value(best) > value(star) > value(torch.zeros(lm.shape, **f64))
    assert lm.kl_from_target(star) < lm.kl_from_target(best)
    g = rng(7)  # a minimum: no small step away from it does better
    for _ in range(20):
        away = 0.05 * torch.randn(lm.shape, generator=g, **f64)
        assert value(best + away) < value(best)
