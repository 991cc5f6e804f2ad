"""AISP: the algorithm on real decoding, its determinism, and its configuration."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES

import aisp
from aisp import control, metrics
from aisp.engine.rollout import rollout
from aisp.rewards import CallableReward
from aisp.sampler import AISPConfig, init, perturbations, respond, step, update
from aisp.state import generator

PROMPTS = ["Hi", "How do I learn to cook?", [{"role": "user", "content": "Name a river."}]]
SMALL = dict(n=6, kappa=3, max_new_tokens=8, sigma=1.0, lam=2.0, progress=False)


def vowels(prompt, response):
    return sum(response.count(c) for c in "aeiou") - 0.1 * len(response)


def equal(a, b):
    assert a.response == b.response and a.reward == b.reward
    same = [c for c in a.history if c != "seconds"]
    np.testing.assert_allclose(a.history[same], b.history[same], rtol=1e-6, atol=1e-6)
    assert a.candidates["response"].tolist() == b.candidates["response"].tolist()
    np.testing.assert_allclose(a.candidates["log_weight"], b.candidates["log_weight"], atol=1e-6)


def test_a_run_is_the_algorithm_written_out(tiny):
    """The whole loop again, in a dozen lines of numpy around the engine."""
    policy, n, kappa, T, tau = tiny(), 5, 4, 8, 6
    sigma, lam, alpha = 0.8, 0.5, 0.9
    out = aisp.align(
        "Hi",
        policy,
        vowels,
        seed=3,
        n=n,
        kappa=kappa,
        max_new_tokens=T,
        tau=tau,
        sigma=sigma,
        lam=lam,
        alpha=alpha,
        progress=False,
    )
    U = np.zeros((tau, policy.d))
    best = -np.inf
    for k in range(kappa):
        g = generator(3, "Hi", k, torch.device("cpu"))
        V = U + sigma * torch.randn(n, tau, policy.d, generator=g).double().numpy()
        texts = rollout(policy, [policy.prefix("Hi")], n, T, V=torch.tensor(V[None]).float()).texts
        r = np.array([vowels("Hi", t) for t in texts[0]])
        best = max(best, r.max())
        score = r / lam - (1 - alpha) / sigma**2 * np.einsum("td,ntd->n", U, V)
        w = np.exp(score - score.max())
        w /= w.sum()
        rows = out.candidates[out.candidates["iteration"] == k]
        assert rows["response"].tolist() == texts[0]
        np.testing.assert_allclose(np.exp(rows["log_weight"]), w, atol=1e-5)
        h = out.history.iloc[k]
        np.testing.assert_allclose(
            [h.reward_mean, h.reward_std, h.reward_max, h.reward_best, h.ess, h.kl],
            [r.mean(), r.std(), r.max(), best, 1 / (w**2).sum(), (U**2).sum() / (2 * sigma**2)],
            rtol=1e-4,
            atol=1e-6,
        )
        U = np.einsum("n,ntd->td", w, V)
    assert out.reward == best and vowels("Hi", out.response) == best
    assert out.history["kl"].iloc[0] == 0 and out.history["kl"].iloc[1] > 0


def test_noise_only_holds_the_mean_at_zero(tiny):
    adapted = aisp.align("Hi", tiny(), vowels, **SMALL)
    control_run = aisp.align("Hi", tiny(), vowels, adapt=False, **SMALL)
    assert (control_run.history["kl"] == 0).all() and (adapted.history["kl"][1:] > 0).all()
    # The same noise: identical until the mean first moves.
    first = [a.candidates[a.candidates["iteration"] == 0] for a in (adapted, control_run)]
    assert first[0]["response"].tolist() == first[1]["response"].tolist()
    rest = [a.candidates[a.candidates["iteration"] > 0] for a in (adapted, control_run)]
    assert rest[0]["response"].tolist() != rest[1]["response"].tolist()


def test_adaptation_raises_a_reward_that_the_perturbation_can_reach(tiny):
    """After ten iterations the samples are better than noise-only's, by more than 5 errors."""

    def letters(prompt, response):
        return float(sum(c.isascii() and c.isalpha() for c in response))

    size = dict(n=64, kappa=10, max_new_tokens=8, sigma=1.0, lam=1.0, progress=False)
    adapted, still = (
        np.concatenate([out.candidates["reward"][-64:] for out in outs])
        for outs in (
            aisp.align(PROMPTS, tiny(), letters, adapt=adapt, **size) for adapt in (True, False)
        )
    )
    error = np.hypot(adapted.std(), still.std()) / len(still) ** 0.5
    assert error < 0.2
    assert adapted.mean() - still.mean() > 5 * error


