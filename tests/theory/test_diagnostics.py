"""Sections 7 and 8 of the theory notebook: how Gaussian a cloud is; argmax with noise as a sampler."""

import math

import pytest
import torch
from small_systems import (
    LIMIT,
    SIGMA,
    f64,
    language_model,
    rng,
)

from aisp.theory import diagnostics, toys


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
