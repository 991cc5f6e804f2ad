"""RAM: the token law against enumeration, the safeguard, adapters that share weights, training.

Chi-square tests are at a fixed seed; each states the p-value under which it would fail.
"""

import copy
import itertools
import json
import shutil

import pytest
import torch
from conftest import tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.stats import chisquare

import aisp
from aisp.engine.decoding import Decoding, law, take_token
from aisp.engine.rollout import rollout
from aisp.methods.aligner import load_aligner, with_adapter
from aisp.methods.ram import RAMConfig, choose, propose_align_reduce
from aisp.state import generator
from aisp.training import ram as ram_training
from aisp.training.ram import TrainingConfig, encode, log_likelihood, train

SMALL = dict(n=4, kappa=2, max_new_tokens=6, progress=False)
PAIRS = [(f"Say it {k} times", "aaaa aaaa") for k in range(12)]
HELD = [(f"Now {k} times", "aaaa aaaa") for k in range(12, 20)]
QUICK = TrainingConfig(epochs=2, batch_tokens=256, learning_rate=0.03, proposal_tokens=8, rank=4)


def reward(prompt, response):
    return len(set(response)) + 0.01 * len(response)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ram")
    out, work = folder / "adapter", folder / "work"
    report = train(tiny(), PAIRS, HELD, QUICK, out=out, work=work, progress=False)
    return out, work, report


def logits(policy, ids):
    with torch.inference_mode():
        return policy.model(torch.tensor([ids])).logits


def observed(tokens, size):
    return torch.bincount(tokens.flatten(), minlength=size).double()


def p_value(tokens, expected):
    """Of the counts under a law; the law's tokens that expect fewer than 5 draws are one cell."""
    counts = observed(tokens, len(expected))
    assert counts[expected == 0].sum() == 0
    wanted = expected.double() / expected.double().sum() * len(tokens)
    many = wanted >= 5
    cells = [torch.cat([x[many], x[~many].sum()[None]]) for x in (counts, wanted)]
    kept = cells[1] > 0
    return chisquare(cells[0][kept], cells[1][kept]).pvalue


def first_tokens(policy, aligner, n, **parameters):
    config = RAMConfig(aligner=aligner, n=n, kappa=1, max_new_tokens=1, **parameters)
    g = torch.Generator().manual_seed(7)
    out, _ = propose_align_reduce(policy, aligner, [policy.prefix("Hi")], config, [g])
    return out.tokens.flatten()


def enumerated(p, q, m):
    """The law of one token: over all m-tuples of candidates, their chance and the aligner's pick."""
    support = torch.nonzero(p).flatten().tolist()
    total = torch.zeros(len(p), dtype=torch.float64)
    for drawn in itertools.product(support, repeat=m):
        chance = torch.tensor([p[v] for v in drawn]).prod()
        weights = torch.stack([q[v] for v in drawn])
        total.index_add_(0, torch.tensor(drawn), chance * weights / weights.sum())
    return total


def test_a_uniform_aligner_leaves_the_truncated_proposal(tiny):
    policy = tiny()
    flat = copy.deepcopy(policy.model)
    flat.get_output_embeddings().weight.data.zero_()
    aligner = aisp.Policy(flat, policy.tokenizer, name="uniform")
    proposal = law(logits(policy, policy.prefix("Hi"))[0, -1:], Decoding(1.0, 0, 0.9))[0]
    assert 3 < (proposal > 0).sum() < 258
    tokens = first_tokens(policy, aligner, 20_000, kl_limit=None)
    assert p_value(tokens, proposal) > 1e-3
    # The test can fail: the whole law of the policy is another one.
    assert p_value(tokens, proposal.clamp(min=1e-4)) < 1e-3


@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_token_law_equals_enumeration_over_all_candidates(tiny, m):
    policy, aligner = tiny(), tiny("gpt2")
    prefix = policy.prefix("Hi")
    decoding = dict(temperature=1.5, top_k=6, top_p=0.95)
    proposal = law(logits(policy, prefix)[0, -1:], Decoding(**decoding))[0].double()
    q = torch.softmax(0.5 * logits(aligner, prefix)[0, -1].double(), -1)
    halved = copy.deepcopy(aligner.model)  # half the logits: no candidate is negligible
    halved.get_output_embeddings().weight = torch.nn.Parameter(
        0.5 * halved.get_output_embeddings().weight.data
    )
    aligner = aisp.Policy(halved, aligner.tokenizer, name="known")
    tokens = first_tokens(policy, aligner, 20_000, candidates=m, kl_limit=None, **decoding)
    assert p_value(tokens, enumerated(proposal, q, m)) > 1e-3
    if m > 1:  # with several candidates it is neither the proposal nor the limit of many
        assert p_value(tokens, proposal) < 1e-6
        assert p_value(tokens, proposal * q) < 1e-6


