"""Training a residual aligner: its loss, its data, resuming, and the whole command."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import HELD, PAIRS, logits, reward, tiny_model
from tiny import QUICK as QUICK_SETTINGS

import aisp
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.methods.aligner import with_adapter
from aisp.state import generator
from aisp.training import ram as ram_training
from aisp.training import ram_data
from aisp.training.ram import TrainingConfig, train
from aisp.training.ram_data import encode
from aisp.training.ram_loss import log_likelihood

QUICK = TrainingConfig(**QUICK_SETTINGS)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"a": 1.5}, r"a is 1.5; it must lie in \[0, 1\]"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number >= 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be > 0"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"layers": -1}, "layers is -1; it must be a whole number >= 0"),
        ({"rank": True}, "rank is True; it must be a whole number >= 1"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number >= 0"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'; .*without quotes: 0.001"),
        ({"clip": float("nan")}, "clip is nan; it must be > 0 and finite"),
        ({"targets": "q_proj"}, "targets is 'q_proj'; it must be a tuple of names, or None"),
    ],
)
def test_bad_training_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**parameters)


def test_training_lowers_the_loss_of_held_out_preferred_responses(tiny, trained_adapter):
    policy = tiny()
    before = {k: v.clone() for k, v in tiny_model("llama").state_dict().items()}
    first, *_, last = trained_adapter[2]["evaluations"]
    assert len(trained_adapter[2]["evaluations"]) == 1 + QUICK.epochs
    # log Q per token: of what is preferred it rises, and by more than of the policy's own samples.
    gained = {k: last[k] - first[k] for k in first}
    assert gained["preferred"] > 0.5 and gained["preferred"] > gained["samples"] + 0.5
    assert trained_adapter[2]["held_out"] == {"used": list(range(8)), "too_long": 0}
    for name, value in policy.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(p.requires_grad for p in policy.model.parameters())
    assert not any(m._forward_pre_hooks for m in policy.model.modules())


def test_a_larger_coefficient_pushes_the_policys_samples_down(tiny, trained_adapter, tmp_path):
    config = TrainingConfig(
        **{**trained_adapter[2]["config"], "a": 1.0, "proposal_tokens": QUICK.proposal_tokens}
    )
    report = train(
        tiny(), PAIRS, HELD, config, out=tmp_path / "o", work=tmp_path / "w", progress=False
    )
    assert report["evaluations"][0] == trained_adapter[2]["evaluations"][0]
    assert (
        report["evaluations"][-1]["samples"]
        < trained_adapter[2]["evaluations"][-1]["samples"] - 0.5
    )


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


def test_the_policys_samples_are_drawn_once_from_the_policy_itself(
    tiny, trained_adapter, monkeypatch
):
    policy, (_, work, _) = tiny(), trained_adapter
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
    monkeypatch.setattr(ram_data, "rollout", None)  # the cache answers from now on
    prompts = [p for p, _ in PAIRS + HELD]
    again = ram_data.proposals(policy, prompts, work, tokens=8, seed=0, progress=False)
    assert [e.ids[e.start :] for e in again] == stored


def test_an_interrupted_training_resumes_exactly(tiny, trained_adapter, tmp_path, monkeypatch):
    config = TrainingConfig(**{**trained_adapter[2]["config"], "checkpoint_every": 2})
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
    assert report["evaluations"] == trained_adapter[2]["evaluations"]
    for name in ("adapter_model.safetensors",):
        assert (out / name).read_bytes() == (trained_adapter[0] / name).read_bytes()
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


def test_the_stored_adapter_is_the_trained_one_for_us_and_for_peft(tiny, trained_adapter):
    import peft

    policy, (out, work, _) = tiny(), trained_adapter
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


def test_numbers_of_other_libraries_become_plain_ones():
    config = TrainingConfig(
        rank=np.int64(4), a=torch.tensor(0.5), seed=np.uint8(3), targets=["q_proj"]
    )
    assert (type(config.rank), type(config.a), type(config.seed)) == (int, float, int)
    assert config == TrainingConfig(rank=4, a=0.5, seed=3, targets=("q_proj",))
    assert json.loads(json.dumps(dataclasses.asdict(config)))["targets"] == ["q_proj"]


def test_a_killed_training_leaves_checkpoint_and_samples_whole(tiny, tmp_path, monkeypatch):
    """What is half written when the process ends does not take the place of what was there."""
    config = TrainingConfig(batch_tokens=256, proposal_tokens=4, checkpoint_every=1)
    call = dict(out=tmp_path / "o", work=tmp_path / "w", progress=False)
    written = []

    def torn(state, to):
        if written:
            to.write_bytes(b"half")
            raise KeyboardInterrupt
        save(state, to)
        written.append(to.read_bytes())

    save = torch.save
    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), PAIRS, HELD[:1], config, **call)
    left = {path.name: path for path in (tmp_path / "w").iterdir()}
    assert sorted(left) == ["checkpoint.pt", "proposals.json"]
    assert left["checkpoint.pt"].read_bytes() == written[0]
