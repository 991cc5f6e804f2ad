"""The sentence encoder: each pooling against a plain forward pass, limits, and what is refused."""

import warnings

import pytest
import torch
import transformers as tf
from tiny import save_encoder
from torch.nn.functional import normalize

from aisp import assets
from aisp.rewards.encoder import load_encoder

TEXTS = ["short", "a somewhat longer text", "", "x" * 40]


@pytest.fixture(scope="module")
def embedded_encoder():
    return load_encoder()


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_poolings_are_what_they_say(tmp_path, byte_tokenizer, pooling, weights):
    model, tokenizer = save_encoder(tmp_path, byte_tokenizer, weights)
    texts = ["short", "a somewhat longer text", "x" * 40]
    encoder = load_encoder(tmp_path, pooling=pooling)
    encoder.tokenizer.padding_side = "left"  # must not move the first token
    got = encoder.embed(texts, batch_size=2)
    for row, text in zip(got, texts, strict=True):
        with torch.no_grad():
            out = model(torch.tensor([tokenizer(text)["input_ids"]]))
        hidden = out.last_hidden_state[0]
        expected = {"mean": hidden.mean(0), "cls": hidden[0], "pooler": out.pooler_output[0]}
        assert torch.allclose(row, normalize(expected[pooling], dim=0), atol=1e-5)
    assert got.shape == (3, 32) and got.dtype == torch.float32
    assert torch.allclose(got.norm(dim=1), torch.ones(3), atol=1e-6)
    assert (encoder.name, encoder.max_length) == (str(tmp_path), 48)


def test_the_embedded_encoder_is_minilm_with_mean_pooling(embedded_encoder):
    folder = assets.encoder_dir()
    model = tf.AutoModel.from_pretrained(folder).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    got = embedded_encoder.embed(TEXTS, batch_size=3)
    for row, text in zip(got, TEXTS, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert torch.allclose(row, normalize(hidden.mean(0), dim=0), atol=1e-5)
    assert got.shape == (4, 384) and embedded_encoder.max_length == 256
    assert embedded_encoder.name == "embedded" and not embedded_encoder.model.training


def test_what_is_too_long_is_cut_with_a_warning(tmp_path, byte_tokenizer):
    save_encoder(tmp_path, byte_tokenizer)
    encoder = load_encoder(tmp_path, pooling="mean", max_length=10)
    with pytest.warns(UserWarning, match="2 of 3 texts are longer than the 10 tokens"):
        got = encoder.embed(["0123456789", "0123456789abc", "0123456789xyz"])
    assert torch.allclose(got[0], got[1], atol=1e-6) and torch.allclose(got[1], got[2], atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.embed(["0123456789"])


def test_what_is_refused(tmp_path, byte_tokenizer):
    save_encoder(tmp_path, byte_tokenizer, pooler=False)
    assert load_encoder(tmp_path, pooling="cls").embed(["a"]).shape == (1, 32)
    with pytest.raises(ValueError, match=r"no weights for pooler\.dense\.bias"):
        load_encoder(tmp_path, pooling="pooler")
    with pytest.raises(ValueError, match=r"pooling of .* is None; choose .*'pooler' .supervised"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match="is 'max'; choose"):
        load_encoder("embedded", pooling="max")
    for length in (0, 1, 49):
        with pytest.raises(
            ValueError, match=f"max_length is {length}; .* from 2 to 48: what .* takes"
        ):
            load_encoder(tmp_path, pooling="mean", max_length=length)
    with pytest.raises(ValueError, match="cannot load 'no-such/encoder'"):
        load_encoder("no-such/encoder", pooling="mean")
