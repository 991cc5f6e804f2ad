"""Responses whose first tokens are kept: what is decoded after them, and that only that is."""

from dataclasses import replace

import pytest
import torch
from tiny import ARCHITECTURES, PROMPTS

from aisp import Policy
from aisp.engine.continuation import continuation
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout

N, T = 6, 12


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise(policy, tau, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(len(PROMPTS), N, tau, policy.d, generator=g)


@pytest.fixture
def often(tiny):
    """A policy whose responses end early and late."""

    def build(name="llama"):
        base = tiny(name)
        return Policy(base.model, base.tokenizer, name="often", eos_ids=tuple(range(0, 258, 12)))

    return build


def prefixes(policy):
    return [policy.prefix(p) for p in PROMPTS]


def cuts(lengths, seed=0):
    """From 0 to the whole response, both among them."""
    g = torch.Generator().manual_seed(seed)
    drawn = (torch.rand(lengths.shape, generator=g) * (lengths + 1)).long()
    drawn[0, 0], drawn[0, 1] = 0, lengths[0, 1]
    return drawn


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("decoding", [Decoding(), Decoding(0.8, 0, 0.9)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("tau", [5, T])
def test_the_same_responses_as_from_the_start(often, name, decoding, tau):
    """With the same V and uniform numbers nothing changes, wherever it begins anew."""
    policy = often(name)
    V, how = noise(policy, tau), dict(decoding=decoding)
    whole = rollout(policy, prefixes(policy), N, T, V=V, generators=generators(1, 2, 3), **how)
    assert whole.lengths.min() < 5 and whole.lengths.max() == T
    kept = cuts(whole.lengths)
    kept_V = V.clone()
    kept_V[torch.arange(tau) < kept[..., None]] = torch.nan  # not read
    for perturbed in (V, kept_V):
        out = continuation(
            policy,
            prefixes(policy),
            whole,
            kept,
            T,
            V=perturbed,
            generators=generators(1, 2, 3),
            **how,
        )
        assert torch.equal(out.tokens, whole.tokens) and torch.equal(out.lengths, whole.lengths)
        assert out.texts == whole.texts
        assert torch.equal(out.fresh, whole.lengths - kept)
        assert torch.equal(out.decoded, out.fresh) and torch.equal(whole.decoded, whole.lengths)


def test_another_rest_is_that_of_a_response_with_the_same_beginning(often):
    """New V after the cut: what decoding the joined V from the start gives."""
    policy = often()
    V, other = noise(policy, T), noise(policy, T, seed=1)
    whole = rollout(policy, prefixes(policy), N, T, V=V)
    kept = cuts(whole.lengths - 1)
    joined = torch.where((torch.arange(T) < kept[..., None])[..., None], V, other)
    out = continuation(policy, prefixes(policy), whole, kept, T, V=other)
    expected = rollout(policy, prefixes(policy), N, T, V=joined)
    assert torch.equal(out.tokens, expected.tokens) and out.texts == expected.texts
    assert torch.equal(out.fresh, expected.lengths - kept)
    assert (out.tokens != whole.tokens).any(-1).float().mean() > 0.5


def test_only_the_rest_runs_through_the_model(often):
    policy = often()
    whole = rollout(policy, prefixes(policy), N, T, V=noise(policy, T))
    steps = []
    handle = policy.model.register_forward_pre_hook(
        lambda module, args, kwargs: steps.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    kept = (whole.lengths - 2).clamp(min=0)
    out = continuation(policy, prefixes(policy), whole, kept, T, V=noise(policy, T))
    assert len(steps) <= 2 or out.fresh.max() > 2
    steps.clear()
    same = continuation(policy, prefixes(policy), whole, whole.lengths, T)
    handle.remove()
    assert not steps and torch.equal(same.tokens, whole.tokens) and not same.fresh.any()


def test_a_beginning_that_was_cut_off_goes_on(often):
    """Half of some of the responses first, the rest of them later: what one pass gives."""
    policy = often()
    V = noise(policy, T)
    half = rollout(policy, prefixes(policy), N, 5, V=V[:, :, :5])
    part = replace(half, tokens=half.tokens[:, 1:4], lengths=half.lengths[:, 1:4])
    out = continuation(policy, prefixes(policy), part, part.lengths, T, V=V[:, 1:4])
    whole = rollout(policy, prefixes(policy), N, T, V=V)
    assert torch.equal(out.tokens, whole.tokens[:, 1:4])
    assert [row[1:4] for row in whole.texts] == out.texts
    shorter = continuation(policy, prefixes(policy), whole, whole.lengths.clamp(max=3), 3)
    assert torch.equal(shorter.tokens, whole.tokens[..., :3]) and not shorter.fresh.any()
    assert int(shorter.interleaved(2)[1].decoded.sum()) == 0


def test_the_context_may_be_full(tiny):
    """Rows that are done wait in the batch for others, past the last position of the context."""
    policy = tiny("gpt2")  # 256 learned positions
    prefix = list(range(2, 246))
    whole = rollout(policy, [prefix], 12, T, V=noise(policy, T)[:2].reshape(1, 12, T, -1))
    assert (whole.lengths == T).all() and len(prefix) + T == policy.context_length
    kept = torch.zeros(1, 12, dtype=torch.long)
    kept[0, 3] = T - 1
    V = noise(policy, T)[:2].reshape(1, 12, T, -1)
    out = continuation(policy, [prefix], whole, kept, T, V=V)
    assert torch.equal(out.tokens, whole.tokens)
    assert out.fresh.tolist() == [[T] * 3 + [1] + [T] * 8]


def test_arguments_that_do_not_fit_are_refused(often):
    policy = often()
    whole = rollout(policy, prefixes(policy), N, T, V=noise(policy, T))
    kept = whole.lengths.clone()

    def call(kept=kept, begun=whole, T=T, **more):
        return continuation(policy, prefixes(policy), begun, kept, T, **more)

    kept[1, 2] += 1
    most = int(whole.lengths[1, 2])
    with pytest.raises(ValueError, match=rf"kept is {most + 1} at \[1, 2\].* 0 to {most} tokens"):
        call()
    with pytest.raises(ValueError, match=r"kept is -1 at \[0, 0\]"):
        call(torch.full_like(kept, -1))
    with pytest.raises(ValueError, match=r"its length or max_new_tokens \(1\)"):
        call(torch.full_like(kept, 2), T=1)
    with pytest.raises(ValueError, match="must be a tensor"):
        call(kept.float())
    with pytest.raises(ValueError, match=r"kept has shape \(3, 2\); the responses are \(3, 6\)"):
        call(kept[:, :2])
    with pytest.raises(ValueError, match="responses to 2 prefixes, not to 3"):
        call(begun=rollout(policy, prefixes(policy)[:2], N, T))
    with pytest.raises(ValueError, match="one torch"):
        call(torch.zeros_like(kept), decoding=Decoding(1.0))
    with pytest.raises(ValueError, match="V has shape"):
        call(torch.zeros_like(kept), V=noise(policy, T)[:2])
