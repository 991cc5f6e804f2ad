"""Policies: loading, templates, and errors that say what to do."""

import copy
import dataclasses

import pytest
import torch
from tiny import ARCHITECTURES, tiny_model

import aisp
from aisp.loading import resolve_dtype
from aisp.policy import Policy, load_policy, prelogits_changed, require_same_vocabulary


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_model_loads_from_its_path(tmp_path, byte_tokenizer, name):
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    policy = load_policy(tmp_path, device="cpu", dtype="float32")
    assert policy.d == 32 and policy.dtype == torch.float32 and policy.context_length == 256
    assert policy.template == "chat" and policy.eos_ids == (0,)
    assert not policy.model.training
    assert not any(p.requires_grad for p in policy.model.parameters())
    out = aisp.align(
        "Hi", policy, lambda p, r: len(r), n=2, kappa=1, max_new_tokens=4, progress=False
    )
    assert len(out.candidates) == 2


def test_only_safetensors_by_default(tmp_path, byte_tokenizer):
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot load"):
        load_policy(tmp_path, dtype="float32")
    assert load_policy(tmp_path, dtype="float32", use_safetensors=False).d == 32


def test_an_unknown_id_says_what_was_tried():
    with pytest.raises(ValueError, match=r"no-such/model.*local path and on the hub.*out of reach"):
        load_policy("no-such/model")


def test_the_embedded_policy(embedded):
    assert embedded.eos_ids == (2,) and embedded.d == 576
    ids = embedded.prefix("How do I learn to cook?")
    text = embedded.tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system") and text.endswith("<|im_start|>assistant\n")
    assert ids.count(1) == 3  # one <|im_start|> per turn: the tokenizer added none of its own
    assert embedded.decode([[19556, 2]]) == [embedded.tokenizer.decode([19556])]


def test_templates(tiny, byte_tokenizer):
    model = tiny("llama").model
    messages = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ]
    decode = byte_tokenizer.decode
    chat = Policy(model, byte_tokenizer, "chat")
    assert decode(chat.prefix("A")) == "<|im_start|>user: A<|im_end|>\n<|im_start|>assistant: "
    assert decode(chat.prefix(messages)).count("<|im_end|>") == 3
    bare = Policy(model, byte_tokenizer, "continuation")
    assert decode(bare.prefix(messages)) == "One\n\nTwo\n\nThree\n\n"
    own = Policy(model, byte_tokenizer, lambda m: "Q: " + m[-1]["content"] + " A:")
    assert decode(own.prefix("why?")) == "Q: why? A:"
    with pytest.raises(ValueError, match="template is 'chatt'; use 'chat', 'continuation' or"):
        Policy(model, byte_tokenizer, "chatt")


def test_a_tokenizer_without_chat_template_is_a_clear_error(tiny, byte_tokenizer):
    bare = copy.deepcopy(byte_tokenizer)
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template; pass template='continuation'"):
        Policy(tiny("llama").model, bare)


def test_end_of_turn_tokens_come_from_model_tokenizer_and_format(tiny, byte_tokenizer):
    model = copy.deepcopy(tiny("llama").model)
    model.generation_config.eos_token_id = [5, 6]
    assert Policy(model, byte_tokenizer).eos_ids == (0, 5, 6)
    assert Policy(model, byte_tokenizer, eos_ids=(9,)).eos_ids == (9,)


def test_a_prompt_too_long_for_the_context(tiny):
    policy = tiny("llama")
    assert len(policy.prefix("x" * 200, max_new_tokens=10)) < 256
    with pytest.raises(ValueError, match=r"takes \d+ tokens .* max_new_tokens is 48; shorten"):
        policy.prefix("x" * 200, max_new_tokens=48)


def test_dtype_names_and_defaults():
    cpu = torch.device("cpu")
    assert resolve_dtype("bfloat16", cpu) == torch.bfloat16
    assert resolve_dtype(torch.float64, cpu) == torch.float64
    assert resolve_dtype(None, torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype(None, cpu) in (torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match="dtype is 'float8'; known: bfloat16"):
        resolve_dtype("float8", cpu)


def test_the_same_vocabulary_is_required(tiny, embedded):
    first, second = tiny("llama"), tiny("gpt2")
    require_same_vocabulary(first, second, "why")
    copied = dataclasses.replace(second, tokenizer=copy.deepcopy(second.tokenizer))
    require_same_vocabulary(first, copied, "why")
    said = r"tiny-llama and embedded have different vocabularies \(258 and 49152 tokens, \d+ the sa"
    with pytest.raises(ValueError, match=rf"{said}.*; a cascade mixes"):
        require_same_vocabulary(first, embedded, "a cascade mixes")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_changed_prelogits_enter_the_head_and_only_while_open(tiny, architecture):
    policy = tiny(architecture)
    ids = torch.tensor([policy.prefix("Hi")])
    with torch.inference_mode():
        plain = policy.model(ids).logits
        with prelogits_changed(policy.model, lambda z: z.flip(1)):
            flipped = policy.model(ids).logits
        with (
            pytest.raises(ZeroDivisionError),
            prelogits_changed(policy.model, lambda z: 1 / 0),
        ):
            policy.model(ids)
        again = policy.model(ids).logits
    torch.testing.assert_close(flipped, plain.flip(1))
    assert torch.equal(again, plain) and not torch.equal(flipped, plain)


def test_only_the_embedded_model_is_embedded(tiny, embedded):
    assert embedded.is_embedded and not tiny().is_embedded


def test_numbers_and_flags_of_a_policy_are_checked(tiny):
    with pytest.raises(ValueError, match="max_new_tokens is -1; it must be a whole number >= 0"):
        tiny().prefix("Hi", max_new_tokens=-1)
    with pytest.raises(ValueError, match="trust_remote_code is 'false'; it must be True or False"):
        load_policy("embedded", device="cpu", trust_remote_code="false")


def test_given_end_tokens_become_plain_integers(tiny):
    import numpy as np

    policy = dataclasses.replace(tiny(), eos_ids=[np.int64(7), torch.tensor(-1)])
    assert policy.eos_ids == (7, -1) and all(type(i) is int for i in policy.eos_ids)
    with pytest.raises(
        ValueError, match=r"a token id of eos_ids is 2\.0; it must be a whole number"
    ):
        dataclasses.replace(tiny(), eos_ids=(2.0,))
