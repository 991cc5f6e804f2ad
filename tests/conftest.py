"""What every test shares. No test may reach for the network, so the switches come before imports."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public preference data beside the checkout; tests that need it are skipped without it."""
    folder = Path(os.environ.get("AISP_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no shared data here; AISP_SHARED_DATA=<folder> names it")
    return folder


@pytest.fixture(scope="session")
def embedded():
    """The embedded policy in float32 on the CPU, loaded once. Tests must not change its weights."""
    import aisp

    return aisp.load_policy("embedded", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def byte_tokenizer():
    """One token per byte, an end-of-turn token and a chat template, made without any download."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|im_end|>", "<|im_start|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    return fast


def tiny_model(name: str):
    """A small random model of a real architecture, with weights large enough that argmax is clear.

    llama: untied head, grouped-query attention. gpt2: tied head, learned positions. gemma3: tied
    head, soft-capped logits, sliding-window layers whose window is shorter than the test prompts.
    """
    import torch
    import transformers as tf

    torch.manual_seed(0)  # the initial weights; nothing that is tested reads the global state
    size = dict(vocab_size=258, eos_token_id=0, pad_token_id=0, bos_token_id=1)
    if name == "llama":
        config = tf.LlamaConfig(
            **size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.3,
            tie_word_embeddings=False,
        )
        return tf.LlamaForCausalLM(config)
    if name == "gpt2":
        config = tf.GPT2Config(
            **size, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3
        )
        return tf.GPT2LMHeadModel(config)
    config = tf.Gemma3TextConfig(
        **size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
        sliding_window=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        initializer_range=0.3,
        final_logit_softcapping=5.0,
    )
    return tf.Gemma3ForCausalLM(config)


ARCHITECTURES = ["llama", "gpt2", "gemma3"]


@pytest.fixture(scope="session")
def tiny(byte_tokenizer):
    """Policies by architecture, each built once."""
    import aisp

    built = {}

    def get(name: str = "llama") -> aisp.Policy:
        if name not in built:
            built[name] = aisp.Policy(tiny_model(name).float(), byte_tokenizer, name=f"tiny-{name}")
        return built[name]

    return get