def test_the_safeguard_takes_the_policys_token_where_the_divergence_is_high(tiny):
    g = torch.Generator().manual_seed(0)
    p = torch.randn(40, 258, generator=g)
    q = p + torch.linspace(0, 2, 40)[:, None] * torch.randn(40, 258, generator=g)
    u = torch.rand(40, 6, generator=g)
    exact = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=x.double()) for x in (p, q))
    )
    config = RAMConfig(candidates=5, kl_limit=0.5)
    token, kl, guarded = choose(p, q, u, config)
    torch.testing.assert_close(kl.double(), exact, atol=1e-5, rtol=1e-5)
    assert guarded.tolist() == (exact > 0.5).tolist() and 0 < guarded.sum() < 40
    plain = take_token(p, config.decoding, u[:, 0])
    free, _, never = choose(p, q, u, RAMConfig(candidates=5, kl_limit=None))
    assert not never.any() and not torch.equal(free, plain)
    assert torch.equal(token, torch.where(guarded, plain, free))


def test_a_limit_that_always_holds_is_best_of_n(tiny):
    held = aisp.align("Hi", tiny(), reward, "ram", aligner=tiny("gpt2"), kl_limit=0.0, **SMALL)
    plain = aisp.align("Hi", tiny(), reward, "best_of_n", **SMALL)
    assert held.candidates["response"].tolist() == plain.candidates["response"].tolist()
    assert held.history["safeguarded"].tolist() == [1.0, 1.0]
    free = aisp.align("Hi", tiny(), reward, "ram", aligner=tiny("gpt2"), kl_limit=None, **SMALL)
    assert free.candidates["response"].tolist() != plain.candidates["response"].tolist()
    assert free.history["safeguarded"].tolist() == [0.0, 0.0]


def test_the_history_counts_unfinished_rows_only(tiny):
    """kl_step and safeguarded, against one plain pass of both models over each whole response."""
    policy, aligner = tiny(), tiny("gpt2")
    prefixes = [policy.prefix(p) for p in ("Hi", "How do I learn to cook?")]
    # Tokens of the nucleus end responses, at different steps.
    likely = logits(policy, prefixes[0])[0, -1].topk(3).indices.tolist()
    policy = aisp.Policy(policy.model, policy.tokenizer, eos_ids=tuple(likely))
    config = RAMConfig(aligner=aligner, n=8, max_new_tokens=10, temperature=1.5, kl_limit=2.5)
    sources = [torch.Generator().manual_seed(s) for s in (1, 2)]
    out, notes = propose_align_reduce(policy, aligner, prefixes, config, sources)
    assert len(out.lengths.unique()) > 2
    for row, prefix in enumerate(prefixes):
        kls = []
        for tokens, length in zip(out.tokens[row].tolist(), out.lengths[row].tolist(), strict=True):
            ids = prefix + tokens[: length - 1]
            log_p, log_q = (
                torch.log_softmax(logits(x, ids)[0, len(prefix) - 1 :], -1).double()
                for x in (policy, aligner)
            )
            kls.append((log_p.exp() * (log_p - log_q)).sum(-1))
        kls = torch.cat(kls)
        assert len(kls) == out.lengths[row].sum()
        assert notes["kl_step"][row] == pytest.approx(kls.mean().item(), rel=1e-4)
        assert notes["safeguarded"][row] == pytest.approx((kls > 2.5).double().mean().item())
    assert 0 < sum(notes["safeguarded"]) < 2
    assert all(0 < s < 60 for s in notes["first_token_seconds"])
    assert all(s > 0 for s in notes["tokens_per_second"])


def test_greedy_takes_the_most_likely_token_of_the_product(tiny):
    policy, aligner = tiny(), tiny("gpt2")
    greedy = dict(temperature=0.0, kl_limit=None, **SMALL)
    out = aisp.align("Hi", policy, reward, "ram", aligner=aligner, **greedy)
    assert out.candidates["response"].nunique() == 1
    ids, prefix = policy.prefix("Hi"), len(policy.prefix("Hi"))
    for _ in range(6):
        product = logits(policy, ids)[0, -1] + logits(aligner, ids)[0, -1]
        ids = [*ids, int(product.argmax())]
        if ids[-1] in policy.eos_ids:
            break
    assert out.response == policy.decode([ids[prefix:]])[0]


