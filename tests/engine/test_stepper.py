"""Steps that are recorded once and replayed, as CUDA graphs: the same tokens as plain steps.

On a GPU: `test_cuda.py`.
"""

import pytest
import torch
from tiny import ARCHITECTURES, PROMPTS

import aisp.engine.stepper as engine
from aisp import Policy
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout


class Replayed:
    """Stands in for a CUDA graph: records the operations once, and replays exactly those.

    Whatever Python decides while recording is frozen, as it is in a CUDA graph.
    """

    made = 0

    def __init__(self, function, inputs):
        from torch.fx.experimental.proxy_tensor import make_fx

        type(self).made += 1
        self.inputs = [x.clone() for x in inputs]
        function(*self.inputs)  # the warm-up really runs, as on a GPU
        self.graph = make_fx(lambda inputs: function(*inputs))(self.inputs)

    def __call__(self, *inputs):
        for own, new in zip(self.inputs, inputs, strict=True):
            own.copy_(new)
        return self.graph(self.inputs)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("decoding", [Decoding(), Decoding(1.0, 0, 0.9)], ids=["greedy", "top-p"])
def test_a_recorded_step_replays_to_the_same_tokens(tiny, monkeypatch, name, decoding):
    """The logic of CUDA graphs without a GPU: static buffers, a step recorded once per batch."""
    base = tiny(name)
    policy = Policy(base.model, base.tokenizer, name="ends often", eos_ids=tuple(range(0, 258, 9)))
    prefixes = [policy.prefix(p) for p in PROMPTS]
    V = torch.randn(3, 8, 10, policy.d, generator=torch.Generator().manual_seed(2))

    def go(V):
        seeds = [torch.Generator().manual_seed(i) for i in range(3)]
        return rollout(
            policy, prefixes, 8, 18, V=V, decoding=decoding, generators=seeds, keep_prelogits=True
        )

    for perturbations in (V, None):  # perturbed for 10 of 18 steps, and never
        plainly = go(perturbations)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_may_record", lambda policy: True)
            patch.setattr(engine, "Recorded", Replayed)
            Replayed.made = 0
            recorded = go(perturbations)
        assert 1 <= Replayed.made <= 6, "recorded anew at every step, or never"
        assert torch.equal(recorded.tokens, plainly.tokens)
        assert torch.equal(recorded.lengths, plainly.lengths)
        torch.testing.assert_close(recorded.prelogits, plainly.prelogits, atol=1e-4, rtol=1e-4)


def test_a_step_that_cannot_be_recorded_is_run_as_it_is(tiny, monkeypatch):
    class Refuses:
        def __init__(self, function, inputs):
            raise RuntimeError("operation not permitted when stream is capturing")

    policy = tiny("llama")
    prefixes = [policy.prefix(p) for p in PROMPTS]
    plainly = rollout(policy, prefixes, 4, 8)
    monkeypatch.setattr(engine, "_may_record", lambda policy: True)
    monkeypatch.setattr(engine, "Recorded", Refuses)
    with pytest.warns(UserWarning, match="without CUDA graphs.*not permitted"):
        out = rollout(policy, prefixes, 4, 8)
    assert torch.equal(out.tokens, plainly.tokens)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_equal_prefixes_in_a_row_are_kept_once(tiny, name):
    policy = tiny(name)
    a, b = policy.prefix("Hi"), policy.prefix("How do I learn to cook?")

    def run(prefixes, n):
        sources = [torch.Generator().manual_seed(7 + i) for i in range(len(prefixes))]
        return rollout(policy, prefixes, n, 6, decoding=Decoding(1.0, 0, 0.9), generators=sources)

    merged = engine.Stepper(policy, [a, a, b, b], 3, 6)
    assert merged.ids.shape[0] == 2 and merged.prompts == 4 and merged.n == 3
    assert len(engine.Stepper(policy, [a, b, a], 3, 6).ids) == 3
    assert len(engine.Stepper(policy, [a, a, b], 3, 6).ids) == 3, "uneven runs stay as they are"
    out = run([a, a, b, b], 3)
    assert out.tokens.shape == (4, 3, 6) and list(map(len, out.texts)) == [3] * 4
    again = [torch.Generator().manual_seed(s) for s in (7, 9, 8, 10)]
    # The same prefixes in an order that does not merge, each with its own source.
    apart = rollout(policy, [a, b, a, b], 3, 6, decoding=Decoding(1.0, 0, 0.9), generators=again)
    assert torch.equal(out.tokens[[0, 2, 1, 3]], apart.tokens)
    parts = out.interleaved(2)
    assert torch.equal(parts[1].tokens, out.tokens[1::2]) and parts[1].texts == out.texts[1::2]
