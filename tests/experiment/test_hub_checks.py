"""What is checked of checkpoints on the hub, on small ones in a folder, good and bad."""

import copy
import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers as tf
from safetensors import safe_open
from tiny import (
    ARCHITECTURES,
    SIZE,
    llama,
    save_classifier,
    save_reward_model,
    tiny_model,
    with_first_token,
)

from aisp import pins
from aisp.experiment.hub_checks import check_policy, check_prompts, check_reward

FEW = SIZE | {"num_key_value_heads": 2, "num_hidden_layers": 2}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# The classes of configuration of the models in notebooks/params, where `tiny_model` has no small one.
CONFIGS = {
    "Qwen3ForCausalLM": lambda: tf.Qwen3Config(**FEW, head_dim=8),
    "MistralForCausalLM": lambda: tf.MistralConfig(**FEW, sliding_window=None),
    "Gemma3ForConditionalGeneration": lambda: tf.Gemma3Config(
        text_config=FEW | {"head_dim": 8, "sliding_window": 8},
        vision_config=VISION,
        mm_tokens_per_image=4,
    ),
}


@pytest.fixture
def saved(tmp_path, byte_tokenizer):
    """Saves a model, and a tokenizer with a chat template."""

    def save(model, tokenizer=byte_tokenizer):
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return save


def without_template(tokenizer, template=None):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_policy_is_decoded_by_the_engine_without_its_weights(saved, architecture):
    model = tiny_model(architecture)
    found = check_policy(saved(model), template="chat")
    assert found["class"] == type(model).__name__ and found["d"] == 32
    assert found["file"] == "model.safetensors"
    assert found["obstacle to sharing"] is None


@pytest.mark.parametrize("name", CONFIGS)
def test_the_architectures_of_the_params(saved, name):
    torch.manual_seed(0)
    folder = saved(tf.AutoModelForCausalLM.from_config(CONFIGS[name]()))
    found = check_policy(folder, template="User")
    assert found["class"] == name
    assert found["obstacle to sharing"] is None


def test_a_policy_that_decodes_without_shared_prefixes_is_told(saved):
    model = tf.Gemma2ForCausalLM(tf.Gemma2Config(**FEW, head_dim=8))
    assert "soft-capped" in check_policy(saved(model))["obstacle to sharing"]


def test_real_sizes_take_no_memory(saved, monkeypatch):
    """Llama 3 8B's configuration, with the names of its weights in an index."""
    folder = saved(llama())
    config = tf.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    config.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "a"}}))
    assert check_policy(folder) == {
        "class": "LlamaForCausalLM",
        "d": 4096,
        "file": index.name,
        "obstacle to sharing": None,
    }


def test_weights_must_be_in_the_files_that_are_read(saved):
    folder = saved(tiny_model("llama"))
    told = r"has no pytorch_model\.bin.*use_safetensors=False .* weights are in model\.safetensors"
    with pytest.raises(ValueError, match=told):
        check_policy(folder, use_safetensors=False)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors.*are in no file"):
        check_policy(folder)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "a.bin"}}))
    assert check_policy(folder, use_safetensors=False)["file"] == index.name
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"has no model\.safetensors.*are in pytorch_model\.bin"):
        check_policy(folder)


def test_a_backbone_is_no_policy(saved):
    with pytest.raises(ValueError, match=r"no weights for its output embeddings \(lm_head\.weight"):
        check_policy(saved(tiny_model("llama").model))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "no-such-model"}, "its configuration cannot be read: .*no-such-model"),
        ({"model_type": "vit"}, "no AutoModelForCausalLM can be built: .*ViTConfig"),
        (
            {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 258},
            r"\(MambaForCausalLM\) cannot be decoded by aisp\.engine",
        ),
        (
            {
                "model_type": "openai-gpt",
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 4,
                "vocab_size": 258,
            },
            r"aisp\.engine: its cache holds 0 of 4 tokens: the model does not use it",
        ),
    ],
    ids=["unknown", "other", "another cache", "no cache"],
)
def test_an_architecture_that_cannot_be_a_policy(tmp_path, byte_tokenizer, config, told):
    byte_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=told):
        check_policy(tmp_path)


def test_the_template_must_be_there_and_take_a_dialogue(saved, byte_tokenizer):
    model = tiny_model("llama")
    folder = saved(model, without_template(byte_tokenizer))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="has no chat template"):
        check_policy(folder, template="chat")
    check_policy(folder, template="Human")
    check_policy(folder)
    refusing = "{% if messages[1:] %}{{ raise_exception('one turn only') }}{% endif %}"
    folder = saved(model, without_template(byte_tokenizer, refusing))
    with pytest.raises(ValueError, match=r"'chat' does not take a dialogue .*: one turn only"):
        check_policy(folder, template="chat")


def test_vllm_refuses_capped_logits_as_it_will(saved):
    folder = saved(tiny_model("gemma3"))
    with pytest.raises(ValueError, match="caps its logits, which engine 'vllm' cannot"):
        check_policy(folder, engine="vllm")


def test_a_model_without_a_tokenizer(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"its tokenizer cannot be loaded"):
        check_policy(tmp_path)
    tiny_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer|its tokenizer cannot be loaded"):
        check_policy(tmp_path)


# Rewards


