"""On a GPU: the CPU's tokens, graphs or not; no waiting; memory as documented and where it ends.

What can be asked of a CPU too runs there as well, so that the tests themselves are tried without a
GPU; `make test-gpu` runs them all on one.
"""

import copy
import warnings

import pytest
import torch
from tiny import ARCHITECTURES, PROMPTS, reward, tiny_model

import aisp
import aisp.engine.stepper as engine
from aisp import Policy, experiment
from aisp.engine.decoding import Decoding
from aisp.engine.perturbation import Perturbation
from aisp.engine.rollout import rollout
from aisp.engine.stepper import Stepper
from aisp.experiment.identity.digests import Digests
from aisp.experiment.identity.made_with import made_with
from aisp.experiment.identity.weights import weights_sha256
from aisp.prompts import Prompt
from aisp.sampler import AISPConfig, init

gpu = pytest.mark.gpu
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs here")
CUDA = pytest.param("cuda", marks=gpu)
each_device = pytest.mark.parametrize("device", ["cpu", CUDA])
ENDLESS = (-1,)


@pytest.fixture
def build(tiny):
    def on(device, name="llama", **options):
        base = tiny(name)
        model = copy.deepcopy(base.model).to(device)
        return Policy(model, base.tokenizer, name=name, **options)

    return on


def decoded(policy, n=8, T=18, prompts=PROMPTS, **options):
    return rollout(policy, [policy.prefix(p) for p in prompts], n, T, **options)


def drawn(P, n, tau, d=32):
    return torch.randn(P, n, tau, d, generator=torch.Generator().manual_seed(2))


def generated(policy, prefix, T):
    ids = torch.tensor([prefix], device=policy.device)
    options = {"eos_token_id": list(policy.eos_ids), "pad_token_id": policy.eos_ids[0]}
    out = policy.model.generate(ids, max_new_tokens=T, do_sample=False, **options)
    return out[0, len(prefix) :].tolist()


# -- the same tokens ------------------------------------------------------------------------------


@each_device
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_decoding_is_generate(build, device, name):
    policy = build(device, name)
    out = decoded(policy, n=2)
    for p, prompt in enumerate(PROMPTS):
        wanted = generated(policy, policy.prefix(prompt), 18)
        for i in range(2):
            assert out.tokens[p, i, : out.lengths[p, i]].tolist() == wanted


@gpu
def test_greedy_decoding_of_the_embedded_model_is_generate():
    policy = aisp.load_policy("embedded", device="cuda", dtype="float32")
    out = decoded(policy, n=1, T=64)
    for p, prompt in enumerate(PROMPTS):
        wanted = generated(policy, policy.prefix(prompt), 64)
        assert out.tokens[p, 0, : out.lengths[p, 0]].tolist() == wanted


@each_device
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prefixes_graphs_and_company_change_no_token(build, monkeypatch, device, name):
    """Float32: shared or copied prefixes, recorded or plain steps, alone or in a ragged batch."""
    policy, V = build(device, name), drawn(3, 8, 10)
    wanted = decoded(policy, V=V)
    copied = decoded(policy, V=V, share_prefixes=False)
    alone = [decoded(policy, prompts=[p], V=V[i : i + 1]) for i, p in enumerate(PROMPTS)]
    monkeypatch.setattr(engine, "_may_record", lambda policy: False)
    plainly = decoded(policy, V=V)
    for found in (copied, plainly):
        assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(torch.cat([out.tokens for out in alone]), wanted.tokens)


@gpu
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_cpu_finds_the_same_tokens(build, name):
    V = drawn(3, 8, 10)
    found, wanted = (decoded(build(device, name), V=V) for device in ("cuda", "cpu"))
    assert torch.equal(found.tokens.cpu(), wanted.tokens)


@gpu
def test_logits_of_the_embedded_model_are_those_of_the_cpu(embedded):
    """Float32, up to 2e-3 of logits of which the largest are some 20."""
    there = aisp.load_policy("embedded", device="cuda", dtype="float32")
    tokens = embedded.tokenizer("A river is a natural stream of water.")["input_ids"]
    found, wanted = (p.response_logits(PROMPTS[1], tokens).cpu() for p in (there, embedded))
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


