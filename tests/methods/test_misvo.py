"""MISVO: its gradient by autograd and by enumeration, its penalty as a matrix, and its run written out."""

import itertools

import numpy as np
import pytest
import torch
from tiny import reward

import aisp
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.methods import configure, misvo
from aisp.policy import Policy
from aisp.rewards import CallableReward
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


def test_the_estimate_is_unbiased_by_enumeration(pairs):
    """All texts of two tokens: the exact gradient of the expected reward, within 5 standard errors."""
    policy: Policy = pairs["models"][0]
    T, size = 2, 5
    table = torch.randn(size, size, generator=torch.Generator().manual_seed(3))
    U = 0.4 * torch.randn(1, T, policy.d, generator=torch.Generator().manual_seed(4))
    prefix = policy.prefix("x")
    moved = U.clone().requires_grad_()
    expected = torch.zeros(())
    for y in itertools.product(range(size), repeat=T):
        ids = torch.tensor([[*prefix, *y[:-1]]])
        z = policy.model.base_model(input_ids=ids).last_hidden_state[0, -T:].clone()
        log_p = torch.log_softmax(policy.model.get_output_embeddings()(z + moved[0]), -1)
        steps = 1 if y[0] in policy.eos_ids else T  # the first token may end the response
        value = table[y[0], y[1] if steps == T else 0]
        if steps < T and y[1] != 0:
            continue
        expected = expected + value * log_p[range(steps), y[:steps]].sum().exp()
    expected.backward()
    head, found = misvo.Head(policy, 1.0), []
    for seed in range(60):
        source = torch.Generator().manual_seed(seed)
        V = U[:, None].expand(-1, 64, -1, -1)
        own = dict(V=V, decoding=Decoding(1.0), generators=[source], keep_prelogits=True)
        out = rollout(policy, [prefix], 64, T, **own)
        second = torch.where(out.lengths > 1, out.tokens[..., 1], 0)
        A = misvo.advantages(table[out.tokens[..., 0], second].double()).float()
        found.append(misvo.gradient(head, out.prelogits, U, out.tokens, out.lengths, A))
    found = torch.stack(found)
    error = (found.mean(0) - moved.grad) / (found.std(0) / 60**0.5)
    assert error.abs().max() < 5
    assert (moved.grad.abs() > 10 * found.std(0) / 60**0.5).any(), "nothing to see"


def test_advantages_leave_one_out_and_leave_rejected_responses_out():
    got = misvo.advantages(torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor([[-3.0, -1.5, 4.5]], dtype=torch.float64))
    rejected = torch.tensor([[1.0, -torch.inf, 3.0], [5.0, -torch.inf, -torch.inf]])
    torch.testing.assert_close(
        misvo.advantages(rejected), torch.tensor([[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    )


@pytest.mark.parametrize("regularization", misvo.REGULARIZATIONS)
def test_a_run_is_the_algorithm_written_out(tiny, regularization):
    policy, n, T = tiny(), 6, 5
    own = dict(step_size=0.7, penalty=0.3, regularization=regularization)
    out = aisp.align("Hi", policy, reward, "misvo", seed=2, **own, **SMALL)
    U, first, head = torch.zeros(1, T, policy.d), None, misvo.Head(policy, 1.0)
    for k in range(3):
        drawn = rollout(
            policy,
            [policy.prefix("Hi")],
            n,
            T,
            V=U[:, None].expand(-1, n, -1, -1),
            decoding=Decoding(1.0),
            generators=[generator(2, "Hi", k, torch.device("cpu"))],
            keep_prelogits=True,
        )
        first = first or drawn
        rows = out.candidates[out.candidates["iteration"] == k]
        assert rows["response"].tolist() == drawn.texts[0]
        assert out.history["u_norm"][k] == pytest.approx(U.norm().item(), rel=1e-4)
        r = np.array([reward("Hi", t) for t in drawn.texts[0]])
        A = torch.tensor([[x - np.delete(r, i).mean() for i, x in enumerate(r)]]).float()
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
        ({"temperature": 0}, "temperature is 0.*set temperature > 0, top_k = 0 and top_p = 1"),
        ({"top_p": 0.9}, "top_p 0.9; MISVO samples from the whole law"),
        ({"top_k": 3}, "top_k 3"),
    ],
)
def test_parameters_are_checked(bad, message):
    with pytest.raises(ValueError, match=message):
        configure("misvo", **bad)


def test_states_and_policies_that_do_not_fit_are_refused(tiny, monkeypatch):
    config = misvo.MISVOConfig(n=4, max_new_tokens=5)
    state = misvo.init(tiny(), "Hi", config)
    with pytest.raises(ValueError, match=r"begun with n, max_new_tokens = \(4, 5\).* has \(6, 5\)"):
        misvo.step(state, tiny(), CallableReward(reward), misvo.MISVOConfig(n=6, max_new_tokens=5))
    with pytest.raises(FloatingPointError, match="lower step_size"):
        huge = lambda prompt, response: 1e9 * len(set(response))  # noqa: E731
        aisp.align("Hi", tiny(), huge, "misvo", step_size=1e38, n=4, kappa=2, progress=False)
    monkeypatch.setattr(tiny().model.config, "logit_scale", 0.5, raising=False)
    with pytest.raises(ValueError, match=r"scales its logits .*logit_scale.* MISVO does not know"):
        misvo.init(tiny(), "Hi", config)
