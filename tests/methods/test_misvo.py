"""MISVO: its gradient by autograd and by enumeration, its penalty as a matrix, and its run written out."""

import itertools

import numpy as np
import pytest
import torch
import transformers as tf
from tiny import SIZE, reward

import aisp
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.methods import configure, misvo
from aisp.policy import Policy
from aisp.rewards import CallableReward, RewardError
from aisp.state import generator

heads = pytest.mark.parametrize("name", ["llama", "gemma3"])  # gemma3 caps its logits
SMALL = dict(n=6, kappa=3, max_new_tokens=5, progress=False)


def laws(policy, z, U, temperature):
    """log softmax at every step of every response, differentiable in U; (P, n, T, |V|)."""
    logits = policy.model.get_output_embeddings()(z.clone().float() + U[:, None])
    cap = getattr(policy.model.config, "final_logit_softcapping", None)
    logits = cap * torch.tanh(logits / cap) if cap else logits
    return torch.log_softmax(logits / temperature, -1)


def sampled(policy, U, n=4, T=5, temperature=0.8):
    prefixes = [policy.prefix(x) for x in ("Hi", "Name a river.")]
    sources = [generator(0, x, 0, torch.device("cpu")) for x in ("Hi", "Ho")]
    V = U[:, None].expand(-1, n, -1, -1)
    decoding = Decoding(temperature)
    own = dict(V=V, decoding=decoding, generators=sources, keep_prelogits=True)
    out = rollout(policy, prefixes, n, T, **own)
    lengths = out.lengths.clone()
    lengths[0, 1] = 2  # as if one had ended early
    return out, lengths


@heads
def test_the_gradient_is_that_of_the_weighted_log_likelihood(tiny, name):
    policy, g = tiny(name), torch.Generator().manual_seed(0)
    U = 0.3 * torch.randn(2, 5, policy.d, generator=g)
    A = torch.randn(2, 4, generator=g)
    out, lengths = sampled(policy, U)
    moved = U.clone().requires_grad_()
    log_p = (
        laws(policy, out.prelogits, moved, 0.8)
        .gather(-1, out.tokens[..., None].clone())
        .squeeze(-1)
    )
    there = torch.arange(5) < lengths[..., None]
    (A[..., None] * log_p * there).sum(-1).mean(1).sum().backward()
    head = misvo.Head(policy, 0.8)
    got = misvo.gradient(head, out.prelogits, U, out.tokens, lengths, A)
    torch.testing.assert_close(got, moved.grad, atol=1e-5, rtol=1e-4)
    assert got.abs().max() > 0.01


@heads
def test_the_penalty_is_the_hessian_of_the_kl_at_0(tiny, name):
    """To second order, KL(p_u || p_0) = u F u / 2; so F u is its gradient for a small u."""
    policy = tiny(name)
    zero = torch.zeros(2, 5, policy.d)
    out, lengths = sampled(policy, zero)
    u = 1e-3 * torch.randn(2, 5, policy.d, generator=torch.Generator().manual_seed(1))
    got = misvo.fisher_times(misvo.Head(policy, 0.8), out.prelogits, zero, lengths, u)
    torch.testing.assert_close(got, kl_gradient(policy, out, lengths, u), atol=1e-6, rtol=0.02)
    assert got.abs().max() > 1e-4


def test_the_exact_kl_gradient_for_a_large_u(tiny):
    policy = tiny("llama")
    out, lengths = sampled(policy, torch.zeros(2, 5, policy.d))
    u = 0.7 * torch.randn(2, 5, policy.d, generator=torch.Generator().manual_seed(1))
    head = misvo.Head(policy, 0.8)
    exact = kl_gradient(policy, out, lengths, u)
    got = misvo.fisher_times(head, out.prelogits, u, lengths, u)
    torch.testing.assert_close(got, exact, atol=1e-4, rtol=1e-3)
    near = misvo.fisher_times(head, out.prelogits, torch.zeros_like(u), lengths, u)
    assert (near - exact).abs().max() > 0.1