def test_batched_equals_alone(tiny):
    prompts = ["Hi", "How do I learn to cook?", "Name three rivers."]
    config = dict(aligner=tiny("gpt2"), **SMALL)
    together = aisp.align(prompts, tiny(), reward, "ram", **config)
    for prompt, one in zip(prompts, together, strict=True):
        alone = aisp.align(prompt, tiny(), reward, "ram", **config)
        assert alone.candidates["response"].tolist() == one.candidates["response"].tolist()
        for name in ("kl_step", "safeguarded"):
            assert alone.history[name].tolist() == pytest.approx(one.history[name].tolist())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"candidates": 0}, "candidates is 0; it must be a whole number >= 1"),
        ({"candidates": 2.5}, "candidates is 2.5"),
        ({"kl_limit": -0.1}, "kl_limit is -0.1; it must be >= 0 and finite .nats., or None"),
        ({"aligner": 3}, "aligner is 3; pass a Policy"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        RAMConfig(**parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"a": 1.5}, r"a is 1.5; it must lie in \[0, 1\]"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number >= 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be > 0"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"layers": -1}, "layers is -1; it must be a whole number >= 0"),
    ],
)
def test_bad_training_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**parameters)


def test_different_vocabularies_are_refused(tiny, byte_tokenizer):
    policy = tiny()
    other = copy.deepcopy(byte_tokenizer)
    other.add_tokens(["<|new|>"])
    with pytest.raises(ValueError, match="has another vocabulary"):
        load_aligner(aisp.Policy(policy.model, other, name="other"), policy)
    wide = copy.deepcopy(policy.model)
    wide.resize_token_embeddings(320)
    with pytest.raises(ValueError, match="has 320 logits and 'tiny-llama' 258"):
        load_aligner(aisp.Policy(wide, byte_tokenizer, name="wide"), policy)
    same = aisp.Policy(policy.model, copy.deepcopy(byte_tokenizer), name="same")
    assert load_aligner(same, policy) is same


def test_aligners_that_cannot_be_loaded(tiny, trained, tmp_path, monkeypatch):
    policy = tiny()
    with pytest.raises(
        ValueError, match=r"no adapter at .*train one with `python -m aisp.training.ram"
    ):
        load_aligner(tmp_path / "nothing", policy)
    with pytest.raises(ValueError, match=r"belongs to the embedded policy.*'tiny-llama'"):
        aisp.align("Hi", policy, reward, "ram", **SMALL)
    monkeypatch.setitem(load_aligner.__globals__, "data_path", lambda name: tmp_path / name)
    embedded = aisp.Policy(policy.model, policy.tokenizer, name="embedded")
    with pytest.raises(ValueError, match=r"no adapter at .*python -m aisp.training.ram"):
        load_aligner("embedded", embedded)
    with pytest.raises(ValueError, match="does not fit tiny-gpt2"):
        load_aligner(trained[0], tiny("gpt2"))
    shutil.copytree(trained[0], tmp_path / "half")
    stored = load_file(trained[0] / "adapter_model.safetensors")
    save_file(dict(list(stored.items())[1:]), tmp_path / "half/adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit tiny-llama .*lora_"):
        load_aligner(tmp_path / "half", policy)
    with pytest.raises(ValueError, match="exceed the 20 positions of the aligner"):
        short = copy.deepcopy(policy.model)
        short.config.max_position_embeddings = 20
        aisp.align(
            "Hi", policy, reward, "ram", aligner=aisp.Policy(short, policy.tokenizer), **SMALL
        )


def test_the_adapter_shares_every_weight_and_leaves_the_policy_alone(tiny, trained):
    for name in ("llama", "gpt2"):
        policy = tiny(name)
        names = [n for n, _ in policy.model.named_modules()]
        if name == "gpt2":  # its head is tied to its embeddings
            import peft

            from aisp.methods.aligner import inject

            model = inject(policy, peft.LoraConfig(r=2, fan_in_fan_out=True))
            assert model.lm_head.weight is model.transformer.wte.weight
        else:
            model = with_adapter(policy, trained[0]).model
        own = {n: p for n, p in policy.model.named_parameters()}
        for n, p in model.named_parameters():
            n = n.replace(".base_layer", "")
            assert ("lora_" in n) != (n in own and own[n].data_ptr() == p.data_ptr())
        assert [n for n, _ in policy.model.named_modules()] == names
        assert not hasattr(policy.model, "peft_config")
        assert model.config is not policy.model.config


