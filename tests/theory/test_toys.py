"""The toys are exact: against closed forms, quadrature and decoding."""

import math

import pytest
import torch
from small_systems import (
    LAM,
    LIMIT,
    SIGMA,
    draws_around,
    f64,
    gaussian_toy,
    language_model,
    rng,
)

from aisp.theory import toys


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