def kl_gradient(policy, out, lengths, u):
    """Of mean_i KL(p_u || p_0) on the responses' prefixes, by autograd."""
    moved = u.clone().requires_grad_()
    q, p = (laws(policy, out.prelogits, x, 0.8) for x in (moved, torch.zeros_like(u)))
    there = torch.arange(5) < lengths[..., None]
    ((q.exp() * (q - p)).sum(-1) * there).sum(-1).mean(1).sum().backward()
    return moved.grad


def enumerated(policy, U):
    """All texts of at most two tokens, and their probabilities under u, differentiable in U."""
    T, prefix, found = 2, policy.prefix("x"), []
    for y in itertools.product(range(5), repeat=T):
        z = policy.model.base_model(input_ids=torch.tensor([[*prefix, *y[:-1]]]))
        z = z.last_hidden_state[0, -T:].clone()
        log_p = torch.log_softmax(policy.model.get_output_embeddings()(z + U[0]), -1)
        steps = 1 if y[0] in policy.eos_ids else T  # the first token may end the response
        if steps < T and y[1] != 0:
            continue
        found.append((y[0], y[1] if steps == T else 0, log_p[range(steps), y[:steps]].sum().exp()))
    firsts, seconds, p = zip(*found, strict=True)
    return torch.tensor([firsts, seconds]), torch.stack(p)


def drawn_gradients(policy, U, table, n, groups, weigh, runs=60):
    """`gradient` of n sampled texts, `groups` times at once in each of the runs, (runs, 1, T, d)."""
    head, found = misvo.Head(policy, 1.0), []
    for seed in range(runs):
        sources = [torch.Generator().manual_seed(groups * seed + i) for i in range(groups)]
        many = U.expand(groups, -1, -1)
        V = many[:, None].expand(-1, n, -1, -1)
        own = dict(V=V, decoding=Decoding(1.0), generators=sources, keep_prelogits=True)
        out = rollout(policy, [policy.prefix("x")] * groups, n, 2, **own)
        second = torch.where(out.lengths > 1, out.tokens[..., 1], 0)
        A = weigh(table[out.tokens[..., 0], second].double()).float()
        g = misvo.gradient(head, out.prelogits, many, out.tokens, out.lengths, A)
        found.append(g.mean(0, keepdim=True))
    return torch.stack(found)


def within_errors(found, expected, limit=5):
    error = found.std(0) / len(found) ** 0.5
    assert (expected.abs() > 10 * error).any(), "nothing to see"
    return bool(((found.mean(0) - expected).abs() < limit * error).all())


@pytest.fixture
def system(pairs):
    policy: Policy = pairs["models"][0]
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(3))
    U = 0.4 * torch.randn(1, 2, policy.d, generator=torch.Generator().manual_seed(4))
    return policy, table, U.requires_grad_()


def test_the_estimate_is_unbiased_by_enumeration(system):
    """All texts of two tokens: the exact gradient of the expected reward, within 5 standard errors."""
    policy, table, U = system
    texts, p = enumerated(policy, U)
    (p * table[tuple(texts)]).sum().backward()
    found = drawn_gradients(policy, U.detach(), table, 64, 1, misvo.advantages)
    assert within_errors(found, U.grad)


def softmax_advantages(r, lam=0.7):
    return r.shape[-1] * torch.softmax(r / lam, -1) - 1


def test_softmax_weights_climb_the_free_energy_by_enumeration(system):
    """For large n the direction is the gradient of log E[exp(r / lam)]: bias 1/n, below 5 errors."""
    policy, table, U = system
    texts, p = enumerated(policy, U)
    (p * (table[tuple(texts)] / 0.7).exp()).sum().log().backward()
    found = drawn_gradients(policy, U.detach(), table, 2048, 1, softmax_advantages, runs=12)
    assert within_errors(found, U.grad)
    other = drawn_gradients(policy, U.detach(), table, 2048, 1, misvo.advantages, runs=12)
    assert not within_errors(other, U.grad)


