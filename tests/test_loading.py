"""Loading: what is missing, not finite or no such thing is said, and nothing random is used."""

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES, tiny_model

from aisp import assets
from aisp.loading import load_tensors, require_finite, resolve_device
from aisp.policy import load_policy
from aisp.rewards import load_encoder, load_reward


@pytest.fixture
def saved(tmp_path, byte_tokenizer):
    """Saves a model and the byte tokenizer in a folder."""

    def save(model):
        model.save_pretrained(tmp_path)
        byte_tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return save


def bert(cls):
    torch.manual_seed(0)
    size = dict(vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    return cls(tf.BertConfig(**size, num_attention_heads=4))


@pytest.mark.parametrize("kind", ["encoder", "backbone"])
def test_a_model_without_a_head_is_no_policy(saved, kind):
    folder = saved(bert(tf.BertModel) if kind == "encoder" else tiny_model("llama").model)
    weight = "cls.predictions" if kind == "encoder" else r"lm_head\.weight"
    with pytest.raises(ValueError, match=rf"has no weights for {weight}.*would stay random: it is"):
        load_policy(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tied_and_untied_heads_are_loaded(saved, architecture):
    model = tiny_model(architecture)
    policy = load_policy(saved(model), device="cpu", dtype="float32")
    head = policy.model.get_output_embeddings().weight
    assert torch.equal(head, model.get_output_embeddings().weight.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(saved, value):
    folder = saved(tiny_model("llama"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4:6] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    name = r"model\.layers\.1\.mlp\.up_proj\.weight"
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(ValueError, match=rf"has 2 of 2048 numbers in {name} that are NaN or"):
            load_policy(folder, device="cpu", dtype=dtype)


def test_rewards_and_encoders_must_be_finite_too(saved, tmp_path):
    model = tf.AutoModelForSequenceClassification.from_config(
        tf.LlamaConfig(**tiny_model("llama").config.to_diff_dict() | {"num_labels": 1})
    )
    with torch.no_grad():
        model.score.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"1 of 32 numbers in score\.weight"):
        load_reward(saved(model), device="cpu", dtype="float32")
    encoder = bert(tf.BertModel)
    with torch.no_grad():
        encoder.pooler.dense.bias[:] = float("inf")
    with pytest.raises(ValueError, match=r"32 of 32 numbers in pooler\.dense\.bias"):
        load_encoder(saved(encoder), pooling="mean")


def test_the_check_passes_over_what_it_cannot_tell():
    whole = torch.tensor([1, 2])
    absent = torch.full((2,), float("nan"), device="meta")
    require_finite([("ids", whole), ("absent", absent), ("none", torch.empty(0))], "model")
    largest = torch.tensor([torch.finfo(torch.bfloat16).max], dtype=torch.bfloat16)
    require_finite([("largest", largest)], "model")  # a sum would overflow
    with pytest.raises(ValueError, match="model has 1 of 2 numbers in b that are NaN"):
        require_finite([("a", largest), ("b", torch.tensor([1.0, float("nan")]))], "model")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_folder_without_tokenizer_says_so(tmp_path, architecture):
    """transformers makes an empty one for GPT-2 and fails for Llama."""
    tiny_model(architecture).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has a model but no tokenizer.*tokenizer\.json"):
        load_policy(tmp_path, device="cpu", dtype="float32")


def test_a_damaged_embedded_model_is_said_to_be_one(tmp_path, saved, monkeypatch):
    folder = saved(tiny_model("llama"))
    monkeypatch.setattr(assets, "policy_dir", lambda: folder)
    assert load_policy("embedded", device="cpu", dtype="float32").is_embedded
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(b"#" * len(data))
        with pytest.raises(ValueError, match=r"the embedded model at .*python -m aisp\.assets"):
            load_policy("embedded", device="cpu", dtype="float32")
        (folder / name).write_bytes(data)


def test_devices_that_are_not_there():
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device is 3\.5"):
        resolve_device(3.5)
    for load in (load_policy, load_reward, load_encoder):
        with pytest.raises(ValueError, match=r"device is 'gpu', which torch .* available: cpu"):
            load("embedded", device="gpu")
        for there_is_none in ("cuda:99", "xpu:99", "mps:99"):
            found = (
                rf"device is '{there_is_none}', which this torch does not find .* available: cpu"
            )
            with pytest.raises(ValueError, match=found):
                load("embedded", device=there_is_none)


def test_the_devices_of_this_machine_are_listed(monkeypatch):
    """As on a machine with two of a kind."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert resolve_device("xpu").type == "xpu" and resolve_device("xpu:1").index == 1
    for given in ("xpu:2", "mps", "cuda"):
        with pytest.raises(ValueError, match=f"device is '{given}'.*available: cpu, xpu:0, xpu:1"):
            resolve_device(given)


def test_tensors_of_a_file(tmp_path):
    path = tmp_path / "part.safetensors"
    save_file({"w": torch.ones(2)}, path, metadata={"head": "x"})
    tensors, metadata = load_tensors(path, "judge")
    assert tensors["w"].tolist() == [1, 1] and metadata == {"head": "x"}
    save_file({"w": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(ValueError, match=r"the judge at .* has 1 of 2 numbers in w"):
        load_tensors(path, "judge")
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot read the judge at .*Fetch the file again"):
        load_tensors(path, "judge")
    with pytest.raises(ValueError, match="cannot read the judge"):
        load_tensors(tmp_path / "none", "judge")
