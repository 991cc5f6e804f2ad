"""Hugging Face reward models: small random ones saved as the public ones are, scored one by one."""

import copy

import pytest
import torch
from tiny import REWARD_SIZE, llama, save_classifier, save_reward_model, with_first_token
from tokenizers.pre_tokenizers import ByteLevel

from aisp.rewards import RewardError, load_reward
from aisp.rewards.hub import eurus_format, ultrarm_format

TURNS = [
    {"role": "user", "content": "Tea?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Hot?"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
PROMPTS = ["Hi", TURNS, [SYSTEM, *TURNS], "Hi", "A longer prompt"]
RESPONSES = ["a", "a longer response", "Ok.", "", "ends with a special token<|im_end|>"]
ULTRARM = [
    "Human: Hi\n\nAssistant: a",
    "Human: Tea?\n\nAssistant: Yes.\n\nHuman: Hot?\n\nAssistant: a longer response",
    "Be brief.\n\nHuman: Tea?\n\nAssistant: Yes.\n\nHuman: Hot?\n\nAssistant: Ok.",
    "Human: Hi\n\nAssistant: ",
    "Human: A longer prompt\n\nAssistant: ends with a special token<|im_end|>",
]
EURUS = [
    "[INST] Hi [/INST] a",
    "[INST] Tea? [/INST] Yes.</s> [INST] Hot? [/INST] a longer response",
    "[INST] Be brief.\n\nTea? [/INST] Yes.</s> [INST] Hot? [/INST] Ok.",
    "[INST] Hi [/INST] ",
    "[INST] A longer prompt [/INST] ends with a special token<|im_end|>",
]
TEXTS = {"ultrarm": ULTRARM, "eurus": EURUS}


@pytest.fixture
def tokenizer(byte_tokenizer):
    return with_first_token(byte_tokenizer)


def one_by_one(backbone, row, texts):
    """The reward by its definition: bytes after the beginning-of-text token, no padding."""
    alphabet = sorted(ByteLevel.alphabet())
    rewards = []
    for text in texts:
        body = text.removesuffix("<|im_end|>").replace(" ", "Ġ").replace("\n", "Ċ")  # all ASCII
        ids = [1, *(2 + alphabet.index(byte) for byte in body), *[0] * text.endswith("<|im_end|>")]
        with torch.no_grad():
            hidden = backbone(torch.tensor([ids])).last_hidden_state
        rewards.append((hidden[0, -1] @ row[0]).item())
    return torch.tensor(rewards, dtype=torch.float64)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("weights", ["safetensors", "bin", "shards"])
def test_public_reward_models_score_as_defined(tmp_path, tokenizer, kind, weights):
    backbone, row = save_reward_model(tmp_path, tokenizer, kind, weights)
    reward = load_reward(tmp_path, device="cpu", dtype="float32", trust_remote_code=True)
    reward.batch_size = 3  # several batches, every text but the longest of each padded
    got = reward.score(PROMPTS, RESPONSES)
    expected = one_by_one(backbone, row, TEXTS[kind])
    assert got.dtype == torch.float64 and got.shape == (5,)
    assert torch.allclose(got, expected, atol=1e-4), (got, expected)
    assert expected.std() > 0.5  # they can be told apart
    assert str(tmp_path) in reward.name


@pytest.mark.parametrize("pad", [None, 0, 7])
def test_padding_never_changes_a_score(tmp_path, tokenizer, pad):
    backbone, row = save_reward_model(tmp_path, tokenizer, "ultrarm", pad_token_id=pad)
    reward = load_reward(tmp_path, device="cpu", dtype="float32")
    reward.tokenizer.padding_side = "left"
    together = reward.score(PROMPTS, RESPONSES)
    alone = torch.cat([reward.score([p], [r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    assert torch.allclose(together, alone, atol=1e-4)
    assert torch.allclose(alone, one_by_one(backbone, row, ULTRARM), atol=1e-4)


def test_formats_of_several_turns():
    for prompt, response, ultrarm, eurus in zip(PROMPTS, RESPONSES, ULTRARM, EURUS, strict=True):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        whole = [*messages, {"role": "assistant", "content": response}]
        assert ultrarm_format(whole) == ultrarm
        assert eurus_format(whole) == eurus
    closing = [*TURNS, {"role": "assistant", "content": "No.</s> "}]
    assert eurus_format(closing).endswith("[/INST] No.</s> ")  # the response is left as it is


def test_another_format_can_be_read(tmp_path, tokenizer):
    backbone, row = save_reward_model(tmp_path, tokenizer, "ultrarm")

    def re_control(messages):
        return f"Human: {messages[-2]['content']}\nAssistant: {messages[-1]['content']}"

    reward = load_reward(tmp_path, device="cpu", dtype="float32", format=re_control)
    expected = one_by_one(backbone, row, ["Human: Hi\nAssistant: a"])
    assert torch.allclose(reward.score(["Hi"], ["a"]), expected, atol=1e-4)
    assert not torch.allclose(one_by_one(backbone, row, ULTRARM[:1]), expected, atol=1e-2)


@pytest.mark.parametrize("kind", TEXTS)
def test_too_long_for_a_regression_head_is_an_error(tmp_path, tokenizer, kind):
    save_reward_model(tmp_path, tokenizer, kind)
    reward = load_reward(tmp_path, device="cpu", dtype="float32")
    room = 128 - 1 - len(TEXTS[kind][3])
    assert reward.score(["Hi"], ["x" * room]).isfinite().all()
    with pytest.raises(RewardError, match=r"'Hi'.* takes 129 tokens; reward model .* reads 128"):
        reward.score(["Hi"], ["x" * (room + 1)])


def test_dtype_and_device_map(tmp_path, tokenizer):
    pytest.importorskip("accelerate")
    backbone, row = save_reward_model(tmp_path, tokenizer, "eurus")
    spread = {"model.embed_tokens": "cpu", "model": "cpu", "score": "cpu"}
    reward = load_reward(tmp_path, device="meta", dtype="bfloat16", device_map=spread)
    assert {p.dtype for p in reward.model.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in reward.model.parameters()} == {"cpu"}
    assert not any(p.requires_grad for p in reward.model.parameters())
    got = reward.score(PROMPTS[:2], RESPONSES[:2])
    assert (got - one_by_one(backbone, row, EURUS[:2])).abs().max() < 0.5


@pytest.mark.parametrize("kind", TEXTS)
def test_without_its_head_it_is_refused(tmp_path, tokenizer, kind):
    save_reward_model(tmp_path, tokenizer, kind, head=False)
    with pytest.raises(ValueError, match=r"no weights for score\.weight, which would stay random"):
        load_reward(tmp_path, device="cpu", dtype="float32")


def test_pickled_code_is_not_run(tmp_path, tokenizer):
    save_reward_model(tmp_path, tokenizer, "ultrarm", "bin")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"regression_head.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        load_reward(tmp_path, device="cpu", dtype="float32")
    assert not (tmp_path / "ran").exists()


# Sequence classifiers, Skywork-Reward among them


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_a_sequence_classifier_scores_its_chat_template(tmp_path, byte_tokenizer, architecture):
    model = save_classifier(tmp_path, byte_tokenizer, architecture)
    reward = load_reward(tmp_path, dtype="float32", device="cpu")
    reward.batch_size = 2  # several batches of unequal length
    prompts = ["Hi", [{"role": "user", "content": "Longer prompt?"}], "Hi"]
    responses = ["a", "a longer response", ""]
    got = reward.score(prompts, responses)
    for i, text in enumerate(
        [
            "<|im_start|>user: Hi<|im_end|>\n<|im_start|>assistant: a<|im_end|>\n",
            "<|im_start|>user: Longer prompt?<|im_end|>\n"
            "<|im_start|>assistant: a longer response<|im_end|>\n",
            "<|im_start|>user: Hi<|im_end|>\n<|im_start|>assistant: <|im_end|>\n",
        ]
    ):
        ids = torch.tensor([byte_tokenizer(text)["input_ids"]])
        with torch.no_grad():
            expected = model(ids).logits[0, 0]
        assert abs(got[i] - expected) < 1e-4
    assert got.dtype == torch.float64 and len(set(got.tolist())) == 3


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("pad", [None, 0, 7])
def test_a_template_that_opens_with_bos_and_ends_with_eos(tmp_path, tokenizer, architecture, pad):
    """As Skywork-Reward-Llama: one beginning-of-text token, and the end of turn is what is read."""
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    )
    model = save_classifier(tmp_path, tokenizer, architecture, pad_token_id=pad)
    reward = load_reward(tmp_path, dtype="float32", device="cpu")
    responses = ["a", "a longer response"]
    got = reward.score(["Hi", "Hi"], responses)
    for value, response in zip(got, responses, strict=True):
        text = f"user: Hi<|im_end|>assistant: {response}<|im_end|>"
        ids = torch.tensor([tokenizer(text)["input_ids"]])  # the tokenizer adds the first token
        assert ids[0, :2].tolist() != [1, 1] and ids[0, 0] == 1 and ids[0, -1] == 0
        with torch.no_grad():
            assert abs(value - model(ids).logits[0, 0]) < 1e-4  # alone, by transformers itself


def test_other_checkpoints_are_read_from_safetensors_only(tmp_path, byte_tokenizer):
    model = save_classifier(tmp_path, byte_tokenizer)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"cannot load .*safetensors"):
        load_reward(tmp_path, dtype="float32", device="cpu")
    reward = load_reward(tmp_path, dtype="float32", device="cpu", use_safetensors=False)
    assert reward.score(["Hi"], ["a"]).isfinite().all()


def test_without_a_chat_template_prompt_and_response_are_a_text_pair(tmp_path, byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.chat_template = None
    model = save_classifier(tmp_path, tokenizer)
    got = load_reward(tmp_path, dtype="float32", device="cpu").score([TURNS], ["Ok."])
    with torch.no_grad():
        ids = torch.tensor([tokenizer("Tea?\n\nYes.\n\nHot?Ok.")["input_ids"]])
        assert abs(got[0] - model(ids).logits[0, 0]) < 1e-4


def test_too_long_for_a_classifier_is_an_error_not_a_truncation(tmp_path, byte_tokenizer):
    save_classifier(tmp_path, byte_tokenizer)
    reward = load_reward(tmp_path, dtype="float32", device="cpu")
    with pytest.raises(RewardError, match=r"tokens; reward model .* reads 128"):
        reward.score(["Hi"], ["x" * 200])


def test_a_classifier_with_two_outputs_is_no_reward_model(tmp_path, byte_tokenizer):
    save_classifier(tmp_path, byte_tokenizer, labels=2)
    with pytest.raises(ValueError, match="has 2 outputs; a reward model has 1"):
        load_reward(tmp_path, dtype="float32")


def test_a_language_model_is_no_reward_model(tmp_path, byte_tokenizer):
    llama(**REWARD_SIZE | {"num_labels": 1}).save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no weights for score\.weight"):
        load_reward(tmp_path, dtype="float32")
