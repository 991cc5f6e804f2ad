"""The tables of the theory notebook, against what the toys say by other means."""

import math

import numpy as np
import pytest
import torch
from small_systems import f64, language_model, rng

from aisp import control, figures
from aisp.experiment.studies import prelogits
from aisp.theory import diagnostics, studies, toys


@pytest.fixture(scope="module")
def lm():
    return language_model()


def test_two_hills_meet_the_bound_by_two_independent_ways():
    hills = studies.two_hills(sigma=0.5, lam=0.1)
    torch.testing.assert_close(hills.bound - hills.value, 0.1 * hills.kl, atol=1e-6, rtol=0)
    assert hills.best == pytest.approx(1.15) and 0 < hills.target < hills.best


def test_the_bias_of_a_linear_reward_is_negative_and_falls_with_n():
    a = torch.tensor([[0.8, 0.0]], **f64)
    toy = toys.GaussianToy(a, 0 * a, 1.0, 1.0)
    table = studies.snis_bias(toy, [8, 64], 2**17, rng(3))
    assert (table["bias"] < -3 * table["se"]).all()
    assert table["bias"].abs().is_monotonic_decreasing
    assert table["leading"][0] == pytest.approx(-0.8 * math.exp(0.64) / 8)
    assert abs(table["bias"][1] - table["leading"][1]) < 5 * table["se"][1] + 1e-3


def test_the_trade_of_alpha_holds_exact_limits_and_their_noise(lm):
    table = studies.alpha_trade(lm, (0.0, 1.0), (0.5, 2.0), 16, rng(4), repeats=50)
    assert list(table["scale"]) == [0.5, 0.5, 2.0, 2.0]
    U_star = lm.tilted_mean()
    for row in table.itertuples():
        U = row.scale * U_star
        exact = (lm.tilted_mean(row.alpha * U) - U_star).norm()
        assert row.bias == pytest.approx(float(exact), abs=1e-12)
        assert row.ess == toys.ess_fraction(lm, U, row.alpha) and row.rmse > 0.5 * row.bias


def test_iterations_and_splits_show_the_sampler_beside_the_exact_path(lm):
    shared = {"max_new_tokens": lm.shape[0], "tau": lm.shape[0], "sigma": lm.sigma, "lam": lm.lam}
    config = studies.AISPConfig(n=8, kappa=2, alpha=0.5, **shared)
    sampled = {0.5: toys.run_sampler(lm, config, 5, 0)}
    exact = {0.5: studies.exact_means(lm, 0.5, 2)}
    table = studies.iterations(lm, sampled, exact, 8)
    assert list(table["iteration"]) == [0, 1, 2] * 2 and list(table["samples"][2:4]) == [8, np.inf]
    ours, limit = table[table["samples"] == 8], table[np.isinf(table["samples"])]
    assert ours["ess"].isna().tolist() == [False, False, True]
    assert ours["reward"].iloc[1] == pytest.approx(sampled[0.5]["reward_mean"][:, 1].mean().item())
    assert limit["distance"].iloc[1] == pytest.approx(0, abs=1e-9)  # one exact step is U*
    assert limit["reward"].iloc[2] == pytest.approx(studies.expected_reward(lm, exact[0.5][2]))
    split = studies.splits(lm, (0.0,), [(8, 2)], 0, runs=5, **shared)
    last = toys.run_sampler(lm, studies.AISPConfig(n=8, kappa=2, alpha=0.0, **shared), 5, 0)["U"]
    distance = (last[:, -1] - lm.tilted_mean()).flatten(1).norm(dim=1).mean()
    assert split["error"][0] == pytest.approx(float(distance))
    assert split[["alpha", "n", "kappa"]].iloc[0].tolist() == [0, 8, 2]