def test_same_seed_same_result_and_another_seed_differs(tiny):
    one, two, other = (aisp.align("Hi", tiny(), vowels, seed=seed, **SMALL) for seed in (0, 0, 1))
    equal(one, two)
    assert one.candidates["response"].tolist() != other.candidates["response"].tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_batched_equals_alone(tiny, name, temperature):
    policy = tiny(name)
    together = aisp.align(PROMPTS, policy, vowels, temperature=temperature, **SMALL)
    for prompt, one in zip(PROMPTS, together, strict=True):
        alone = aisp.align(prompt, policy, vowels, temperature=temperature, **SMALL)
        assert one.prompt == prompt
        equal(one, alone)


def test_batched_equals_alone_on_the_embedded_model(embedded):
    size = dict(n=3, kappa=2, max_new_tokens=8, progress=False)
    together = aisp.align(PROMPTS[:2], embedded, vowels, **size)
    for prompt, one in zip(PROMPTS[:2], together, strict=True):
        equal(one, aisp.align(prompt, embedded, vowels, **size))


def test_global_random_state_is_neither_read_nor_changed(tiny):
    outs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global state is what is tested
        before = torch.get_rng_state()
        outs.append(aisp.align("Hi", tiny(), vowels, temperature=0.5, **SMALL))
        assert torch.equal(before, torch.get_rng_state())
    equal(*outs)


def test_draws_are_around_the_mean_with_the_stated_spread():
    U = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    sources = [torch.Generator().manual_seed(s) for s in (1, 2)]
    V = perturbations(U, 5000, 0.5, sources)
    assert V.shape == (2, 5000, 3, 4)
    error = 0.5 / 5000**0.5
    assert ((V.mean(1) - U).abs() < 4.5 * error).all()  # 24 means
    assert ((V.std(1) - 0.5).abs() < 4.5 * error / 2**0.5).all()
    alone = perturbations(U[1:], 5000, 0.5, [torch.Generator().manual_seed(2)])
    torch.testing.assert_close(alone[0], V[1])


def test_the_update_is_pure_and_uses_control():
    g = torch.Generator().manual_seed(0)
    U, config = torch.randn(2, 3, 4, generator=g), AISPConfig(n=5, max_new_tokens=3, lam=0.3)
    V, r = perturbations(U, 5, 0.5, [g, g]), torch.randn(2, 5, generator=g, dtype=torch.float64)
    before = [x.clone() for x in (U, V, r)]
    out = update(U, V, r, config)
    for x, y in zip((U, V, r), before, strict=True):
        assert torch.equal(x, y)
    log_w = control.log_weights(r, U, V, lam=0.3, sigma=0.5, alpha=0.99)
    torch.testing.assert_close(out.U, control.update_mean(log_w, V))
    torch.testing.assert_close(out.kl, control.gaussian_kl(U, 0.5))


def test_antithetic_draws_cancel_and_are_draws():
    U = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    sources = [[torch.Generator().manual_seed(s) for s in (1, 2)] for _ in range(2)]
    V = perturbations(U, 10, 0.5, sources[0], antithetic=True)
    torch.testing.assert_close(V[:, :5] + V[:, 5:], 2 * U.unsqueeze(1).expand(-1, 5, -1, -1))
    assert torch.equal(V[:, :5], perturbations(U, 5, 0.5, sources[1]))
    # The uniform part is 0 already, so that the control variate changes nothing.
    g = torch.Generator().manual_seed(3)
    log_w = torch.log_softmax(torch.randn(2, 10, generator=g, dtype=torch.float64), -1)
    moved = [control.moved_mean(U, log_w, V, control_variate=on) for on in (False, True)]
    torch.testing.assert_close(*moved)
    assert (moved[0] - U).abs().max() > 0.05


