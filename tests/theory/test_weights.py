"""Section 4 of the theory notebook: importance weights, their bias, effective samples, and alpha."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
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
from aisp.theory import diagnostics, toys


@toy_of_each_kind
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.99, 1.0])
def test_weights_estimate_the_mean_of_the_tilt_of_a_moved_base_law(toy, alpha):
    n = 40_000
    U = toy.tilted_mean() + 0.2 * torch.randn(toy.shape, generator=rng(8), **f64)
    V = draws_around(U, n, seed=9)
    log_w = control.log_weights(toy.reward(V), U, V, lam=LAM, sigma=SIGMA, alpha=alpha)
    base = torch.distributions.Normal(alpha * U, SIGMA).log_prob(V).sum((1, 2))
    proposal = torch.distributions.Normal(U, SIGMA).log_prob(V).sum((1, 2))
    expected = torch.log_softmax(toy.reward(V) / LAM + base - proposal, 0)
    torch.testing.assert_close(log_w, expected, atol=1e-9, rtol=0)
    assert control.effective_sample_size(log_w) > 400  # else its standard error means nothing
    error = control.update_mean(log_w, V) - toy.tilted_mean(alpha * U)
    assert (error / diagnostics.snis_standard_error(log_w, V)).abs().max() < LIMIT


@toy_of_each_kind
def test_unnormalized_weights_are_unbiased_from_any_proposal(toy):
    n = 40_000
    U = 0.5 * toy.tilted_mean()
    V = draws_around(U, n, seed=10)
    w = toys.log_density_ratio(toy, U, V).exp()
    z = toy.log_partition().exp()
    assert abs(w.mean() - z) < LIMIT * w.std() / n**0.5
    terms = w[:, None, None] * V
    error = terms.mean(0) - z * toy.tilted_mean()
    assert (error.abs() < LIMIT * terms.std(0) / n**0.5).all()
    # and the method's weights are these, normalized
    log_w = control.log_weights(toy.reward(V), U, V, lam=LAM, sigma=SIGMA)
    torch.testing.assert_close(log_w, (w / w.sum()).log(), atol=1e-9, rtol=0)


def test_the_bias_of_the_self_normalized_mean_falls_as_one_over_n():
    b = 0.8 / SIGMA
    a = torch.tensor([[b * LAM, 0.0]], **f64)
    toy = toys.GaussianToy(a, 0 * a, SIGMA, LAM)
    g, sizes, runs = rng(11), (16, 32, 64), 2**16
    measured, se = [], []
    for n in sizes:
        V = SIGMA * torch.randn(runs, n, 1, 2, generator=g, **f64)
        U = torch.zeros(runs, 1, 2, **f64)
        log_w = control.log_weights(toy.reward(V), U, V, lam=LAM, sigma=SIGMA)
        along = (control.update_mean(log_w, V) - toy.tilted_mean())[:, 0, 0]
        measured.append(along.mean().item())
        se.append(along.std().item() / runs**0.5)
    measured, se = np.array(measured), np.array(se)
    leading = -(SIGMA**2) * b * math.exp(SIGMA**2 * b**2) / np.array(sizes)
    assert (measured < -LIMIT * se).all()  # there is a bias, towards zero,
    assert (se < 0.05 * abs(leading)).all()  # and it is measured well enough for what follows
    # to first order in 1 / n: what is left falls as 1 / n^2
    left = measured / leading - 1
    assert (abs(left) * np.array(sizes) < 4 + LIMIT * se / abs(leading) * np.array(sizes)).all()
    assert np.polyfit(np.log(sizes), np.log(-measured), 1)[0] == pytest.approx(-1, abs=0.15)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@toy_of_each_kind
def test_the_limit_of_ess_over_n(toy, alpha):
    n = 200_000
    U = toy.tilted_mean()
    V = draws_around(U, n, seed=12)
    log_w = control.log_weights(toy.reward(V), U, V, lam=LAM, sigma=SIGMA, alpha=alpha)
    got = control.effective_sample_size(log_w).item() / n
    # the delta method on E[w]^2 / E[w^2], from the draws
    w = (log_w + math.log(n)).exp()
    influence = 2 * (w - 1) - (w**2 / (w**2).mean() - 1)
    se = got * influence.std().item() / n**0.5
    assert abs(got - toys.ess_fraction(toy, U, alpha)) < LIMIT * se + 1e-9


def test_bias_grows_with_alpha_and_effective_samples_only_far_out():
    lm = TOYS["lm2"]
    star = lm.tilted_mean()
    for scale in (0.5, 1.0, 2.0):
        bias = [
            float((toys.alpha_step(lm, scale * star, x) - star).norm())
            for x in np.linspace(0, 1, 6)
        ]
        assert bias[0] < 1e-12
        assert (np.diff(bias) > 0).all()
    near = [toys.ess_fraction(lm, 0.5 * star, x) for x in (0.0, 1.0)]
    far = [toys.ess_fraction(lm, 4.0 * star, x) for x in (0.0, 1.0)]
    assert near[1] < near[0]
    assert far[1] > 5 * far[0]


def test_the_linear_reward_has_even_weights_at_its_optimum():
    toy = TOYS["linear"]
    assert toys.ess_fraction(toy, toy.tilted_mean(), 0.0) == pytest.approx(1, abs=1e-9)
    expected = math.exp(-float((SIGMA * toy.a / LAM).square().sum()))
    assert toys.ess_fraction(toy, toy.tilted_mean(), 1.0) == pytest.approx(expected, abs=1e-9)


weights_problem = st.tuples(st.lists(reward_values, min_size=1, max_size=12), st.integers(0, 999))


@given(weights_problem, lams, st.floats(0.05, 3), st.floats(0, 1), st.floats(-100, 100))
@settings(deadline=None)
def test_weights_are_normalized_and_invariant(problem, lam, sigma, alpha, shift):
    values, seed = problem
    n, g = len(values), rng(seed)
    r = torch.tensor(values, **f64)
    U = torch.randn(2, 3, generator=g, **f64)
    V = U + sigma * torch.randn(n, 2, 3, generator=g, **f64)
    common = {"sigma": sigma, "alpha": alpha}
    log_w = control.log_weights(r, U, V, lam=lam, **common)
    assert abs(log_w.exp().sum().item() - 1) < 1e-9
    assert 1 <= control.effective_sample_size(log_w).item() <= n
    shifted = control.log_weights(r + shift, U, V, lam=lam, **common)
    torch.testing.assert_close(shifted, log_w, atol=1e-8, rtol=1e-9)
    scaled = control.log_weights(3 * r, U, V, lam=3 * lam, **common)
    torch.testing.assert_close(scaled, log_w, atol=1e-9, rtol=1e-9)
    order = torch.randperm(n, generator=g)
    permuted = control.log_weights(r[order], U, V[order], lam=lam, **common)
    torch.testing.assert_close(permuted, log_w[order], atol=1e-9, rtol=1e-9)
    # the mean lies among the samples
    mean = control.update_mean(log_w, V)
    assert (mean <= V.amax(0) + 1e-9).all()
    assert (mean >= V.amin(0) - 1e-9).all()
