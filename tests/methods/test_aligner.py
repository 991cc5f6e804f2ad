"""Residual aligners: which are taken, which are refused, and what they share with the policy."""

import copy
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny import reward

import aisp
from aisp.methods.aligner import load_aligner, with_adapter

SMALL = dict(n=4, kappa=2, max_new_tokens=6, progress=False)


def test_different_vocabularies_are_refused(tiny, byte_tokenizer):
    policy = tiny()
    other = copy.deepcopy(byte_tokenizer)
    other.add_tokens(["<|new|>"])
    with pytest.raises(ValueError, match="have different vocabularies"):
        load_aligner(aisp.Policy(policy.model, other, name="other"), policy)
    wide = copy.deepcopy(policy.model)
    wide.resize_token_embeddings(320)
    with pytest.raises(ValueError, match="has 320 logits and 'tiny-llama' 258"):
        load_aligner(aisp.Policy(wide, byte_tokenizer, name="wide"), policy)
    same = aisp.Policy(policy.model, copy.deepcopy(byte_tokenizer), name="same")
    assert load_aligner(same, policy) is same


def test_aligners_that_cannot_be_loaded(tiny, trained_adapter, tmp_path, monkeypatch):
    policy = tiny()
    with pytest.raises(
        ValueError, match=r"there is no aligner at .*train one with `python -m aisp.training.ram"
    ):
        load_aligner(tmp_path / "nothing", policy)
    with pytest.raises(ValueError, match=r"belongs to the embedded policy.*'tiny-llama'"):
        aisp.align("Hi", policy, reward, "ram", **SMALL)
    monkeypatch.setattr("aisp.assets.embedded.data_path", lambda name: tmp_path / name)
    embedded = aisp.Policy(policy.model, policy.tokenizer, name="embedded")
    with pytest.raises(ValueError, match=r"there is no aligner at .*python -m aisp.training.ram"):
        load_aligner("embedded", embedded)
    with pytest.raises(ValueError, match="does not fit tiny-gpt2"):
        load_aligner(trained_adapter[0], tiny("gpt2"))
    shutil.copytree(trained_adapter[0], tmp_path / "half")
    stored = load_file(trained_adapter[0] / "adapter_model.safetensors")
    save_file(dict(list(stored.items())[1:]), tmp_path / "half/adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit tiny-llama .*lora_"):
        load_aligner(tmp_path / "half", policy)
    with pytest.raises(ValueError, match="exceed the 20 positions of the aligner"):
        short = copy.deepcopy(policy.model)
        short.config.max_position_embeddings = 20
        aisp.align(
            "Hi", policy, reward, "ram", aligner=aisp.Policy(short, policy.tokenizer), **SMALL
        )


def test_the_adapter_shares_every_weight_and_leaves_the_policy_alone(tiny, trained_adapter):
    for name in ("llama", "gpt2"):
        policy = tiny(name)
        names = [n for n, _ in policy.model.named_modules()]
        if name == "gpt2":  # its head is tied to its embeddings
            import peft

            from aisp.methods.aligner import inject

            model = inject(policy, peft.LoraConfig(r=2, fan_in_fan_out=True))
            assert model.lm_head.weight is model.transformer.wte.weight
        else:
            model = with_adapter(policy, trained_adapter[0]).model
        own = {n: p for n, p in policy.model.named_parameters()}
        for n, p in model.named_parameters():
            n = n.replace(".base_layer", "")
            assert ("lora_" in n) != (n in own and own[n].data_ptr() == p.data_ptr())
        assert [n for n, _ in policy.model.named_modules()] == names
        assert not hasattr(policy.model, "peft_config")
        assert model.config is not policy.model.config