def test_an_effective_sample_size_replaces_lam():
    g = torch.Generator().manual_seed(0)
    U = torch.randn(2, 3, 4, generator=g)
    V = perturbations(U, 8, 0.5, [g, g])
    r = torch.randn(2, 8, generator=g, dtype=torch.float64) * torch.tensor([[0.1], [20.0]])
    config = AISPConfig(n=8, max_new_tokens=3, ess=0.4, alpha=1)
    torch.testing.assert_close(update(U, V, r, config).ess, torch.full((2,), 3.2, dtype=r.dtype))
    scaled = update(U, V, 100 * r + 5, config)
    torch.testing.assert_close(scaled.U, update(U, V, r, config).U)


def test_a_kl_bound_replaces_lam():
    g = torch.Generator().manual_seed(0)
    U = torch.randn(2, 3, 4, generator=g)
    V = perturbations(U, 8, 0.5, [g, g])
    r = torch.randn(2, 8, generator=g, dtype=torch.float64) * torch.tensor([[0.1], [20.0]])
    config = AISPConfig(n=8, max_new_tokens=3, kl_bound=0.4, alpha=1)
    out = update(U, V, r, config)
    torch.testing.assert_close(
        control.kl_from_uniform(out.log_w), torch.full((2,), 0.4, dtype=r.dtype)
    )
    torch.testing.assert_close(update(U, V, 100 * r + 5, config).U, out.U)


