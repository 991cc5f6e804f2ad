"""What a worker of another engine draws and does at each step: that of our engine, bit for bit."""

from types import SimpleNamespace

import pytest
import torch

from aisp import sampler
from aisp.engine import vllm_worker
from aisp.engine.decoding import GREEDY, Decoding, take_token
from aisp.engine.job import Decoder, Job
from aisp.engine.perturbation import Perturbation, uniforms

P, n, tau, d, T, V_SIZE = 2, 4, 4, 8, 6, 50
SAMPLED = Decoding(0.8, top_k=20, top_p=0.9)
CPU = torch.device("cpu")


def sources():
    return [torch.Generator().manual_seed(s) for s in (5, 6)]


def mean():
    return torch.randn(P, tau, d, generator=torch.Generator().manual_seed(1))


def head(v):
    W = torch.randn(V_SIZE, d, generator=torch.Generator().manual_seed(2))
    return v @ W.T


@pytest.mark.parametrize("antithetic", [False, True], ids=["independent", "antithetic"])
@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_worker_draws_what_the_sampler_draws_in_the_same_order(decoding, antithetic):
    ours = sources()
    V = sampler.perturbations(mean(), n, 0.5, ours, antithetic=antithetic)
    u = uniforms(ours, n, T, CPU)
    drawn = Perturbation(mean(), n, 0.5, sources(), antithetic)
    if antithetic:
        assert torch.allclose(V.mean(1), mean(), atol=1e-6)
    there = Decoder(Job.of(n, T, decoding, drawn, drawn.generators).to_bytes(), CPU)
    assert torch.equal(there.V, V.flatten(0, 1)) and drawn.shape == V.shape
    assert torch.equal(drawn.tensor, V) and drawn.tensor is drawn.tensor
    if decoding.greedy:
        assert there.u is None
    else:
        assert torch.equal(there.u, u)


def test_generators_that_were_used_before_are_told_as_they_are():
    ours, theirs = sources(), sources()
    for g in (*ours, *theirs):
        torch.rand(7, generator=g)
    job = Job.of(n, T, SAMPLED, None, theirs)
    there = Decoder(job.to_bytes(), CPU)
    assert torch.equal(there.u, uniforms(ours, n, T, CPU)) and there.V is None


def test_plain_greedy_decoding_is_no_job():
    assert not Job.of(n, T, GREEDY, None, None).changes_logits
    assert Job.of(n, T, SAMPLED, None, sources()).changes_logits


def test_what_is_drawn_in_inference_mode_is_a_plain_tensor():
    drawn = Perturbation(mean(), n, 0.5, sources())
    with torch.inference_mode():
        _ = drawn.tensor
    assert not drawn.tensor.is_inference()


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_rows_in_any_order_at_any_step(decoding):
    """The most likely token of what comes out is the one that our head and decoding give."""
    V = torch.randn(P, n, tau, d, generator=torch.Generator().manual_seed(3))
    there = Decoder(Job.of(n, T, decoding, V, sources()).to_bytes(), CPU)
    z = torch.randn(5, d, generator=torch.Generator().manual_seed(4))
    rows, steps = torch.tensor([4, 0, 5, 2, 1]), torch.tensor([0, 3, 4, 5, 2])
    moved = z.clone()
    for k, (row, t) in enumerate(zip(rows.tolist(), steps.tolist(), strict=True)):
        if t < tau:
            moved[k] += V.flatten(0, 1)[row, t]
    u = None if decoding.greedy else uniforms(sources(), n, T, CPU)[rows, steps]
    expected = take_token(head(moved), decoding, u)
    assert there.change(head(z), rows, steps, head).argmax(-1).tolist() == expected.tolist()
    assert not there.broken


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_logits_are_told_and_those_of_unread_prompts_are_not(decoding, value):
    logits = torch.zeros(3, V_SIZE)
    logits[1, 7] = value
    there = Decoder(Job.of(n, T, decoding, None, sources()).to_bytes(), CPU)
    rows = torch.arange(3)
    there.change(logits.clone(), rows, torch.tensor([0, -2, 0]), head)
    assert not there.broken
    there.change(logits, rows, torch.zeros(3, dtype=torch.long), head)
    assert there.broken


def test_rows_of_other_requests_stay_as_they_are(monkeypatch):
    """Somebody else's requests, and rows that moved, by both interfaces."""
    V = torch.randn(1, 2, tau, d, generator=torch.Generator().manual_seed(3))
    decoder = Decoder(Job.of(2, T, GREEDY, V, None).to_bytes(), CPU)
    monkeypatch.setattr(vllm_worker._Now, "decoder", decoder)
    monkeypatch.setattr(vllm_worker._Now, "head", head)
    params = [SimpleNamespace(extra_args=x) for x in (None, {"aisp": 0}, {"other": 1}, {"aisp": 1})]
    logits = torch.zeros(4, V_SIZE)
    expected = torch.stack([logits[0], head(V[0, 0, 1]), logits[0], head(V[0, 1, 0])])

    first = vllm_worker.Processor(None, CPU, False)
    assert first.apply(logits) is logits
    outputs = [[], [9], [], []]
    added = [(i, p, None, o) for i, (p, o) in enumerate(zip(params, outputs, strict=True))]
    first.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
    assert torch.allclose(first.apply(logits.clone()), expected)
    swap = [(1, 2, SimpleNamespace(name="SWAP")), (3, 0, SimpleNamespace(name="UNIDIRECTIONAL"))]
    first.update_state(SimpleNamespace(removed=[0], added=[], moved=swap))
    assert torch.allclose(first.apply(logits[:3].clone()), expected[[3, 0, 1]])

    lengths = torch.tensor([10, 20, 30, 40], dtype=torch.int32)
    states = SimpleNamespace(prompt_len=SimpleNamespace(gpu=lengths))
    second = vllm_worker.Processor(None, states)
    assert [second.add_request(i, p) for i, p in enumerate(params)] == [False, True, False, True]
    order = torch.tensor([3, 2, 1, 0])
    ctx = SimpleNamespace(
        idx_mapping_np=order.numpy(),
        expanded_idx_mapping=order,
        pos=lengths[order].long() - 1 + torch.tensor([0, 0, 1, 0]),
    )
    assert torch.allclose(second.apply(logits.clone(), ctx), expected[order])
    with pytest.raises(RuntimeError, match="speculative decoding"):
        second.apply(torch.zeros(8, V_SIZE), ctx)
