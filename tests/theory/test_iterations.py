"""Sections 5 and 6 of the theory notebook: repeated steps, the sampler on the toys, and the limits."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_systems import (
    LAM,
    LIMIT,
    SIGMA,
    TOYS,
    draws_around,
    f64,
    language_model,
    rng,
    toy_of_each_kind,
)

from aisp import control
from aisp.sampler import AISPConfig
from aisp.theory import toys


# -- section 5: adaptive importance sampling -------------------------------------------------------
@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.99])
def test_gaussian_toys_end_at_the_optimum_of_a_weaker_penalty(alpha):
    for name in ("linear", "quadratic"):
        toy = TOYS[name]
        end = toys.alpha_fixed_point(toy, alpha)
        weaker = toys.GaussianToy(toy.a, toy.c, SIGMA, LAM * (1 - alpha))
        torch.testing.assert_close(end, weaker.tilted_mean(), atol=1e-5, rtol=0)


def test_steps_on_the_linear_reward():
    toy, alpha = TOYS["linear"], 0.8
    one = SIGMA**2 * toy.a / LAM
    U = torch.zeros(toy.shape, **f64)
    for k in range(1, 6):
        U = toys.alpha_step(toy, U, alpha)
        torch.testing.assert_close(U, one * (1 - alpha**k) / (1 - alpha))
    with pytest.raises(RuntimeError, match="still moving"):
        toys.alpha_fixed_point(toy, 1.0, steps=50)


@pytest.mark.parametrize("alpha", [0.5, 0.9, 1.0])
@toy_of_each_kind
def test_a_step_never_lowers_its_objective_whose_gradient_is_the_step(toy, alpha):
    U = 0.3 * torch.randn(toy.shape, generator=rng(13), **f64)
    values = []
    for _ in range(10):
        values.append(float(toys.alpha_objective(toy, U, alpha)))
        U = toys.alpha_step(toy, U, alpha)
    assert (np.diff(values) > -1e-9).all()
    assert values[-1] > values[0] + 1e-3
    at = (0.3 * torch.randn(toy.shape, generator=rng(14), **f64)).requires_grad_()
    toys.alpha_objective(toy, at, alpha).backward()
    step = LAM / SIGMA**2 * (toys.alpha_step(toy, at.detach(), alpha) - at.detach())
    torch.testing.assert_close(at.grad, step, atol=1e-7, rtol=0)


def sampler_config(n: int, kappa: int, alpha: float, tau: int = 3) -> AISPConfig:
    return AISPConfig(
        n=n, kappa=kappa, alpha=alpha, sigma=SIGMA, lam=LAM, max_new_tokens=tau, tau=tau
    )


@toy_of_each_kind
@pytest.mark.parametrize("alpha", [0.0, 0.9])
def test_the_sampler_with_many_draws_takes_the_exact_steps(toy, alpha):
    runs = 24
    out = toys.run_sampler(toy, sampler_config(20_000, 2, alpha), runs, seed=15)
    assert out["ess"].min() > 400
    U = torch.zeros(toy.shape, **f64)
    for k in (1, 2):
        U = toys.alpha_step(toy, U, alpha)
        reached = out["U"][:, k]
        error = (reached.mean(0) - U) / (reached.std(0) / runs**0.5)
        assert error.abs().max() < LIMIT


OPTIONS = {
    "control variate": {"control_variate": True},
    "antithetic": {"antithetic": True},
    "both": {"control_variate": True, "antithetic": True},
    "half a step": {"control_variate": True, "step_size": 0.5},
    "first step only": {"control_variate": True, "steered": 1},
}


@toy_of_each_kind
@pytest.mark.parametrize("own", OPTIONS.values(), ids=OPTIONS)
def test_options_that_take_out_noise_leave_the_exact_steps(toy, own):
    """No option biases the update: many draws take the steps of the toy, or the share asked for."""
    runs, n = 24, 8000
    config = replace(sampler_config(n, 2, 1.0), **own)
    out = toys.run_sampler(toy, config, runs, seed=16)
    assert out["ess"].min() > 400
    U = torch.zeros(toy.shape, **f64)
    for k in (1, 2):
        step = config.step_size * (toys.alpha_step(toy, U, 1.0) - U)
        step[config.steered or len(step) :] = 0
        U = U + step
        reached = out["U"][:, k]
        error = (reached.mean(0) - U) / (reached.std(0) / runs**0.5).clamp(min=1e-12)
        assert error.abs().max() < LIMIT
    assert U.abs().max() > 0.05


def test_the_control_variate_brings_a_small_sample_nearer_to_the_known_optimum():
    """600 coordinates, a linear reward: the plain update ends as far off as the ESS says it will."""
    tau, d, n, runs = 3, 200, 16, 64
    a = torch.randn(tau, d, generator=rng(2), **f64)
    toy = toys.GaussianToy(LAM / SIGMA * a / a.norm(), torch.zeros(tau, d), SIGMA, LAM)
    off = {}
    for on in (False, True):
        config = replace(sampler_config(n, 1, 1.0), control_variate=on)
        out = toys.run_sampler(toy, config, runs, seed=17)
        gap = out["U"][:, 1] - toys.alpha_step(toy, torch.zeros_like(a), 1.0)
        share = (1 / out["ess"][:, 0] - on / n).mean()
        # The reward's own direction is 1 of 600; the rest is the noise that the ESS predicts.
        predicted = SIGMA**2 * tau * d * share
        off[on] = gap.square().sum((-2, -1))
        assert (
            abs(off[on].mean() / predicted - 1) < 4 * (off[on].std() / runs**0.5 / predicted) + 0.02
        )
    assert off[True].mean() < 0.8 * off[False].mean()


def test_exact_weights_approach_the_target_and_alpha_near_one_goes_past_it_for_reward():
    lm = TOYS["lm2"]
    zero = torch.zeros(lm.shape, **f64)
    runs, means = 100, {}
    for alpha in (0.0, 0.99):
        out = toys.run_sampler(lm, sampler_config(64, 10, alpha), runs, seed=16)
        means[alpha] = torch.stack([lm.kl_from_target(U) for U in out["U"][:, -1]]).mean()
        gain = out["reward_mean"][:, -1] - out["reward_mean"][:, 0]
        assert gain.mean() > LIMIT * gain.std() / runs**0.5
    assert means[0.0] < lm.kl_from_target(zero) < means[0.99]


def test_a_split_budget_estimates_worse_at_alpha_zero_and_climbs_at_alpha_near_one():
    lm, runs = TOYS["lm2"], 50
    star, error, reward = lm.tilted_mean(), {}, {}
    for alpha in (0.0, 0.99):
        for n, kappa in ((256, 1), (16, 16)):
            U = toys.run_sampler(lm, sampler_config(n, kappa, alpha), runs, seed=17)["U"][:, -1]
            error[alpha, n] = (U - star).flatten(1).norm(dim=1)
            reward[alpha, n] = torch.stack([lm.law(u).p @ lm.rewards for u in U])

    def above(x, y):  # in standard errors of the difference of two independent means
        return (x.mean() - y.mean()) / ((x.var() + y.var()) / runs).sqrt()

    assert above(error[0.0, 16], error[0.0, 256]) > LIMIT
    assert above(reward[0.99, 16], reward[0.99, 256]) > LIMIT


# -- section 6: the limits -------------------------------------------------------------------------
@pytest.mark.parametrize("d", [2, 3])
def test_limits_of_lam(d):
    lm = language_model(d)
    law, best = lm.law(), lm.rewards.argmax()
    torch.testing.assert_close(
        replace(lm, lam=0.01).tilted_mean(), law.mean[best], atol=1e-3, rtol=0
    )
    covariance = torch.tensordot(law.p * (lm.rewards - law.p @ lm.rewards), law.mean, 1)
    torch.testing.assert_close(
        1e4 * replace(lm, lam=1e4).tilted_mean(), covariance, atol=1e-3, rtol=0
    )
    zero = torch.zeros(lm.shape, **f64)
    V = draws_around(zero, 2000)
    r = lm.reward(V)
    cold = control.update_mean(control.log_weights(r, zero, V, lam=1e-6, sigma=SIGMA), V)
    torch.testing.assert_close(cold, V[r == r.max()].mean(0))
    hot = control.update_mean(control.log_weights(r, zero, V, lam=1e7, sigma=SIGMA), V)
    torch.testing.assert_close(hot, V.mean(0), atol=1e-5, rtol=0)


def test_small_noise_is_greedy_decoding():
    lm = language_model()
    text, margin = 0, math.inf
    for table in lm.z:  # the distance of each pre-logit to where another token would win
        logits = lm.W @ table[text]
        top = int(logits.argmax())
        rest = torch.arange(len(logits)) != top
        away = (lm.W[top] - lm.W[rest]).norm(dim=1)
        margin = min(margin, float(((logits[top] - logits[rest]) / away).min()))
        text = text * len(lm.W) + top
    noise = torch.randn(20_000, *lm.shape, generator=rng(18), **f64)
    assert (lm.decode(margin / 8 * noise) == text).all()
    inside = margin * noise / noise.norm(dim=-1, keepdim=True)  # exactly at the margin, any side
    assert (lm.decode(0.999 * inside) == text).all()
    assert (lm.decode(1.2 * inside) != text).any()


def test_gaussian_kl_against_the_library_and_the_kl_of_texts_below_it():
    lm = language_model()
    g, base = rng(19), lm.law().p
    for scale in (0.1, 1.0, 3.0):
        U = scale * SIGMA * torch.randn(lm.shape, generator=g, **f64)
        kl = control.gaussian_kl(U, SIGMA)
        normal = torch.distributions.Normal
        expected = torch.distributions.kl_divergence(normal(U, SIGMA), normal(0.0 * U, SIGMA)).sum()
        torch.testing.assert_close(kl, expected)
        texts = toys.kl(lm.law(U).p, base)
        assert 0 < texts < kl


@pytest.mark.parametrize("name", ["linear", "quadratic", "lm2"])
def test_one_u_for_several_steps_is_the_projection_onto_that_family(name):
    """The KL to Q* has its minimum there among such U, and the sampler finds it."""
    toy, block = TOYS[name], 2
    of_block = torch.arange(toy.shape[0]) // block
    shared = (of_block[:, None] == of_block.unique()).to(torch.float64)  # (tau, blocks)
    best = torch.linalg.pinv(shared) @ toy.tilted_mean()  # means over blocks
    at = best.clone().requires_grad_()
    toy.kl_from_target(shared @ at).backward()
    assert at.grad.abs().max() < 1e-9
    n = 200_000
    V = draws_around(torch.zeros(toy.shape, **f64), n)
    U, log_w = torch.zeros(toy.shape, **f64), torch.log_softmax(toy.reward(V) / LAM, -1)
    got = control.moved_mean(U, log_w, V, block=block)
    target = shared @ best
    error = (log_w.exp()[:, None, None] ** 2 * (V - toy.tilted_mean()) ** 2).sum(0).sqrt()
    assert control.effective_sample_size(log_w) > n / 10 and error.max() < 0.01
    assert ((got - target).abs() < LIMIT * error).all()
    assert ((control.moved_mean(U, log_w, V) - target).abs() > LIMIT * error).any()
