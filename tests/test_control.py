"""The derivation in code, against independent computations."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, special

from aisp import control


def problem(seed=0, n=16, tau=5, d=7, batch=()):
    g = torch.Generator().manual_seed(seed)
    U = torch.randn(*batch, tau, d, generator=g)
    V = U.unsqueeze(-3) + 0.5 * torch.randn(*batch, n, tau, d, generator=g)
    return torch.randn(*batch, n, generator=g, dtype=torch.float64), U, V


def numpy_weights(r, U, V, lam, sigma, alpha):
    """The same weights, term by term: the ratio of densities with its KL cost scaled."""
    r, U, V = (x.double().numpy() for x in (r, U, V))
    scores = np.empty(len(r))
    for i in range(len(r)):
        log_p = -np.sum(V[i] ** 2) / (2 * sigma**2)
        log_q = -np.sum((V[i] - U) ** 2) / (2 * sigma**2)
        scores[i] = r[i] / lam + (1 - alpha) * (log_p - log_q)
    w = np.exp(scores - scores.max())
    return w / w.sum()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize(("lam", "sigma"), [(1.0, 0.5), (0.2, 1.5), (30.0, 0.1)])
def test_weights_are_the_density_ratio(alpha, lam, sigma):
    r, U, V = problem()
    got = control.log_weights(r, U, V, lam=lam, sigma=sigma, alpha=alpha).exp().numpy()
    np.testing.assert_allclose(got, numpy_weights(r, U, V, lam, sigma, alpha), atol=1e-12)


def test_weights_of_a_batch_are_those_of_its_rows():
    r, U, V = problem(batch=(3, 2))
    whole = control.log_weights(r, U, V, lam=0.7, sigma=0.5, alpha=0.5)
    assert whole.dtype == torch.float64
    for i in range(3):
        for j in range(2):
            one = control.log_weights(r[i, j], U[i, j], V[i, j], lam=0.7, sigma=0.5, alpha=0.5)
            torch.testing.assert_close(whole[i, j], one)
    torch.testing.assert_close(whole.logsumexp(-1), torch.zeros(3, 2, dtype=torch.float64))


def test_small_lam_takes_the_best_sample_and_large_lam_the_plain_mean():
    r, U, V = problem()
    U = torch.zeros_like(U)
    best = control.log_weights(r, U, V, lam=1e-8, sigma=0.5).exp()
    assert best.argmax() == r.argmax()
    torch.testing.assert_close(best.max(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(control.update_mean(best.log(), V), V[r.argmax()])
    even = control.log_weights(r, U, V, lam=1e8, sigma=0.5)
    torch.testing.assert_close(even.exp(), torch.full((16,), 1 / 16, dtype=torch.float64))
    torch.testing.assert_close(control.update_mean(even, V), V.mean(0))


def test_shift_of_the_rewards_changes_nothing_and_scale_is_one_over_lam():
    r, U, V = problem()
    w = control.log_weights(r, U, V, lam=0.5, sigma=0.5, alpha=0.9)
    shifted = control.log_weights(r + 123.0, U, V, lam=0.5, sigma=0.5, alpha=0.9)
    scaled = control.log_weights(4 * r, U, V, lam=2.0, sigma=0.5, alpha=0.9)
    torch.testing.assert_close(shifted, w)
    torch.testing.assert_close(scaled, w)


def test_rejected_responses_carry_no_weight():
    r, U, V = problem()
    r[3] = -torch.inf
    w = control.log_weights(r, U, V, lam=1.0, sigma=0.5, alpha=0.9)
    assert w[3] == -torch.inf
    kept = torch.arange(16) != 3
    alone = control.log_weights(r[kept], U, V[kept], lam=1.0, sigma=0.5, alpha=0.9)
    torch.testing.assert_close(w[kept], alone)
    mean = control.update_mean(w, V)
    torch.testing.assert_close(mean, control.update_mean(alone, V[kept]))
    assert mean.isfinite().all()
    assert control.effective_sample_size(w) <= 15


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([float("nan"), 1.0], r"reward at \[0\] is nan"),
        ([0.0, float("inf")], r"reward at \[1\] is inf"),
        ([-float("inf")] * 2, "all rewards of one row are -inf"),
    ],
)
def test_rewards_without_a_weight_are_refused(rewards, message):
    U, V = torch.zeros(1, 2), torch.zeros(2, 1, 2)
    with pytest.raises(ValueError, match=message):
        control.log_weights(torch.tensor(rewards), U, V, lam=1.0, sigma=0.5)
    with pytest.raises(ValueError, match=message):
        control.free_energy(torch.tensor(rewards), 1.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"lam": 0.0}, "lam is 0.0; it must be > 0"),
        ({"sigma": -1.0}, "sigma is -1.0; it must be > 0"),
        ({"lam": float("nan")}, "lam is nan"),
        ({"alpha": 1.1}, r"alpha is 1.1; it must lie in \[0, 1\]"),
    ],
)
def test_parameters_out_of_range_are_refused(bad, message):
    r, U, V = problem()
    with pytest.raises(ValueError, match=message):
        control.log_weights(r, U, V, **{"lam": 1.0, "sigma": 0.5, "alpha": 0.5, **bad})


def test_shapes_that_do_not_fit_are_refused():
    r, U, V = problem()
    for args in ((r[:-1], U, V), (r, U[:-1], V), (r, U, V[..., :-1])):
        with pytest.raises(ValueError, match="shapes do not fit"):
            control.log_weights(*args, lam=1.0, sigma=0.5)


def test_update_is_the_weighted_mean():
    r, U, V = problem(batch=(2,))
    log_w = control.log_weights(r, U, V, lam=0.3, sigma=0.5, alpha=0.2)
    expected = np.einsum("pn,pntd->ptd", log_w.exp().numpy(), V.double().numpy())
    got = control.update_mean(log_w, V)
    assert got.shape == U.shape and got.dtype == V.dtype
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


def test_effective_sample_size_at_its_ends_and_between():
    one_hot = torch.tensor([0.0, -torch.inf, -torch.inf])
    assert control.effective_sample_size(one_hot) == 1
    even = torch.full((5,), 1 / 5).log()
    torch.testing.assert_close(
        control.effective_sample_size(even),
        torch.tensor(5.0, dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )
    w = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    torch.testing.assert_close(control.effective_sample_size(w.log()), 1 / (w**2).sum())


def test_gaussian_kl_against_torch_distributions():
    _, U, _ = problem(batch=(3,))
    law = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        law(U.double(), 0.4), law(torch.zeros_like(U).double(), 0.4)
    ).sum((-2, -1))
    torch.testing.assert_close(control.gaussian_kl(U, 0.4), expected)


def test_free_energy_of_a_gaussian_reward():
    # r ~ N(0, s^2) gives lam log E exp(r / lam) = s^2 / (2 lam).
    n, s, lam = 200_000, 0.8, 1.0
    r = s * torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (r / lam).exp()
    error = lam * x.std() / x.mean() / n**0.5  # delta method
    assert error < 0.01
    assert abs(control.free_energy(r, lam) - s**2 / (2 * lam)) < 4 * error


def test_a_linear_reward_moves_the_mean_to_its_known_optimum():
    """r(V) = a . v has u* = E_{Q*}[v] = sigma^2 a / lam; exact weights (alpha = 0) find it."""
    n, tau, d, sigma, lam = 40_000, 2, 2, 0.5, 0.7
    g = torch.Generator().manual_seed(1)
    a = torch.randn(tau, d, generator=g)
    a /= a.norm()
    target = sigma**2 * a / lam
    U = torch.zeros(tau, d)
    for _ in range(4):
        V = U + sigma * torch.randn(n, tau, d, generator=g)
        r = (V * a).sum((-2, -1)).double()
        log_w = control.log_weights(r, U, V, lam=lam, sigma=sigma, alpha=0.0)
        U = control.update_mean(log_w, V)
    assert control.effective_sample_size(log_w) > n / 4
    w = log_w.exp()[:, None, None]
    error = (w**2 * (V - U) ** 2).sum(0).sqrt()  # standard error of the self-normalized mean
    assert error.max() < 0.02
    assert ((U - target).abs() < 4 * error).all(), (U - target) / error
    assert (U.abs() > 4 * error).any()  # it did leave 0


# -- taking the noise out of the update -----------------------------------------------------------


def test_a_mean_moved_without_options_is_the_weighted_mean():
    r, U, V = problem(batch=(2,))
    log_w = control.log_weights(r, U, V, lam=0.3, sigma=0.5, alpha=1.0)
    assert torch.equal(control.moved_mean(U, log_w, V), control.update_mean(log_w, V))


@pytest.mark.parametrize("step_size", [1.0, 0.3, 2.0])
@pytest.mark.parametrize("steered", [None, 1, 3, 5])
@pytest.mark.parametrize("control_variate", [False, True])
def test_options_of_the_update_term_by_term(step_size, steered, control_variate):
    r, U, V = problem()
    log_w = control.log_weights(r, U, V, lam=0.3, sigma=0.5, alpha=1.0)
    expected = U.double().numpy().copy()
    for t in range(5 if steered is None else steered):
        for i in range(16):
            weight = log_w[i].exp().item() - control_variate / 16
            expected[t] += step_size * weight * (V[i, t] - U[t]).double().numpy()
    how = dict(step_size=step_size, steered=steered, control_variate=control_variate)
    got = control.moved_mean(U, log_w, V, **how)
    assert got.dtype == V.dtype
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)
    assert torch.equal(got[steered or 5 :], U[steered or 5 :])


@pytest.mark.parametrize("control_variate", [False, True])
def test_the_noise_of_an_update_is_what_the_effective_sample_size_says(control_variate):
    """Rewards that do not depend on V: sigma^2 D / ESS, with the control variate 1/ESS - 1/n."""
    n, tau, d, sigma = 12, 40, 1000, 0.5
    g = torch.Generator().manual_seed(0)
    U = torch.randn(tau, d, generator=g)
    V = U + sigma * torch.randn(n, tau, d, generator=g)
    r = torch.randn(n, generator=g, dtype=torch.float64)
    log_w = control.log_weights(r, U, V, lam=0.7, sigma=sigma, alpha=1.0)
    ess = control.effective_sample_size(log_w).item()
    share = 1 / ess - control_variate / n
    moved = control.moved_mean(U, log_w, V, control_variate=control_variate) - U
    error = (2 / (tau * d)) ** 0.5  # of a mean of tau d squares of standard normals, relative
    assert 2 < ess < n - 2
    assert abs(moved.square().mean().item() / (sigma**2 * share) - 1) < 4 * error
    # In nats: D / (2 ESS) per iteration for the plain update.
    kl = control.gaussian_kl(moved, sigma).item()
    assert abs(kl / (tau * d * share / 2) - 1) < 4 * error


def test_with_uniform_weights_only_the_control_variate_stays():
    _, U, V = problem()
    even = torch.full((16,), 1 / 16, dtype=torch.float64).log()
    torch.testing.assert_close(control.moved_mean(U, even, V, control_variate=True), U)
    assert (control.moved_mean(U, even, V) - U).abs().max() > 0.1


@pytest.mark.parametrize("steered", [None, 4])
@pytest.mark.parametrize("block", [2, 3, 5])
def test_a_mean_by_blocks_is_the_weighted_least_squares_of_that_family(block, steered):
    """argmin_U sum_i w_i |V_i - U|^2 over U that are constant within blocks, by lstsq."""
    r, _, V = problem()
    log_w = control.log_weights(r, torch.zeros(5, 7), V, lam=0.3, sigma=0.5, alpha=1.0)
    moving = steered or 5
    of_block = np.arange(moving)[:, None] // block == np.arange(-(-moving // block))  # (steps, B)
    root = log_w.exp().sqrt().numpy()
    design = np.concatenate([x * of_block for x in root])
    target = (root[:, None, None] * V[:, :moving].double().numpy()).reshape(-1, 7)
    expected = of_block @ np.linalg.lstsq(design, target, rcond=None)[0]
    got = control.moved_mean(torch.zeros(5, 7), log_w, V, block=block, steered=steered)
    assert got.dtype == V.dtype and got.shape == (5, 7)
    np.testing.assert_allclose(got[:moving].numpy(), expected, atol=1e-6)
    assert not got[moving:].any()
    alone = control.moved_mean(torch.zeros(5, 7), log_w, V, steered=steered)
    assert (got - alone).abs().max() > 0.05


def test_blocks_have_their_share_of_the_noise():
    n, tau, d, sigma, block = 12, 40, 1000, 0.5, 8
    g = torch.Generator().manual_seed(0)
    U = torch.randn(tau // block, d, generator=g).repeat_interleave(block, 0)
    V = U + sigma * torch.randn(n, tau, d, generator=g)
    r = torch.randn(n, generator=g, dtype=torch.float64)
    log_w = control.log_weights(r, U, V, lam=0.7, sigma=sigma, alpha=1.0)
    moved = control.moved_mean(U, log_w, V, block=block) - U
    kl = control.gaussian_kl(moved, sigma).item()
    expected = tau * d / (2 * block * control.effective_sample_size(log_w).item())
    assert abs(kl / expected - 1) < 4 * (2 * block / (tau * d)) ** 0.5


@pytest.mark.parametrize("target", [1.5, 4.0, 8.0, 15.5])
def test_lam_gives_the_effective_sample_size_that_was_asked_for(target):
    g = torch.Generator().manual_seed(0)
    r = torch.randn(5, 16, generator=g, dtype=torch.float64) * torch.tensor(
        [[1e-3], [1], [2], [9], [1e4]]
    )
    lam = control.lam_for_ess(r, target)
    log_w = torch.log_softmax(r / lam[:, None], -1)
    torch.testing.assert_close(
        control.effective_sample_size(log_w), torch.full((5,), target, dtype=torch.float64)
    )
    torch.testing.assert_close(control.lam_for_ess(3 * r - 7, target), 3 * lam)
    assert (control.lam_for_ess(r, target + 0.2) > lam).all()


def test_lam_at_the_ends_of_what_an_effective_sample_size_can_be():
    ties = torch.tensor([1.0, 1.0, 0.0, -torch.inf])
    for target, ess in ((1.5, 2.0), (3.5, 3.0)):  # two share the top, three are finite
        lam = control.lam_for_ess(ties, target)
        log_w = torch.log_softmax(ties.double() / lam, -1)
        assert abs(control.effective_sample_size(log_w).item() - ess) < 1e-5
    assert control.lam_for_ess(torch.tensor([2.0, 2.0, -torch.inf]), 2) == 1
    for target in (0.5, 4.5, float("nan")):
        with pytest.raises(ValueError, match=r"target is .*; it must lie in \[1, 4\]"):
            control.lam_for_ess(ties, target)
    with pytest.raises(ValueError, match="all rewards of one row are -inf"):
        control.lam_for_ess(torch.full((3,), -torch.inf), 2)


@pytest.mark.parametrize("bound", [0.01, 0.3, 1.0, 2.0])
def test_lam_of_a_kl_bound_solves_the_constrained_problem(bound):
    """max w . r subject to KL(w || uniform) <= bound, by a general solver; and the dual's minimum."""
    g = torch.Generator().manual_seed(1)
    rows = torch.randn(4, 9, generator=g, dtype=torch.float64)
    rows = rows * torch.tensor([[0.01], [1], [5], [1e3]]) + 4
    rows[2, 3] = -torch.inf
    lams = control.lam_for_kl(rows, bound)
    torch.testing.assert_close(control.lam_for_kl(3 * rows - 7, bound), 3 * lams)
    for r, lam in zip(rows, lams, strict=True):
        w = torch.softmax(r / lam, -1)
        n, left = len(r), r.isfinite()
        if bound < math.log(n / left.sum()):  # a rejected response leaves no such weights
            assert (w[left] * left.sum() - 1).abs().max() < 1e-4
            continue
        assert control.kl_from_uniform(w.log()).item() == pytest.approx(bound, abs=1e-9)
        unit = (r[left] - r[left].mean()).numpy() / r[left].std().item()
        kl = lambda w: math.log(n) + np.sum(special.xlogy(w, w))  # noqa: B023, E731
        best = optimize.minimize(
            lambda w: -w @ unit,  # noqa: B023
            np.full(left.sum(), 1 / left.sum()),
            method="SLSQP",
            bounds=[(0, 1)] * int(left.sum()),
            constraints=[
                {"type": "eq", "fun": lambda w: w.sum() - 1},
                {"type": "ineq", "fun": lambda w: bound - kl(w)},  # noqa: B023
            ],
            options={"ftol": 1e-12, "maxiter": 500},
        )
        np.testing.assert_allclose(w[left].numpy(), best.x, atol=2e-4)
        dual = lambda x: x * bound + control.free_energy(r, x).item()  # noqa: B023, E731
        assert dual(lam.item()) <= min(dual(lam.item() * x) for x in (0.98, 0.999, 1.001, 1.02))


def test_a_kl_bound_at_its_ends():
    ties = torch.tensor([1.0, 1.0, 0.0, -torch.inf])
    # Two share the top: KL log 2 at most. Three are left: log(4/3) at least.
    for bound, kl in ((1.2, math.log(2)), (0.1, math.log(4 / 3))):
        lam = control.lam_for_kl(ties, bound)
        log_w = torch.log_softmax(ties.double() / lam, -1)
        assert control.kl_from_uniform(log_w).item() == pytest.approx(kl, abs=1e-5)
    assert control.lam_for_kl(torch.tensor([2.0, 2.0, -torch.inf]), 0.5) == 1
    for bound in (-0.1, 1.4, float("nan")):
        with pytest.raises(ValueError, match=r"bound is .*; it must lie in \[0, 1.386\]"):
            control.lam_for_kl(ties, bound)
    with pytest.raises(ValueError, match="all rewards of one row are -inf"):
        control.lam_for_kl(torch.full((3,), -torch.inf), 0.5)
    one_hot = torch.tensor([0.0, -torch.inf])
    assert control.kl_from_uniform(one_hot).item() == pytest.approx(math.log(2))
    assert control.kl_from_uniform(torch.tensor([0.5, 0.5]).log()).abs() < 1e-6