def test_training_lowers_the_loss_of_held_out_preferred_responses(tiny, trained):
    policy = tiny()
    before = {k: v.clone() for k, v in tiny_model("llama").state_dict().items()}
    first, *_, last = trained[2]["evaluations"]
    assert len(trained[2]["evaluations"]) == 1 + QUICK.epochs
    # log Q per token: of what is preferred it rises, and by more than of the policy's own samples.
    gained = {k: last[k] - first[k] for k in first}
    assert gained["preferred"] > 0.5 and gained["preferred"] > gained["samples"] + 0.5
    assert trained[2]["held_out"] == {"used": list(range(8)), "too_long": 0}
    for name, value in policy.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(p.requires_grad for p in policy.model.parameters())
    assert not any(m._forward_pre_hooks for m in policy.model.modules())


def test_a_larger_coefficient_pushes_the_policys_samples_down(tiny, trained, tmp_path):
    config = TrainingConfig(
        **{**trained[2]["config"], "a": 1.0, "proposal_tokens": QUICK.proposal_tokens}
    )
    report = train(
        tiny(), PAIRS, HELD, config, out=tmp_path / "o", work=tmp_path / "w", progress=False
    )
    assert report["evaluations"][0] == trained[2]["evaluations"][0]
    assert report["evaluations"][-1]["samples"] < trained[2]["evaluations"][-1]["samples"] - 0.5


def test_log_likelihood_is_that_of_a_plain_pass(tiny):
    for name in ("llama", "gpt2", "gemma3"):
        policy = tiny(name)
        examples = [encode(policy, p, y) for p, y in (("Hi", "So it is."), ("Go on, then", "No"))]
        for (ids, start), value in zip(
            examples, log_likelihood(policy, policy.model, examples), strict=True
        ):
            assert ids[start:][-1] == 0  # the end-of-turn token counts
            each = torch.log_softmax(logits(policy, ids)[0, :-1], -1).gather(
                -1, torch.tensor(ids[1:])[:, None]
            )
            assert value.item() == pytest.approx(each[start - 1 :].sum().item(), rel=1e-4)


def test_the_example_is_what_decoding_would_give(tiny):
    policy = tiny()
    ids, start = encode(policy, "Hi", "Well")
    assert ids[:start] == policy.prefix("Hi") and policy.decode([ids[start:]]) == ["Well"]


def test_the_policys_samples_are_drawn_once_from_the_policy_itself(tiny, trained, monkeypatch):
    policy, (_, work, _) = tiny(), trained
    stored = json.loads((work / "proposals.json").read_text())["tokens"]
    assert len(stored) == len(PAIRS) + len(HELD)
    expected = rollout(
        policy,
        [policy.prefix(PAIRS[3][0])],
        1,
        8,
        decoding=Decoding(1.0),
        generators=[generator(0, PAIRS[3][0], 0, policy.head_device)],
    )
    assert stored[3] == expected.tokens[0, 0, : expected.lengths[0, 0]].tolist()
    monkeypatch.setattr(ram_training, "rollout", None)  # the cache answers from now on
    prompts = [p for p, _ in PAIRS + HELD]
    again = ram_training.proposals(policy, prompts, QUICK, work, False)
    assert [e.ids[e.start :] for e in again] == stored


def test_an_interrupted_training_resumes_exactly(tiny, trained, tmp_path, monkeypatch):
    config = TrainingConfig(**{**trained[2]["config"], "checkpoint_every": 2})
    out, work = tmp_path / "adapter", tmp_path / "work"
    call = dict(out=out, work=work, progress=False)
    steps = []

    class Impatient(torch.optim.AdamW):
        def step(self, *args):
            if len(steps) == stop:
                raise KeyboardInterrupt
            steps.append(super().step(*args))

    monkeypatch.setattr(torch.optim, "AdamW", Impatient)
    for stop in (3, 7):  # noqa: B007 (read in Impatient.step)
        # the second time, the first steps come from the checkpoint
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), PAIRS, HELD, config, **call)
        assert not out.exists()
    stop = None
    report = train(tiny(), PAIRS, HELD, config, **call)
    # Steps 0 1 2 | 2 3 4 5 | 4 or 6 ...: what was not in a checkpoint is done again.
    assert report["steps"] < len(steps) <= report["steps"] + 2
    assert report["evaluations"] == trained[2]["evaluations"]
    for name in ("adapter_model.safetensors",):
        assert (out / name).read_bytes() == (trained[0] / name).read_bytes()
    with pytest.raises(ValueError, match="is of another training"):
        train(tiny(), PAIRS[:6], HELD, config, **call)


