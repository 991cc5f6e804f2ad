"""On a device that is not the CPU: the CPU's responses, and no waiting for the device at each token.

`pretended_device` is that device, so that this holds without a GPU; on one, see `test_cuda.py`.
"""

import pytest
import torch
from pretended_device import DEVICE, back, moved, pretended_device
from tiny import ARCHITECTURES, PROMPTS, reward, tiny_model

import aisp
import aisp.engine.stepper as engine
from aisp import Policy
from aisp.engine.continuation import continuation
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.methods import METHODS
from aisp.methods.value import ValueFunction

DECODINGS = {
    "greedy": Decoding(),
    "plain": Decoding(1.0),
    "top-k": Decoding(0.7, 5, 0.9),
    "top-p": Decoding(1.0, 0, 0.9),
}
# These score text on their way: ARGS after every token, speculative rejection after some.
SCORE_BEGINNINGS = {"args", "speculative_rejection"}
ENDLESS = (-1,)


@pytest.fixture
def there(byte_tokenizer):
    """A tiny policy on the pretended device, within `pretended_device`."""

    def build(name="llama", **options):
        return Policy(moved(tiny_model(name).float()), byte_tokenizer, name=name, **options)

    return build


@pytest.fixture
def here(byte_tokenizer):
    def build(name="llama", **options):
        return Policy(tiny_model(name).float(), byte_tokenizer, name=name, **options)

    return build


def decoded(policy, T, decoding, prompts=PROMPTS, **options):
    sources = [torch.Generator(policy.device).manual_seed(i) for i in range(len(prompts))]
    prefixes = [policy.prefix(p) for p in prompts]
    return rollout(policy, prefixes, 4, T, decoding=decoding, generators=sources, **options)


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_rollout_is_that_of_the_cpu(here, there, name, decoding):
    V = torch.randn(3, 4, 5, 32, generator=torch.Generator().manual_seed(2))
    options = {"V": V, "keep_prelogits": True}
    wanted = decoded(here(name), 12, DECODINGS[decoding], **options)
    with pretended_device():
        policy = there(name)
        assert policy.device == policy.head_device == DEVICE
        found = decoded(policy, 12, DECODINGS[decoding], **options)
    assert found.texts == wanted.texts
    for field in ("tokens", "lengths", "prelogits"):
        assert torch.equal(back(getattr(found, field)), getattr(wanted, field))


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_token_waits_for_nothing(there, name, decoding):
    """Within eight tokens nothing is read, and then two numbers: how many are done, whether all is finite."""
    waits, uploads = {}, {}
    for T in (2, 7, 15):
        with pretended_device() as traffic:
            policy = there(name, eos_ids=ENDLESS)
            V = torch.randn(3, 4, 2, 32, generator=torch.Generator().manual_seed(2))
            decoded(policy, T, DECODINGS[decoding], V=V, keep_prelogits=True)
        waits[T], uploads[T] = traffic.waits, traffic.uploads
    assert waits[7] == waits[2] and uploads[7] == uploads[2] == uploads[15]
    polls = [w for w in waits[15] if w not in waits[7]]
    assert len(waits[15]) == len(waits[7]) + 2 and len(polls) == 2
    assert "at.done.sum()" in polls[0] and "bool(broken)" in polls[1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_that_is_recorded_touches_the_device_only(there, monkeypatch, name):
    """What a CUDA graph cannot record: a number that is read, or data of the CPU."""
    seen = []

    class Watched:
        def __init__(self, function, inputs):
            self.function = function

        def __call__(self, *inputs):
            before = len(traffic.waits), len(traffic.uploads)
            out = self.function(*inputs)
            seen.append((traffic.waits[before[0] :], traffic.uploads[before[1] :]))
            return out

    monkeypatch.setattr(engine, "_may_record", lambda policy: True)
    monkeypatch.setattr(engine, "Recorded", Watched)
    with pretended_device() as traffic:
        policy = there(name, eos_ids=ENDLESS)
        V = torch.randn(3, 4, 7, 32, generator=torch.Generator().manual_seed(2))
        found = decoded(policy, 7, Decoding(), V=V)
    assert len(seen) == 6 and not any(waits or uploads for waits, uploads in seen)
    monkeypatch.undo()
    with pretended_device():
        plainly = decoded(there(name, eos_ids=ENDLESS), 7, Decoding(), V=V)
    assert torch.equal(back(found.tokens), back(plainly.tokens))


def test_a_continuation_is_that_of_the_cpu(here, there):
    kept = torch.tensor([[0, 3, 5, 1], [2, 2, 0, 6], [1, 0, 4, 4]])

    def go(policy):
        begun = decoded(policy, 8, Decoding(1.0))
        stays = torch.minimum(kept.to(policy.device), begun.lengths)
        sources = [torch.Generator(policy.device).manual_seed(9 + i) for i in range(3)]
        prefixes = [policy.prefix(p) for p in PROMPTS]
        options = {"decoding": Decoding(1.0), "generators": sources}
        return continuation(policy, prefixes, begun, stays, 8, **options)

    wanted = go(here())
    with pretended_device():
        found = back(go(there()))
    assert found.texts == wanted.texts


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_finds_the_responses_of_the_cpu(here, there, monkeypatch, method):
    fields = METHODS[method].config.__dataclass_fields__
    # The pretended device has no autograd: a step of fixed length in the place of the gradient's.
    monkeypatch.setattr(ValueFunction, "ascend", lambda self, h, steps, size: h.float() + size)

    def go(build, T):
        more = {name: build("gpt2") for name in ("aligned", "aligner") if name in fields}
        if "value" in fields:
            more["value"] = ValueFunction(32, generator=torch.Generator().manual_seed(0))
        size = {"n": 4, "kappa": 2, "max_new_tokens": T, "progress": False}
        return aisp.align(PROMPTS[:2], build(), reward, method=method, **size, **more)

    waits = {}
    for T in (2, 6):
        with pretended_device() as traffic:
            found = go(there, T)
        waits[T] = traffic.waits
    for one, other in zip(found, go(here, 6), strict=True):
        assert one.candidates.equals(other.candidates)
    if method not in SCORE_BEGINNINGS:
        assert len(waits[6]) == len(waits[2]), set(waits[6]) - set(waits[2])


def test_the_pretended_device_counts_what_would_be_waited_for():
    with pretended_device() as traffic:
        x = torch.arange(4, device=DEVICE)
        assert x.device == DEVICE and not traffic.waits and not traffic.uploads
        y = x + torch.tensor(1, device=DEVICE)
        assert len(traffic.uploads) == 1
        for read in (
            lambda: y.sum().item(),
            lambda: bool((y > 0).all()),
            lambda: y[y > 2],
            lambda: torch.nonzero(y),
            lambda: y.tolist(),
            lambda: y.cpu(),
        ):
            before = len(traffic.waits)
            read()
            assert len(traffic.waits) == before + 1
        before = len(traffic.waits)
        y[torch.tensor([0], device=DEVICE)] = 7
        assert len(traffic.waits) == before and back(y).tolist() == [7, 2, 3, 4]
        with pytest.raises(RuntimeError, match="one is on the CPU"):
            y + torch.arange(4)
    assert torch.accelerator.current_accelerator(check_available=True) is None or (
        torch.cuda.is_available()
    )