def test_blocks_share_a_row_in_the_run(tiny):
    """One u for all steps, and blocks of which the last is short, in a dozen lines; with the KL."""
    policy, n, T, sigma = tiny(), 6, 7, 0.8
    size = dict(n=n, kappa=3, max_new_tokens=T, sigma=sigma, lam=0.5, alpha=0.9, progress=False)
    for block in (3, T):
        out = aisp.align("Hi", policy, vowels, seed=3, block=block, **size)
        U = torch.zeros(T, policy.d, dtype=torch.float64)
        for k in range(3):
            kl = out.history["kl"][k]
            assert kl == pytest.approx(U.square().sum().item() / (2 * sigma**2), rel=1e-4)
            g = generator(3, "Hi", k, torch.device("cpu"))
            V = U + sigma * torch.randn(n, T, policy.d, generator=g).double()
            rows = out.candidates[out.candidates["iteration"] == k]
            r = torch.tensor(rows["reward"].to_numpy())
            pairs = zip(U.split(block), V.split(block, 1), strict=True)
            per_block = [v.sum(1) @ u[0] for u, v in pairs]
            w = torch.softmax(r / 0.5 - 0.1 / sigma**2 * sum(per_block), -1)
            np.testing.assert_allclose(np.exp(rows["log_weight"]), w, atol=1e-5)
            mean = torch.einsum("n,ntd->td", w, V)
            U = torch.cat([x.mean(0).expand_as(x) for x in mean.split(block)])
        torch.testing.assert_close(out.U.double(), U, atol=1e-5, rtol=1e-4)
        assert len(out.U.unique(dim=0)) == -(-T // block)


def test_every_option_reaches_the_run(tiny):
    """The run with all of them, in a dozen lines around the engine; and each changes something."""
    policy, n, T, tau, sigma = tiny(), 6, 8, 6, 0.8
    own = dict(control_variate=True, step_size=0.5, steered=2, antithetic=True, ess=0.5)
    size = dict(n=n, kappa=3, max_new_tokens=T, tau=tau, sigma=sigma, alpha=1.0, progress=False)
    out = aisp.align("Hi", policy, vowels, seed=3, **own, **size)
    U = torch.zeros(tau, policy.d, dtype=torch.float64)
    for k in range(3):
        g = generator(3, "Hi", k, torch.device("cpu"))
        e = torch.randn(n // 2, tau, policy.d, generator=g).double()
        V = U + sigma * torch.cat([e, -e])
        texts = rollout(policy, [policy.prefix("Hi")], n, T, V=V[None].float()).texts[0]
        rows = out.candidates[out.candidates["iteration"] == k]
        assert rows["response"].tolist() == texts
        w = torch.tensor(np.exp(rows["log_weight"].to_numpy()))
        best = w.argmax()
        assert rows["reward"].iloc[int(best)] == rows["reward"].max()
        # Not reached where more than half of the samples share the highest reward.
        assert (
            abs(1 / (w**2).sum() - 3) < 1e-4 or (rows["reward"] == rows["reward"].max()).sum() > 3
        )
        step_by = 0.5 * torch.einsum("n,ntd->td", w - 1 / n, V - U)
        step_by[2:] = 0
        U = U + step_by
    torch.testing.assert_close(out.U.double(), U, atol=1e-5, rtol=1e-4)
    assert U[:2].abs().max() > 0.05 and not out.U[2:].any()
    plain = dict(control_variate=False, step_size=1.0, steered=None, antithetic=False, ess=None)
    for name, value in plain.items():
        other = aisp.align("Hi", policy, vowels, seed=3, **(own | {name: value}), **size)
        assert not torch.allclose(other.U, out.U, atol=1e-3) or name == "control_variate", name
    without = aisp.align("Hi", policy, vowels, seed=3, control_variate=False, **size)
    assert not torch.allclose(
        without.U,
        aisp.align("Hi", policy, vowels, seed=3, control_variate=True, **size).U,
        atol=1e-3,
    )


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n": 0}, "n is 0; it must be a whole number >= 1"),
        ({"n": 2.5}, "n is 2.5"),
        ({"kappa": 0}, "kappa is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"tau": 0}, "tau is 0; it must be a whole number from 1 to 48"),
        ({"tau": 49}, "tau is 49"),
        ({"sigma": 0}, "sigma is 0; it must be > 0"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"lam": -1}, "lam is -1; it must be > 0"),
        ({"lam": float("inf")}, "lam is inf"),
        ({"alpha": -0.1}, r"alpha is -0.1; it must lie in \[0, 1\]"),
        ({"alpha": 1.01}, "alpha is 1.01"),
        ({"temperature": -1}, "temperature is -1"),
        ({"control_variate": 1}, "control_variate is 1; it must be True or False"),
        ({"antithetic": "yes"}, "antithetic is 'yes'; it must be True or False"),
        ({"antithetic": True, "n": 5}, "n is 5; antithetic pairs need an even one"),
        ({"step_size": 0}, "step_size is 0; it must be > 0 and finite"),
        ({"steered": 0}, r"steered is 0; it must be a whole number from 1 to 48 \(tau\)"),
        ({"steered": 9, "tau": 8}, "steered is 9; it must be a whole number from 1 to 8"),
        ({"ess": 0.05, "alpha": 1}, r"ess is 0.05; it must lie in \[0.0625, 1\] \(1/n to 1\)"),
        ({"ess": 1.1, "alpha": 1}, "ess is 1.1"),
        ({"ess": 0.5}, "ess is 0.5 and alpha 0.99; set alpha = 1 with ess"),
        ({"ess": 0.5, "alpha": 1, "lam": 2.0}, "ess is 0.5 and lam 2; .* leave out one of the two"),
        (
            {"kl_bound": 3, "alpha": 1},
            r"kl_bound is 3; it must lie in \[0, 2.77259\] \(0 to log n\), or None to use lam",
        ),
        ({"kl_bound": 0.5}, "kl_bound is 0.5 and alpha 0.99; set alpha = 1 with kl_bound"),
        ({"kl_bound": 0.5, "alpha": 1, "lam": 2.0}, "kl_bound is 0.5 and lam 2; with kl_bound"),
        ({"kl_bound": 0.5, "alpha": 1, "ess": 0.5}, "ess is 0.5 and kl_bound 0.5; .* out one"),
        ({"block": 0}, r"block is 0; it must be a whole number from 1 to 48 \(tau\)"),
        ({"block": 9, "tau": 8}, "block is 9; it must be a whole number from 1 to 8"),
        ({"token_budget": 0}, "token_budget is 0; it must be > 0 and finite, or None"),
        ({"second_budget": -2.0}, "second_budget is -2.0"),
        ({"sigmaa": 1}, "aisp has no parameter 'sigmaa'; it takes: .*sigma"),
    ],
)
def test_every_parameter_is_checked(tiny, bad, message):
    with pytest.raises(ValueError, match=message):
        aisp.align("Hi", tiny(), vowels, **bad)


