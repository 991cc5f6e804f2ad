"""The small random models, tokenizers, prompts and rewards that the tests share.

Everything is built without a download, and anew at each call. The initial weights come from
torch's global generator, seeded here; nothing that is tested reads the global state.
`conftest.py` has the fixtures that hold some of these for a whole run.
"""

import copy
import json

import torch
import transformers as tf
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

PROMPTS = ["Hi", "How do I learn to cook?", "Name three rivers in a short and simple sentence."]
WORDS = ["<|im_end|>", "a", "b", "c", "d"]

# What the training of a residual aligner on a tiny policy takes.
PAIRS = [(f"Say it {k} times", "aaaa aaaa") for k in range(12)]
HELD = [(f"Now {k} times", "aaaa aaaa") for k in range(12, 20)]
QUICK = dict(epochs=2, batch_tokens=256, learning_rate=0.03, proposal_tokens=8, rank=4)


def reward(prompt, response):
    """The number of different characters; of two with equally many the longer is better."""
    return len(set(response)) + 0.01 * len(response)


def logits(policy, ids):
    """Logits at every position of one sequence, (1, len(ids), |V|)."""
    with torch.inference_mode():
        return policy.model(torch.tensor([ids])).logits


# -- tokenizers -----------------------------------------------------------------------------------


def tokenizer_of_bytes():
    """One token per byte, an end-of-turn token (0), a begin-of-turn one (1) and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|im_end|>", "<|im_start|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    return fast


def with_first_token(byte_tokenizer):
    """A copy that puts a beginning-of-text token first, as Llama's and Mistral's do."""
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    return tokenizer


def tokenizer_of_words():
    """The five WORDS, separated by spaces; the first one ends a response."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=WORDS[0])


# -- language models ------------------------------------------------------------------------------

ARCHITECTURES = ["llama", "gpt2", "gemma3", "lfm2"]
SIZE = dict(
    vocab_size=258,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    initializer_range=0.3,
)


def llama(*, seed=0, **changes):
    """A Llama of SIZE, but for the changes."""
    torch.manual_seed(seed)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZE | changes))


def tiny_model(name, *, seed=0, **changes):
    """A small random model of a real architecture, with weights large enough that argmax is clear.

    llama: untied head, grouped-query attention. gpt2: tied head, learned positions. gemma3: tied
    head, soft-capped logits, sliding-window layers whose window is shorter than the test prompts.
    lfm2: tied head, layers that keep a short convolution's state in the place of keys and values.
    """
    special = dict(eos_token_id=0, pad_token_id=0, bos_token_id=1)
    if name == "gpt2":
        torch.manual_seed(seed)
        size = dict(vocab_size=258, n_embd=32, n_layer=2, n_head=4, n_positions=256)
        return tf.GPT2LMHeadModel(
            tf.GPT2Config(**size | special | {"initializer_range": 0.3} | changes)
        )
    special |= dict(num_hidden_layers=3, max_position_embeddings=256)
    if name == "llama":
        own = dict(num_key_value_heads=2, tie_word_embeddings=False)
        return llama(seed=seed, **special | own | changes)
    if name == "lfm2":
        torch.manual_seed(seed)
        own = dict(num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"])
        return tf.Lfm2ForCausalLM(tf.Lfm2Config(**SIZE | special | own | changes))
    own = dict(
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        final_logit_softcapping=5.0,
    )
    torch.manual_seed(seed)
    return tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**SIZE | special | own | changes))


def word_model(seed, vocab_size):
    """A Llama over WORDS; a larger vocabulary pads its logits, as in real models."""
    model = llama(
        seed=seed,
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.35,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=0,
    )
    return model.float()


# -- reward models and encoders, saved as the public ones are -------------------------------------

REWARD_SIZE = SIZE | dict(num_key_value_heads=2, max_position_embeddings=128)
PUBLIC = {
    "ultrarm": (tf.LlamaConfig, "LlamaRewardModel"),
    "eurus": (tf.MistralConfig, "EurusRewardModel"),
}


def save_reward_model(folder, tokenizer, kind, weights="safetensors", head=True, **config):
    """A checkpoint with the names of the public one; returns its backbone and its head."""
    config_class, architecture = PUBLIC[kind]
    torch.manual_seed(0)
    config = config_class(**REWARD_SIZE, **{"pad_token_id": 0} | config)
    backbone = tf.AutoModel.from_config(config).eval()
    row = torch.randn(1, 32)
    state = {f"model.{name}": value for name, value in backbone.state_dict().items()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as old files have it
    if head:
        state["regression_head.weight"] = row
    parts = [dict(list(state.items())[:9]), dict(list(state.items())[9:])]
    if weights == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    elif weights == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
        for name, part in zip(names, parts, strict=True):
            torch.save(part, folder / name)
        index = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (folder / "pytorch_model.bin.index.json").write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
        )
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps(
            config.to_diff_dict()
            | {
                "architectures": [architecture],
                "auto_map": {
                    "AutoModel": f"modeling.{architecture}",
                    "AutoModelForSequenceClassification": f"modeling.{architecture}",
                },
            }
        )
    )
    (folder / "modeling.py").write_text("raise SystemExit('code of the checkpoint was run')")
    return backbone, row


def save_classifier(folder, tokenizer, architecture="llama", labels=1, **config):
    """A sequence classifier, as Skywork-Reward is one; returns it in evaluation mode."""
    torch.manual_seed(0)
    config = {"pad_token_id": 0, "num_labels": labels} | config
    if architecture == "gpt2":
        size = dict(vocab_size=258, n_embd=32, n_layer=2, n_head=4, n_positions=128)
        config = tf.GPT2Config(**size, initializer_range=0.3, **config)
    else:
        kind = {"llama": tf.LlamaConfig, "qwen3": tf.Qwen3Config}[architecture]
        config = kind(**REWARD_SIZE, **config)
    model = tf.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def save_encoder(folder, byte_tokenizer, weights="safetensors", pooler=True):
    """A BERT with the names of SimCSE's checkpoints; returns it and its tokenizer."""
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.pad_token, tokenizer.model_max_length = "<|im_end|>", 48
    torch.manual_seed(0)
    model = tf.BertModel(
        tf.BertConfig(**SIZE | {"initializer_range": 0.5}), add_pooling_layer=pooler
    ).eval()
    model.save_pretrained(folder)
    if weights == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tokenizer.save_pretrained(folder)
    return model, tokenizer