@pytest.mark.parametrize("kind", ["ultrarm", "eurus"])
@pytest.mark.parametrize(
    ("weights", "file"),
    [
        ("safetensors", "model.safetensors"),
        ("bin", "pytorch_model.bin"),
        ("shards", "pytorch_model.bin.index.json"),
    ],
)
def test_public_reward_models(tmp_path, byte_tokenizer, kind, weights, file):
    save_reward_model(tmp_path, with_first_token(byte_tokenizer), kind, weights)
    found = check_reward(tmp_path)
    assert found["file"] == file and found["reads"] == f"{kind}_format"
    assert found["class"].endswith("ForSequenceClassification")


@pytest.mark.parametrize("weights", ["safetensors", "shards"])
def test_a_reward_model_without_its_head(tmp_path, byte_tokenizer, weights):
    save_reward_model(tmp_path, with_first_token(byte_tokenizer), "ultrarm", weights, head=False)
    with pytest.raises(
        ValueError, match=r"has no weights for regression_head\.weight in .*: it is"
    ):
        check_reward(tmp_path)


def test_a_reward_model_that_reads_another_text_than_its_card_shows(tmp_path, byte_tokenizer):
    save_reward_model(tmp_path, with_first_token(byte_tokenizer), "ultrarm")
    card = tmp_path / "README.md"
    card.write_text('template = """Human: {instruction}\n\nAssistant: {completion}"""\n')
    check_reward(tmp_path)
    card.write_text('template = """Human: {instruction}\nAssistant: {completion}"""\n')
    with pytest.raises(
        ValueError, match=r"its card does not show '\\n\\nAssistant: ', which ultra"
    ):
        check_reward(tmp_path)
    save_reward_model(tmp_path, byte_tokenizer, "eurus")
    with pytest.raises(ValueError, match="does not put the beginning-of-text token first"):
        check_reward(tmp_path)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_a_sequence_classifier(tmp_path, byte_tokenizer, architecture):
    save_classifier(tmp_path, byte_tokenizer, architecture)
    assert check_reward(tmp_path)["reads"] == "chat template"
    (tmp_path / "chat_template.jinja").unlink()
    assert check_reward(tmp_path)["reads"] == "text pair"


def test_what_is_no_reward_model(tmp_path, byte_tokenizer):
    save_classifier(tmp_path, byte_tokenizer, labels=2)
    with pytest.raises(ValueError, match="has 2 outputs; a reward model has 1"):
        check_reward(tmp_path)
    llama(num_labels=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no weights for score\.weight in model\.safetensors"):
        check_reward(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has no model\.safetensors.*are in pytorch_model\.bin"):
        check_reward(tmp_path)


# On the hub


def test_an_id_is_checked_at_its_commit(hub_cache, byte_tokenizer, monkeypatch):
    """The hub's answers are made up; configuration, tokenizer and card come from its cache."""
    commit, id = "0123456789abcdef0123456789abcdef01234567", "org/reward"
    folder = hub_cache(id, commit)
    save_reward_model(folder, with_first_token(byte_tokenizer), "ultrarm")
    (folder / "README.md").write_text("Human: {instruction}\n\nAssistant: {completion}")
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        held = SimpleNamespace(weight_map=dict.fromkeys(tensors.keys(), "model.safetensors"))
    asked = []

    def listing(self, id, revision):
        asked.append((id, revision))
        return [path.name for path in folder.iterdir()]

    def metadata(id, revision):
        asked.append((id, revision))
        return held

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listing)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", metadata)
    monkeypatch.setattr(pins, "pins", lambda: {"model": {id: {"revision": commit}}})
    found = check_reward(id)
    assert found["file"] == "model.safetensors" and found["reads"] == "ultrarm_format"
    assert len(asked) > 1 and set(asked) == {(id, commit)}
    del held.weight_map["regression_head.weight"]
    with pytest.raises(ValueError, match=r"org/reward has no weights for regression_head\.weight"):
        check_reward(id)


# Data sets


@pytest.fixture
def rows(monkeypatch):
    """What the hub has, the same in every split."""
    datasets = pytest.importorskip("datasets")
    found = []

    def load(name, *, streaming, **place):
        assert streaming, "the whole data set would be downloaded"
        return datasets.Dataset.from_list(found).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    return found


def test_the_first_rows_of_every_split_are_read(rows):
    rows += [{"post_id": str(i // 2), "history": "Why?", "labels": 1} for i in range(30)]
    assert check_prompts("shp") == {"train": 10, "validation": 10, "test": 10}


@pytest.mark.parametrize(
    ("source", "row", "told"),
    [
        ("shp", {"post_id": "a", "text": "Why?"}, r"SHP \(train\): its fields post_id, history "),
        (
            "shp",
            {"post_id": 1, "history": "Why?"},
            r"SHP \(train\): its rows .*`post_id` is 1, not",
        ),
        ("hh", {"chosen": "Human said"}, r"hh-rlhf \(train\): its rows .*must begin with 'Human:'"),
        (
            "ifeval",
            {"key": 1, "prompt": "Hi"},
            r"IFEval \(train\): its fields .*instruction_id_list",
        ),
    ],
)
def test_other_columns_or_contents(rows, source, row, told):
    rows.append(row)
    with pytest.raises(ValueError, match=told):
        check_prompts(source)