def test_no_global_random_state_is_read_or_changed(tiny, tmp_path):
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        folder = tmp_path / str(seed)
        quick = TrainingConfig(batch_tokens=512, proposal_tokens=4, layers=1)
        train(tiny(), PAIRS[:3], HELD[:2], quick, out=folder, work=folder, progress=False)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append((folder / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:  # of the last layer only
        assert len(file.keys()) == 4 and all(".layers.2." in name for name in file.keys())  # noqa: SIM118


def test_the_stored_adapter_is_the_trained_one_for_us_and_for_peft(tiny, trained):
    import peft

    policy, (out, work, _) = tiny(), trained
    aligner = with_adapter(policy, out)
    assert aligner.eos_ids == policy.eos_ids and aligner.tokenizer is policy.tokenizer
    ids = policy.prefix("Say it 3 times")
    ours = logits(aligner, ids)
    assert (ours - logits(policy, ids)).abs().max() > 0.1
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama"), out)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(torch.tensor([ids])).logits, ours)
    stored = load_file(out / "adapter_model.safetensors")
    master = torch.load(work / "checkpoint.pt", weights_only=True)["lora"]
    assert len(stored) == len(master)
    for name, value in master.items():
        kept = stored["base_model.model." + name.replace(".default", "")]
        assert kept.dtype == torch.bfloat16 and torch.equal(kept, value.bfloat16())


def test_long_pairs_are_left_out_and_counted(tiny, tmp_path):
    policy = tiny()
    pairs = [("Hi", "a" * 120), *PAIRS[:2]]
    config = TrainingConfig(max_length=100, proposal_tokens=4)
    call = dict(out=tmp_path, work=tmp_path, progress=False)
    report = train(policy, pairs, HELD[:1], config, **call)
    assert report["fitted"] == {"used": [1, 2], "too_long": 1}
    with pytest.raises(ValueError, match="none of the 1 held_out pairs has at most 100 tokens"):
        train(policy, PAIRS, pairs[:1], config, **call)


def test_the_command_writes_adapter_and_report_without_any_text(
    tiny, byte_tokenizer, tmp_path, monkeypatch
):
    rows = [
        {
            "chosen": f"\n\nHuman: Say it {k}\n\nAssistant: secret aa",
            "rejected": f"\n\nHuman: Say it {k}\n\nAssistant: No",
        }
        for k in range(6)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setattr("aisp.training.ram.load_policy", lambda name: tiny())
    options = f"--held-out-from 4 --held-out-to 5 --out {tmp_path}/o --work {tmp_path}/w"
    ram_training.main([str(file), *options.split(), "--proposal-tokens", "4", "--a", "0.1"])
    text = (tmp_path / "o/report.json").read_text()
    report = json.loads(text)
    assert report["fitted"] == {"used": 4, "too_long": 0, "rows": "0 1 2 3"}
    assert report["held_out"]["rows"] == "4" and report["config"]["a"] == 0.1
    assert report["data"] == "pairs.jsonl" and len(report["data_sha256"]) == 64
    assert len(report["evaluations"]) == 2 and {"commit", "packages", "peft"} <= set(report)
    assert "secret" not in text and "Say it" not in text


@pytest.mark.slow
def test_the_embedded_policy_trains_in_bfloat16(tmp_path):
    policy = aisp.load_policy("embedded", device="cpu", dtype="bfloat16")
    prompts = aisp.load_prompts("builtin", split="dev", limit=6)
    pairs = [(p, "I'm sorry, but I can't help with that.") for p in prompts]
    quick = TrainingConfig(batch_tokens=512, proposal_tokens=8, learning_rate=2e-3, epochs=3)
    call = dict(out=tmp_path / "o", work=tmp_path / "w", progress=False)
    first, *_, last = train(policy, pairs[:4], pairs[4:], quick, **call)["evaluations"]
    assert last["preferred"] - first["preferred"] > max(0.1, last["samples"] - first["samples"])
    size = (tmp_path / "o/adapter_model.safetensors").stat().st_size
    assert size < 2e6
    out = aisp.align("Hi", policy, reward, "ram", aligner=tmp_path / "o", n=2, max_new_tokens=4)
    assert len(out.candidates) == 16
