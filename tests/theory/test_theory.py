"""Every quantitative claim of the theory notebook.

Exact claims are compared exactly: with enumeration, quadrature or closed forms from `aisp.theory.toys`,
which shares no formula with `aisp.control`. Monte Carlo claims are compared within LIMIT standard
errors at a fixed seed, after their preconditions: enough draws and enough effective samples.
sigma and lam differ from 1 throughout, so that a lost factor shows.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aisp import control
from aisp.sampler import AISPConfig, perturbations
from aisp.theory import diagnostics, toys

LIMIT = 5  # standard errors; a two-sided chance of 6e-7 per comparison of a correct estimate
SIGMA, LAM = 0.7, 0.6
f64 = {"dtype": torch.float64}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def language_model(d: int = 2, seed: int = 0, tau: int = 3, **changes) -> toys.ToyLM:
    changes = {"sigma": SIGMA, "lam": LAM} | changes
    return toys.ToyLM.random(d=d, tau=tau, seed=seed, **changes)


def gaussian_toy(curvature: float, tau: int = 3, d: int = 2) -> toys.GaussianToy:
    g = rng(1)
    a = torch.randn(tau, d, generator=g, **f64)
    c = curvature * torch.rand(tau, d, generator=g, **f64)
    return toys.GaussianToy(0.5 * LAM / SIGMA * a / a.norm(), c, SIGMA, LAM)


def draws_around(U: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    return perturbations(U[None], n, SIGMA, [rng(seed)])[0]


TOYS = {
    "linear": gaussian_toy(0.0),
    "quadratic": gaussian_toy(LAM / SIGMA**2),
    "lm2": language_model(2),
    "lm3": language_model(3),
}
toy_of_each_kind = pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)


# -- the toys are exact ----------------------------------------------------------------------------


def test_quadrature_is_exact_on_polynomials_and_right_on_exponentials():
    mean = torch.tensor([0.3, -1.2], **f64)
    got = toys.normal_expectation(lambda v: v[:, 0] ** 2 * v[:, 1] ** 3, mean, SIGMA, 4)
    second, third = 0.3**2 + SIGMA**2, (-1.2) ** 3 - 3 * 1.2 * SIGMA**2
    assert got.item() == pytest.approx(second * third, rel=1e-12)
    b = torch.tensor([0.5, 1.5], **f64)
    got = toys.normal_expectation(lambda v: torch.exp(v @ b), mean, SIGMA).log()
    assert got.item() == pytest.approx(float(b @ mean + SIGMA**2 * b @ b / 2), abs=1e-12)
    with pytest.raises(ValueError, match="4 dimensions"):
        toys.normal_expectation(lambda v: v[:, 0], torch.zeros(4, **f64), SIGMA)


@pytest.mark.parametrize("curvature", [0.0, -0.5, 2.0])
def test_closed_forms_of_the_gaussian_toy_against_quadrature(curvature):
    toy = gaussian_toy(curvature, tau=1, d=2)
    base = torch.tensor([[0.4, -0.9]], **f64)

    def tilted(v):
        return torch.exp(toy.reward(v[:, None]) / toy.lam)

    z = toys.normal_expectation(tilted, base[0], toy.sigma)
    first = toys.normal_expectation(lambda v: tilted(v)[:, None] * v, base[0], toy.sigma)
    assert toy.log_partition(base).item() == pytest.approx(z.log().item(), abs=1e-9)
    torch.testing.assert_close(toy.tilted_mean(base)[0], first / z, atol=1e-9, rtol=0)


def test_a_gaussian_toy_without_a_finite_free_energy_is_refused():
    with pytest.raises(ValueError, match="c > -lam / sigma"):
        toys.GaussianToy(torch.zeros(1, 1, **f64), torch.full((1, 1), -2.0, **f64), 1.0, 1.0)


@pytest.mark.parametrize("d", [2, 3])
def test_two_tokens_are_a_probit_with_a_truncated_mean(d):
    g = rng(3)
    W, mu = torch.randn(2, d, generator=g, **f64), torch.randn(5, d, generator=g, **f64)
    table = (torch.zeros(1, d, **f64),)
    lm = toys.ToyLM(W, table, torch.zeros(2, **f64), SIGMA, LAM)
    prob, first = lm.token_law(mu)
    side = (W[0] - W[1]) / (W[0] - W[1]).norm()
    t = mu @ side / SIGMA  # token 0 wins where x . side > 0
    torch.testing.assert_close(prob[:, 0], torch.special.ndtr(t), atol=1e-9, rtol=0)
    bump = torch.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    expected = torch.special.ndtr(t)[:, None] * mu + SIGMA * bump[:, None] * side
    torch.testing.assert_close(first[:, 0], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("d", "tau"), [(2, 3), (3, 2)])
def test_the_law_of_texts_is_that_of_decoding(d, tau):
    lm = language_model(d, tau=tau)
    U = 0.5 * torch.randn(tau, d, generator=rng(5), **f64)
    n = 100_000
    V = draws_around(U, n)
    text, law = lm.decode(V), lm.law(U)
    assert law.p.sum().item() == pytest.approx(1, abs=1e-8)
    count = torch.bincount(text, minlength=len(law.p))
    frequent = n * law.p >= 100
    assert frequent.sum() >= 5
    error = (count / n - law.p) / (law.p * (1 - law.p) / n).sqrt()
    assert error[frequent].abs().max() < LIMIT
    for s in torch.nonzero(frequent).flatten().tolist():
        mine = V[text == s]
        error = (mine.mean(0) - law.mean[s]) / (mine.std(0) / len(mine) ** 0.5)
        assert error.abs().max() < LIMIT, f"the mean of V given text {lm.tokens(s)}"
    # the mean of V over all texts is U
    torch.testing.assert_close(torch.tensordot(law.p, law.mean, 1), U, atol=1e-7, rtol=0)


def test_a_law_beyond_the_reach_of_the_quadrature_is_refused():
    with pytest.raises(ValueError, match="too far out"):
        language_model().law(torch.full((3, 2), 1e4, **f64))


# -- section 2: free energy ------------------------------------------------------------------------

probabilities = st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=8)
reward_values = st.floats(-5, 5)
lams = st.floats(0.05, 20)


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


# -- section 4: importance weights and alpha -------------------------------------------------------


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


# -- section 7: how Gaussian is a cloud? -----------------------------------------------------------


def test_effective_dimension_of_known_covariances():
    Z = torch.randn(20_000, 8, generator=rng(20))
    assert diagnostics.participation_ratio(Z) == pytest.approx(8, rel=0.01)
    scaled = Z * torch.tensor([2.0, 1, 1, 0, 0, 0, 0, 0])  # variances 4, 1, 1: 36 / 18
    assert diagnostics.participation_ratio(scaled) == pytest.approx(2, rel=0.03)
    with pytest.raises(ValueError, match="fewer than k = 9"):
        diagnostics.whitened(Z[:9], 9)


def test_whitening_leaves_unit_covariance_and_mahalanobis_distances():
    Z = torch.randn(300, 5, generator=rng(21), **f64) @ torch.randn(5, 5, generator=rng(22), **f64)
    X = diagnostics.whitened(Z, 5)
    torch.testing.assert_close(X.T @ X / 300, torch.eye(5, **f64), atol=1e-9, rtol=0)
    centered = Z - Z.mean(0)
    inverse = torch.linalg.inv(centered.T @ centered / 300)
    torch.testing.assert_close(
        X.square().sum(1), torch.einsum("ni,ij,nj->n", centered, inverse, centered)
    )


def test_henze_zirkler_is_the_weighted_distance_of_characteristic_functions():
    X = diagnostics.whitened(torch.randn(40, 2, generator=rng(23), **f64) ** 3, 2)
    # N integral |phi_N(t) - exp(-|t|^2 / 2)|^2 dN(t; 0, beta^2 I), by quadrature over t
    beta = ((2 * 2 + 1) * 40 / 4) ** (1 / 6) / math.sqrt(2)

    def squared(t):
        phase = t @ X.T
        gap = phase.cos().mean(1) - torch.exp(-t.square().sum(1) / 2)
        return gap**2 + phase.sin().mean(1) ** 2

    expected = 40 * toys.normal_expectation(squared, torch.zeros(2, **f64), beta, 100)
    assert diagnostics.henze_zirkler(X) == pytest.approx(expected.item(), rel=1e-6)


def test_gaussian_points_pass_and_others_fail():
    g = rng(24)
    mix = torch.randn(60, 60, generator=g)
    Z = torch.randn(200, 60, generator=g) @ mix
    good = diagnostics.normality(Z, 8, twins=99, seed=0)
    assert good["p"] > 0.05
    assert good["hz"] == pytest.approx(1, abs=0.15)
    assert good["kurtosis"] == pytest.approx(1, abs=0.1)
    assert good["coordinates"] < 0.2, "0.05 but for chance; the 60 coordinates are correlated"
    chi2 = torch.randn(200, 4, generator=g).square().sum(1, keepdim=True)
    heavy = Z * (chi2 / 4).rsqrt()  # Student, 4 degrees of freedom
    signs = torch.randint(0, 2, (200, 1), generator=g) * 2.0 - 1
    hills = Z + 8 * signs * mix[0]
    for bad in (heavy, hills):
        found = diagnostics.normality(bad, 8, twins=99, seed=0)
        assert found["p"] == 0.01, "the smallest value that 99 twins allow"
        assert found["coordinates"] > 0.2
    assert diagnostics.normality(heavy, 8, twins=20, seed=0)["kurtosis"] > 1.3


# -- section 8: greedy plus Gaussian noise is a sampler --------------------------------------------


def test_gumbel_noise_is_softmax_and_gaussian_noise_the_law_of_the_cones():
    n, lm = 100_000, language_model()
    logits = lm.z[0] @ lm.W.T
    u = torch.rand(n, len(lm.W), generator=rng(25), **f64).clamp_min(1e-300)
    gumbel = -torch.log(-torch.log(u))
    noise = torch.randn(n, 2, generator=rng(26), **f64) @ lm.W.T
    for draws, p in (
        (diagnostics.perturbed_argmax(logits, gumbel, 0.7), torch.softmax(logits / 0.7, 1)[0]),
        (diagnostics.perturbed_argmax(logits, noise, SIGMA), lm.token_law(lm.z[0])[0][0]),
    ):
        share = torch.bincount(draws[0], minlength=len(p)) / n
        assert ((share - p).abs() < LIMIT * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_probit_and_logistic_differ_by_less_than_a_hundredth():
    x = torch.linspace(-8, 8, 4001, **f64)
    apart = (torch.special.ndtr(x) - torch.sigmoid(1.702 * x)).abs().max()
    assert 0.009 < apart < 0.01


def test_the_matching_temperature_of_gumbel_noise_is_its_scale():
    logits = 3 * torch.randn(64, 30, generator=rng(27))
    u = torch.rand(4000, 30, generator=rng(28)).clamp_min(1e-30)
    drawn = diagnostics.perturbed_argmax(logits, -torch.log(-torch.log(u)), 0.8)
    entropy = diagnostics.empirical_entropy(drawn).mean().item()
    T = diagnostics.matching_temperature(logits, entropy, 4000, seed=0)
    assert pytest.approx(0.8, rel=0.02) == T
    softmax = torch.softmax(logits / T, 1)
    assert diagnostics.total_variation(drawn, softmax).mean() < 0.03
    with pytest.raises(ValueError, match="out of reach"):
        diagnostics.matching_temperature(logits, 20.0, 100, seed=0)


def test_entropy_and_total_variation_of_known_laws():
    tokens = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]])
    got = diagnostics.empirical_entropy(tokens)
    torch.testing.assert_close(got, torch.tensor([math.log(2), 0.0], **f64))
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
    torch.testing.assert_close(
        diagnostics.total_variation(tokens, probs), torch.tensor([0.25, 0.75])
    )


def test_prelogits_are_those_of_the_tokens_drawn_from_them(embedded):
    data = diagnostics.collect_prelogits(embedded, ["Say hello.", "Count to three."], 3, 5, seed=0)
    assert data.z.shape == (6, 5, embedded.d)
    assert data.token.shape == data.valid.shape == (6, 5)
    ids = embedded.prefix("Say hello.", 5)
    row = torch.cat([torch.as_tensor(ids).flatten(), data.token[0]])[None]
    with torch.no_grad():
        hidden = embedded.model.base_model(row).last_hidden_state[0]
    steps = int(data.valid[0].sum())
    assert steps >= 2
    expected = hidden[row.shape[1] - 6 : -1][:steps]
    torch.testing.assert_close(data.z[0, :steps], expected, atol=2e-3, rtol=1e-3)
