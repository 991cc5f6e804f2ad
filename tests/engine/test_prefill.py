"""Prefixes that are run once in a search: the same bits, fewer passes."""

import dataclasses

import pytest
import torch
from tiny import ARCHITECTURES, PROMPTS, reward

import aisp
from aisp.engine import prefill
from aisp.engine.attention import obstacle_to_sharing
from aisp.engine.continuation import continuation
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout


def widths(model, run):
    """What a function returns, and the number of positions of every pass of the model."""
    seen = []

    def note(module, args, kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        seen.append(ids.shape[1])

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        return run(), seen
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("noise", [True, False], ids=["perturbed", "plain"])
def test_a_second_rollout_has_the_bits_of_one_that_runs_its_prefixes(tiny, name, noise):
    base = tiny(name)
    # Ends often: rows and whole prompts leave what the first rollout made, and not what is kept.
    policy = dataclasses.replace(base, eos_ids=tuple(range(0, 258, 9)))
    prefixes = [policy.prefix(p) for p in PROMPTS]

    def go(seed):
        random = torch.Generator().manual_seed(seed)
        V = torch.randn(3, 8, 10, policy.d, generator=random) if noise else None
        seeds = [torch.Generator().manual_seed(seed + i) for i in range(3)]
        how = Decoding(1.0, 0, 0.9)
        return rollout(
            policy, prefixes, 8, 12, V=V, decoding=how, generators=seeds, keep_prelogits=True
        )

    plainly = [go(seed) for seed in (0, 10, 20)]
    with prefill.kept():
        (kept, seen) = widths(policy.model, lambda: [go(seed) for seed in (0, 10, 20)])
    for ours, theirs in zip(kept, plainly, strict=True):
        for field in ("tokens", "lengths", "prelogits"):
            assert torch.equal(getattr(ours, field), getattr(theirs, field))
    if obstacle_to_sharing(policy.model) is None:
        longest = max(map(len, prefixes))
        assert seen.count(longest) == 1 and set(seen) == {1, longest}
    _, after = widths(policy.model, lambda: go(0))
    assert after[0] > 1, "nothing is kept after the search"


def test_other_prefixes_and_other_models_are_not_taken_for_what_is_kept(tiny):
    policy, other = tiny("llama"), tiny("gpt2")
    a, b = policy.prefix("Hi"), policy.prefix("How do I learn to cook?")
    alone = {x: rollout(p, [q], 2, 5).tokens for x, p, q in (("a", policy, a), ("b", policy, b))}
    with prefill.kept():
        assert prefill.known(policy.model, [a]) is None
        for _ in range(2):
            assert torch.equal(rollout(policy, [a], 2, 5).tokens, alone["a"])
            assert prefill.known(policy.model, [a]) and not prefill.known(policy.model, [b])
            assert prefill.known(other.model, [a]) is None
            assert torch.equal(rollout(policy, [b], 2, 5).tokens, alone["b"])
            assert prefill.known(policy.model, [a]) is None, "one of each model"
    assert prefill.known(policy.model, [b]) is None


def test_more_than_the_limit_is_computed_anew(tiny, monkeypatch):
    policy = tiny("llama")
    a = policy.prefix("How do I learn to cook?")
    with prefill.kept():
        rollout(policy, [a], 2, 5)
        found = prefill.known(policy.model, [a])
        size = sum(x.nbytes for layer in found.cache.layers for x in (layer.keys, layer.values))
        monkeypatch.setattr(prefill, "MOST_BYTES", size)
        rollout(policy, [policy.prefix("Hi")], 2, 5)
        rollout(policy, [a], 2, 5)
        assert prefill.known(policy.model, [a]), "what takes as much as the limit is kept"
        monkeypatch.setattr(prefill, "MOST_BYTES", size - 1)
        rollout(policy, [policy.prefix("Hi")], 2, 5)
        rollout(policy, [a], 2, 5)
        assert prefill.known(policy.model, [a]) is None


def test_a_search_runs_its_prefixes_once(tiny):
    policy = tiny("llama")
    settings = {"n": 4, "kappa": 3, "max_new_tokens": 5, "progress": False}
    _, seen = widths(policy.model, lambda: aisp.align("Hi", policy, reward, **settings))
    assert [x > 1 for x in seen].count(True) == 1 and len(seen) >= 3 * 5


def test_continuations_run_prefixes_once_too(tiny):
    policy = tiny("llama")
    prefixes = [policy.prefix(p) for p in PROMPTS]
    begun = rollout(policy, prefixes, 4, 8)
    kept = torch.tensor([[0, 1, 2, 3]] * len(prefixes))

    def go(seed):
        seeds = [torch.Generator().manual_seed(seed + i) for i in range(len(prefixes))]
        return continuation(
            policy, prefixes, begun, kept, 8, decoding=Decoding(1.0), generators=seeds
        )

    plainly = [go(seed).tokens for seed in (0, 10, 20)]
    with prefill.kept():
        found, seen = widths(policy.model, lambda: [go(seed).tokens for seed in (0, 10, 20)])
    assert all(map(torch.equal, found, plainly))
    assert seen.count(max(map(len, prefixes)) - 1) == 1