def test_softmax_weights_of_two_responses_by_enumeration(system):
    """At n = 2, w_1 - 1/2 = tanh((r_1 - r_2) / 2 lam) / 2, and E[g] is exact for that small n:

    the gradient of sum_y p(y) h(y), h(y) = E[tanh((r(y) - r(y')) / 2 lam)] over the other response.
    """
    policy, table, U = system
    texts, p = enumerated(policy, U)
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    r = table[tuple(texts)]
    h = torch.tanh((r[:, None] - r) / (2 * 0.7)) @ p.detach()
    (p * h).sum().backward()
    found = drawn_gradients(policy, U.detach(), table, 2, 128, softmax_advantages)
    assert within_errors(found, U.grad)
    for wrong in (lambda r: softmax_advantages(r) / 2, lambda r: softmax_advantages(r, 1 / 0.7)):
        assert not within_errors(drawn_gradients(policy, U.detach(), table, 2, 128, wrong), U.grad)


def test_advantages_leave_one_out_and_leave_rejected_responses_out():
    got = misvo.advantages(torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor([[-3.0, -1.5, 4.5]], dtype=torch.float64))
    rejected = torch.tensor([[1.0, -torch.inf, 3.0], [5.0, -torch.inf, -torch.inf]])
    torch.testing.assert_close(
        misvo.advantages(rejected), torch.tensor([[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    )


@pytest.mark.parametrize("weights", [{}, {"weights": "softmax", "lam": 0.4}])
@pytest.mark.parametrize("regularization", misvo.REGULARIZATIONS)
def test_a_run_is_the_algorithm_written_out(tiny, regularization, weights):
    base, n, T = tiny(), 6, 5
    policy = Policy(base.model, base.tokenizer, name="often", eos_ids=tuple(range(0, 258, 7)))
    own = dict(step_size=0.7, penalty=0.3, regularization=regularization, **weights)
    out = aisp.align("Hi", policy, reward, "misvo", seed=2, temperature=0.7, **own, **SMALL)
    U, first, head = torch.zeros(1, T, policy.d), None, misvo.Head(policy, 0.7)
    for k in range(3):
        drawn = rollout(
            policy,
            [policy.prefix("Hi")],
            n,
            T,
            V=U[:, None].expand(-1, n, -1, -1),
            decoding=Decoding(0.7),
            generators=[generator(2, "Hi", k, torch.device("cpu"))],
            keep_prelogits=True,
        )
        first = first or drawn
        assert drawn.lengths.min() < T  # some end early
        rows = out.candidates[out.candidates["iteration"] == k]
        assert rows["response"].tolist() == drawn.texts[0]
        assert out.history["u_norm"][k] == pytest.approx(U.norm().item(), rel=1e-4)
        r = np.array([reward("Hi", t) for t in drawn.texts[0]])
        A = torch.tensor([[x - np.delete(r, i).mean() for i, x in enumerate(r)]]).float()
        if weights:
            w = np.exp(r / 0.4) / np.exp(r / 0.4).sum()
            np.testing.assert_allclose(np.exp(rows["log_weight"]), w)
            assert out.history["ess"][k] == pytest.approx(1 / (w**2).sum())
            A = torch.tensor(n * (w - 1 / n))[None].float()
        else:
            assert rows["log_weight"].isna().all() and np.isnan(out.history["ess"][k])
        move = misvo.gradient(head, drawn.prelogits, U, drawn.tokens, drawn.lengths, A)
        if regularization != "none":
            at = U if regularization == "kl" else torch.zeros_like(U)
            move = move - 0.3 * misvo.fisher_times(head, first.prelogits, at, first.lengths, U)
        U = U + 0.7 * move
    torch.testing.assert_close(out.state.U, U, atol=1e-5, rtol=1e-4)
    assert out.U is not None and U.norm() > 0.1


def test_steering_raises_the_reward_of_the_samples(tiny):
    def letters(prompt, response):
        return float(sum(c.isascii() and c.isalpha() for c in response))

    size = dict(n=64, kappa=12, max_new_tokens=8, progress=False)
    own = dict(step_size=2.0, penalty=0.01)
    steered = aisp.align("Hi", tiny(), letters, "misvo", **own, **size)
    rewards = steered.candidates["reward"].to_numpy().reshape(12, 64)
    error = np.hypot(rewards[0].std(), rewards[-1].std()) / 8
    assert rewards[-1].mean() - rewards[0].mean() > 5 * error


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n": 1}, "n is 1; it must be a whole number >= 2"),
        ({"step_size": 0}, "step_size is 0; it must be > 0 and finite"),
        ({"penalty": -1}, "penalty is -1; it must be >= 0 and finite"),
        ({"regularization": "l2"}, "regularization is 'l2'; known: fisher, kl, none"),
        ({"weights": "rank"}, "weights is 'rank'; known: advantage, softmax"),
        ({"weights": "softmax", "lam": 0}, "lam is 0; it must be > 0 and finite"),
        ({"lam": 2.0}, "lam is 2 and weights 'advantage', which have no lam: leave it out, or set"),
        ({"temperature": 0}, "temperature is 0.*set temperature > 0, top_k = 0 and top_p = 1"),
        ({"top_p": 0.9}, "top_p 0.9; MISVO samples from the whole law"),
        ({"top_k": 3}, "top_k 3"),
    ],
)
def test_parameters_are_checked(bad, message):
    with pytest.raises(ValueError, match=message):
        configure("misvo", **bad)


def test_states_that_do_not_fit_are_refused(tiny):
    config = misvo.MISVOConfig(n=4, max_new_tokens=5)
    state = misvo.init(tiny(), "Hi", config)
    with pytest.raises(ValueError, match=r"begun with n, max_new_tokens = \(4, 5\).* has \(6, 5\)"):
        misvo.step(state, tiny(), CallableReward(reward), misvo.MISVOConfig(n=6, max_new_tokens=5))
    with pytest.raises(FloatingPointError, match="lower step_size"):
        huge = lambda prompt, response: 1e9 * len(set(response))  # noqa: E731
        aisp.align("Hi", tiny(), huge, "misvo", step_size=1e38, n=4, kappa=2, progress=False)


SPECIAL = dict(eos_token_id=0, pad_token_id=0, bos_token_id=1)


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ("Cohere", dict(logit_scale=0.0625)),
        ("Granite", dict(logits_scaling=4.0)),
        (
            "RecurrentGemma",
            dict(lru_width=32, block_types=["attention"], logits_soft_cap=2.0, head_dim=8),
        ),
    ],
)
def test_a_model_whose_logits_are_not_those_of_its_head_is_refused(tiny, model, own):
    """Its score would be that of another law."""
    torch.manual_seed(0)
    config = getattr(tf, f"{model}Config")(**SIZE | SPECIAL | own)
    policy = Policy(getattr(tf, f"{model}ForCausalLM")(config), tiny().tokenizer, name="scaled")
    for method in ("misvo", "aisp_scores"):
        with pytest.raises(ValueError, match="the logits of scaled are not those of its output"):
            aisp.align("Hi", policy, reward, method, **SMALL)


def test_where_all_responses_are_rejected_u_stays(tiny):
    """But for the first iteration, in which there is nothing to go on with."""
    calls = []

    def once(prompt, response):
        calls.append(response)
        return reward(prompt, response) if len(calls) <= 6 else -np.inf

    for weights in ({}, {"weights": "softmax"}):
        calls.clear()
        own = dict(step_size=1.0, regularization="none", **weights)
        out = aisp.align("Hi", tiny(), once, "misvo", **own, **SMALL)
        assert out.history["u_norm"][1] == out.history["u_norm"][2] > 0
        assert out.reward == out.history["reward_max"][0] > -np.inf
        with pytest.raises(RewardError, match="rejected"):
            aisp.align("Hi", tiny(), lambda prompt, response: -np.inf, "misvo", **own, **SMALL)