@each_device
def test_in_bfloat16_the_laws_agree(monkeypatch, device):
    """Shared and recorded, shared and plain, copied: as close as bfloat16 is to float32.

    In total variation, the mean over steps and prompts; within twice that distance, because each
    of two laws has its own rounding. (In float32 it is below 1e-5.)
    """
    policy = aisp.load_policy("embedded", device=device, dtype="bfloat16")
    tokens = policy.tokenizer("A river is a natural stream of water.")["input_ids"]
    prefixes = [policy.prefix(p) for p in PROMPTS[:2]]

    def laws(policy, **options):
        stepper = Stepper(policy, prefixes, 2, len(tokens) + 1, **options)
        with torch.inference_mode():
            logits = [stepper.start().clone()]
            for token in tokens:
                row = torch.full((4,), token, device=policy.device)
                logits.append(stepper.step(row).clone())
        return torch.softmax(torch.stack(logits).float(), -1)

    def distance(one, other):
        return float((one - other).abs().sum(-1).mean()) / 2

    recorded, copied = laws(policy), laws(policy, share_prefixes=False)
    exact = aisp.load_policy("embedded", device=device, dtype="float32")
    rounding = distance(copied, laws(exact, share_prefixes=False))
    assert distance(laws(exact), laws(exact, share_prefixes=False)) < 1e-5 < rounding
    monkeypatch.setattr(engine, "_may_record", lambda policy: False)
    assert distance(recorded, copied) < 2 * rounding
    assert distance(recorded, laws(policy)) < 2 * rounding


# -- random numbers -------------------------------------------------------------------------------


@each_device
def test_a_seed_gives_the_same_responses_again(build, device):
    policy = build(device)
    size = {"n": 6, "kappa": 3, "max_new_tokens": 10, "progress": False}
    one, two, other = (aisp.align(PROMPTS, policy, reward, seed=s, **size) for s in (5, 5, 6))
    for a, b in zip(one, two, strict=True):
        assert a.candidates.equals(b.candidates)
    assert not all(a.candidates.equals(b.candidates) for a, b in zip(one, other, strict=True))


@each_device
def test_perturbations_are_drawn_on_the_device(build, device):
    policy = build(device)
    config = AISPConfig(n=4, kappa=2, max_new_tokens=5)
    state = init(policy, PROMPTS, config, seed=1)
    sources = state.generators(policy.head_device)
    assert state.U.device.type == device and {g.device.type for g in sources} == {device}
    V = Perturbation(state.U, 4, 0.5, sources)
    assert V.tensor.device.type == device and V.tensor.std() > 0.3


@each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_records_know_a_policy_again_on_another_device(build, device, dtype):
    here, there = (build(x) for x in ("cpu", device))
    for policy in (here, there):
        policy.model.to(dtype)
    assert weights_sha256(there.model) == weights_sha256(here.model)
    told = [made_with(x, reward, {"a": AISPConfig()}) for x in (here, there)]
    assert told[0] == told[1]
    digests = [Digests().of(p.eos_ids, p.model, p.tokenizer) for p in (here, there)]
    assert digests[0] == digests[1]


# -- waiting, recording and memory ----------------------------------------------------------------