def test_noise_below_the_smallest_margin_changes_no_token_and_more_does(lm):
    margin = studies.smallest_margin(lm)
    V = torch.randn(500, *lm.shape, generator=rng(5), **f64)
    greedy = lm.decode(torch.zeros(lm.shape, **f64))
    inside = V / V.norm(dim=-1, keepdim=True) * 0.999 * margin
    assert (lm.decode(inside) == greedy).all()
    assert (lm.decode(3 * inside) != greedy).any()


def test_texts_never_move_further_than_perturbations(lm):
    U = torch.randn(6, *lm.shape, generator=rng(6), **f64)
    table = studies.texts_and_means(lm, list(U))
    assert (table["texts"] <= table["perturbations"] + 1e-9).all()
    assert table["perturbations"][0] == pytest.approx(float(control.gaussian_kl(U[0], lm.sigma)))


@pytest.fixture(scope="module")
def collected(tiny):
    policy = tiny("llama")
    return policy, diagnostics.collect_prelogits(policy, ["a", "b", "c"], 16, 4, seed=0)


def test_sets_of_prelogits_are_steps_tokens_and_noise(collected):
    policy, data = collected
    found = prelogits.sets(policy, data, sigma=2.0, seed=0, least=4)
    assert (
        list(found)[:3] == ["step 2", "step 3", "step 4"] and list(found)[-1] == "our perturbations"
    )
    torch.testing.assert_close(found["step 2"], data.z[data.valid[:, 1], 1])
    noise = found["our perturbations"]
    assert noise.shape == (48, policy.d) and 1.8 < noise.std() < 2.2
    assert next(iter(prelogits.one_of_each(found))) == "step 3"
    assert "step 2" not in prelogits.sets(policy, data, sigma=2.0, seed=0, least=1000)


def test_the_shape_of_a_gaussian_lies_on_the_diagonal_and_a_heavy_tail_does_not():
    Z = torch.randn(400, 6, generator=rng(7), **f64)
    table = prelogits.shape({"plain": Z, "heavy": Z**3}, components=3, seed=0)
    of = {k: g for k, g in table.groupby(["set", "panel"])}
    assert (
        of["plain", "marginals"]["y"].abs().max() < 0.2 < of["heavy", "marginals"]["y"].abs().max()
    )
    assert (of["plain", "marginals"]["low"] <= of["plain", "marginals"]["high"]).all()
    off = [of[x, "distances"].eval("y / x").iloc[-1] for x in ("plain", "heavy")]
    assert 0.7 < off[0] < 1.3 and off[1] > 1.5
    assert of["plain", "spectrum"]["y"].iloc[-1] == pytest.approx(1)
    assert list(of["plain", "spectrum"]["x"]) == [1, 2, 3, 4, 5, 6]
    rows = prelogits.normality({"plain": Z, "heavy": Z**3}, components=3, twins=19, seed=0)
    assert list(rows["set"]) == ["plain", "heavy"] and rows["n"].tolist() == [400, 400]
    assert rows["p of hz"][1] == 0.05 and rows["hz"][0] < 1.5 < rows["hz"][1]


def test_more_noise_is_a_higher_temperature(collected):
    policy, data = collected
    table = prelogits.noise_as_sampler(policy, data, (0.5, 2.0), positions=8, draws=300, seed=0)
    assert table["T matched"].is_monotonic_increasing and table["entropy"].is_monotonic_increasing
    assert (table["TV floor"] > 0).all() and table["top-1 noise"].between(0, 1).all()
    assert table["T predicted"][1] == pytest.approx(4 * table["T predicted"][0])


def test_stored_tables_are_read_without_a_model(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(prelogits, "load_policy", refuse)
    found = prelogits.measured("cpu", sigma=0.8, seed=0)
    assert found.normality["set"].iloc[-1] == "our perturbations"
    assert list(found.noise["sigma"]) == list(prelogits.SIGMAS)
    drawn = figures.theory_gaussianity(found.shape, prelogits.COMPONENTS)
    assert len(drawn.axes) == 3
    with pytest.raises(ValueError, match="profile is 'big'"):
        prelogits.measured("big", sigma=0.8, seed=0)
