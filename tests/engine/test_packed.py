"""Weights laid out once: the same bits, only where they apply, and no trace afterwards."""

from contextlib import nullcontext

import pytest
import torch
from tiny import ARCHITECTURES, PROMPTS, tiny_model
from torch import nn

from aisp.engine import packed, stepper
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.policy import Policy, load_policy

needs_bfloat16 = pytest.mark.skipif(
    not packed._operations_exist(), reason="this build of torch has no packed products in bfloat16"
)


@pytest.fixture
def bf16(byte_tokenizer):
    """Builds a tiny policy in bfloat16, which one test alone may change."""

    def build(name="llama"):
        return Policy(tiny_model(name).bfloat16(), byte_tokenizer, name=f"tiny-{name}")

    return build


def decoded(policy, n, tokens=6):
    prefixes = [policy.prefix(p) for p in PROMPTS]
    sources = [torch.Generator().manual_seed(i) for i in range(len(prefixes))]
    V = 0.5 * torch.randn(len(prefixes), n, tokens, policy.d, generator=sources[0])
    return rollout(
        policy,
        prefixes,
        n,
        tokens,
        V=V,
        decoding=Decoding(1.0, 0, 0.9),
        generators=sources,
        keep_prelogits=True,
    )


@needs_bfloat16
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tokens_and_prelogits_are_the_same_bits(bf16, monkeypatch, name):
    policy = bf16(name)
    assert packed.obstacle_to_packing(policy.model) is None
    for n in (1, 3, 22):
        with_packing = decoded(policy, n)
        with monkeypatch.context() as patched:
            patched.setattr(stepper, "packed", lambda model: nullcontext)
            plain = decoded(policy, n)
        assert torch.equal(with_packing.tokens, plain.tokens)
        assert torch.equal(with_packing.prelogits, plain.prelogits)


@needs_bfloat16
def test_the_embedded_model_decodes_the_same_tokens(monkeypatch):
    policy = load_policy("embedded", device="cpu", dtype="bfloat16")
    with_packing = decoded(policy, 5, tokens=8)
    used = packed._packed[policy.model][1]
    assert len(used) == 211, "every linear layer of the model"
    monkeypatch.setattr(stepper, "packed", lambda model: nullcontext)
    assert torch.equal(with_packing.prelogits, decoded(policy, 5, tokens=8).prelogits)


@needs_bfloat16
def test_packed_products_are_used_and_leave_no_trace(bf16):
    policy, seen = bf16(), []
    linear = [x for x in policy.model.modules() if isinstance(x, nn.Linear)]
    with packed.packed(policy.model)():
        assert all("forward" in x.__dict__ for x in linear)
    assert not any("forward" in x.__dict__ for x in linear)
    with pytest.raises(KeyError), packed.packed(policy.model)():
        raise KeyError
    assert not any("forward" in x.__dict__ for x in linear)

    def edit(z):
        seen.append([("forward" in x.__dict__) for x in linear])
        return z, z[:, :1]

    run = stepper.Stepper(policy, [policy.prefix("Hi")], 2, 3, edit=edit)
    run.step(run.start().argmax(-1))
    assert len(seen) == 2 and all(map(all, seen))
    assert not any("forward" in x.__dict__ for x in linear)


@needs_bfloat16
def test_a_weight_that_changes_is_laid_out_again(bf16):
    policy = bf16()
    x = torch.randn(3, 1, policy.d, dtype=torch.bfloat16)
    head = policy.model.get_output_embeddings()

    def product():
        with torch.inference_mode(), packed.packed(policy.model)():
            return head(x)

    before = product()
    first = packed._packed[policy.model]
    product()
    assert packed._packed[policy.model] is first, "laid out once"
    with torch.no_grad():
        head.weight.mul_(2)
    assert torch.equal(product(), 2 * before) and not torch.equal(before, 2 * before)


def test_where_it_does_not_apply_nothing_changes(bf16, tiny, monkeypatch):
    assert "bfloat16" in packed.obstacle_to_packing(tiny().model)
    assert packed.packed(tiny().model) is nullcontext
    policy = bf16()
    with monkeypatch.context() as patched:
        patched.setattr(packed, "_operations_exist", lambda: False)
        assert "this build" in packed.obstacle_to_packing(policy.model)
    if packed._operations_exist():
        monkeypatch.setattr(packed, "MOST_BYTES", 1 << 10)
        assert "MiB" in packed.obstacle_to_packing(policy.model)
        monkeypatch.undo()
        # A layer with a forward of its own, as offloading gives it, keeps that.
        own = policy.model.get_output_embeddings()
        own.forward = lambda z: torch.full((*z.shape[:-1], 258), 7.0)
        with packed.packed(policy.model)():
            assert own(torch.zeros(1, policy.d))[0, 0] == 7
        assert "forward" in own.__dict__
    meta = policy.model.to("meta")
    assert "CPU" in packed.obstacle_to_packing(meta)