def test_tau_defaults_to_the_whole_response():
    assert AISPConfig(max_new_tokens=7).tau == 7
    assert AISPConfig(max_new_tokens=7, tau=3).tau == 3


def test_one_iteration_in_the_hand(tiny):
    """What `step` returns is consistent with itself: V, weights, mean, best."""
    policy, config = tiny(), AISPConfig(n=5, max_new_tokens=6, tau=4, sigma=0.7, lam=0.3)
    state = init(policy, "Hi", config, seed=2)
    assert state.U.shape == (1, 4, policy.d) and not state.U.any() and state.iteration == 0
    assert state.best[0].reward == -float("inf")
    for k in range(2):
        following, info = step(state, policy, CallableReward(vowels), config)
        again, same = step(state, policy, CallableReward(vowels), config)
        assert torch.equal(same.V, info.V) and torch.equal(again.U, following.U), "not pure"
        assert info.V.shape == (1, 5, 4, policy.d) and info.iteration == k
        sources = [generator(2, "Hi", k, policy.head_device)]
        assert torch.equal(info.V, perturbations(state.U, 5, 0.7, sources))
        weights = dict(lam=0.3, sigma=0.7, alpha=0.99)
        log_w = control.log_weights(info.rewards, state.U, info.V, **weights)
        assert torch.equal(info.log_w, log_w)
        assert torch.equal(following.U, control.update_mean(log_w, info.V))
        assert torch.equal(info.kl, control.gaussian_kl(state.U, 0.7))
        assert following.best[0].reward == max(info.rewards.max().item(), state.best[0].reward)
        with pytest.raises(dataclasses.FrozenInstanceError):
            following.U = state.U
        state = following


def test_the_final_mean_decodes_and_has_its_kl(tiny):
    policy = tiny()
    config = dict(n=8, kappa=3, max_new_tokens=6, tau=4, sigma=1.0, progress=False)
    out = aisp.align("Hi", policy, vowels, **config)
    assert out.U.shape == (4, policy.d) and torch.equal(out.U, out.state.U[0])
    assert aisp.align("Hi", policy, vowels, "best_of_n", n=2, kappa=1, progress=False).U is None
    steered = respond(policy, "Hi", out.U, max_new_tokens=6)
    expected = rollout(policy, [policy.prefix("Hi")], 1, 6, V=out.U[None, None]).texts[0][0]
    plain = rollout(policy, [policy.prefix("Hi")], 1, 6).texts[0][0]
    assert steered == expected != plain
    assert respond(policy, "Hi", torch.zeros(9, policy.d), max_new_tokens=6) == plain
    assert metrics.kl_to_base(policy, ["Hi"], [steered], U=[out.U])[0] > 0
    with pytest.raises(ValueError, match=r"U has shape \(1, 4, 32\); expected \(tau, d\)"):
        respond(policy, "Hi", out.U[None])


@pytest.mark.parametrize("where", ["all", "one token"])
@pytest.mark.parametrize(
    "decoding", [dict(), dict(temperature=1.0), dict(temperature=1.0, top_p=0.9)]
)
def test_logits_that_are_not_finite_are_an_error(tiny, where, decoding):
    """Broken weights, or a perturbation that overflows, must not become text."""
    base = tiny()
    model = copy.deepcopy(base.model)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[:] = float("nan") if where == "all" else head
        head[7] = float("nan")
    broken = aisp.Policy(model, base.tokenizer, name="broken")
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        aisp.align("Hi", broken, vowels, n=2, kappa=1, progress=False, **decoding)


def test_a_step_takes_a_plain_function_as_its_reward(tiny):
    config = AISPConfig(n=3, max_new_tokens=4)
    state = init(tiny(), "Hi", config)
    _, info = step(state, tiny(), vowels, config)
    _, same = step(state, tiny(), CallableReward(vowels), config)
    assert torch.equal(info.rewards, same.rewards)