@gpu
@pytest.mark.parametrize("decoding", [Decoding(), Decoding(1.0), Decoding(0.7, 5, 0.9)])
@pytest.mark.parametrize("graphs", [True, False])
def test_no_token_waits_for_the_gpu(build, monkeypatch, decoding, graphs):
    """torch raises at whatever would wait, from the third token to the seventh."""
    if not graphs:
        monkeypatch.setattr(engine, "_may_record", lambda policy: False)
    policy = build("cuda", eos_ids=ENDLESS)
    seen = 0

    def take(logits, decoding, u):
        nonlocal seen
        seen += 1
        if seen == 3:
            torch.cuda.set_sync_debug_mode("error")
        token = engine_take(logits, decoding, u)
        if seen == 7:
            torch.cuda.set_sync_debug_mode("default")
        return token

    engine_take = aisp.engine.decoding.take_token
    sources = [torch.Generator("cuda").manual_seed(i) for i in range(3)]
    try:
        decoded(
            policy, T=7, V=drawn(3, 8, 7), decoding=decoding, generators=sources, take_token=take
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen == 7


@gpu
def test_a_step_that_no_graph_can_hold_runs_plainly_with_one_warning(build):
    policy, V = build("cuda"), drawn(3, 8, 10)
    wanted = decoded(policy, V=V)
    reads = policy.model.model.norm.register_forward_hook(
        lambda module, inputs, out: out * float(out.isfinite().all())
    )
    stream = torch.cuda.current_stream()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = decoded(policy, V=V)
    reads.remove()
    assert len([w for w in caught if "without CUDA graphs" in str(w.message)]) == 1
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.cuda.current_stream() == stream
    assert torch.equal(decoded(policy, V=V).tokens, wanted.tokens), "graphs work again"


@gpu
def test_memory_that_does_not_suffice_halves_the_batch(build, tmp_path, capfd):
    """The limit is real: torch may allocate 400 MiB more, and eight prompts take some 700."""
    policy = build("cuda", eos_ids=ENDLESS)
    prompts = [Prompt(f"own-{i}", f"Name river number {i}.", "own") for i in range(8)]
    size = {"method": "aisp", "n": 2048, "kappa": 1, "max_new_tokens": 64}
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 400 * 2**20) / total)
    path = tmp_path / "r.jsonl"
    try:
        experiment.run(path, {"AISP": size}, prompts, policy, reward, batch=8)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    records = experiment.load(path)
    assert len(records) == 8 and records["error"].isna().all()
    assert "out of GPU memory with 8 prompts in a batch: going on with 4" in capfd.readouterr().err


@gpu
def test_peak_memory_is_what_is_documented(build):
    """Keys and values, logits and V, see `aisp.engine.rollout`; and no more than half as much again."""
    policy = build("cuda", eos_ids=ENDLESS)
    n, T, d = 8192, 64, policy.d
    V = drawn(1, n, T).cuda()
    prefixes = [policy.prefix(PROMPTS[2])]
    rollout(policy, prefixes, n, T, V=V)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()  # weights, and V
    rollout(policy, prefixes, n, T, V=V)
    used = torch.cuda.max_memory_allocated() - before
    config = policy.model.config
    width = 2 * config.num_hidden_layers * config.num_key_value_heads * d // 4
    keys_and_values = 4 * width * (len(prefixes[0]) + n * T)
    logits = 4 * n * config.vocab_size
    # Attention's scores and weights of one layer, and the tokens themselves.
    inner = 4 * 3 * n * config.num_attention_heads * (len(prefixes[0]) + T) + 8 * 4 * n * T
    workspaces = 64 * 2**20  # of cuBLAS, one for each stream
    assert used < 1.5 * (keys_and_values + logits + inner) + workspaces


# -- another GPU than the first, and two ----------------------------------------------------------


@gpu
@two_gpus
def test_the_second_gpu_finds_the_same_tokens(build):
    V = drawn(3, 8, 10)
    found, wanted = (decoded(build(device), V=V) for device in ("cuda:1", "cuda:0"))
    assert torch.equal(found.tokens.cpu(), wanted.tokens.cpu())


@gpu
@two_gpus
def test_a_model_over_two_gpus_finds_the_same_tokens(build, byte_tokenizer, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    places = {"model.embed_tokens": 0, "model.layers.0": 0, "model.rotary_emb": 0}
    places |= {"model.layers.1": 1, "model.layers.2": 1, "model.norm": 1, "lm_head": 1}
    spread = aisp.load_policy(tmp_path, dtype="float32", device_map=places)
    assert spread.device.index == 0 and spread.head_device.index == 1
    V = drawn(3, 8, 10)
    wanted = decoded(build("cuda"), V=V)
    assert torch.equal(decoded(spread, V=V).tokens.cpu(), wanted.tokens.cpu())
