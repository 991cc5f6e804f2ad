"""Digests of weights: every change shows, and nothing else does."""

import copy

import pytest
import torch
from torch import nn

from aisp.experiment.identity import weights
from aisp.experiment.identity.weights import tensor_digest, weights_sha256


def bits_changed(tensor, index, bit):
    changed = tensor.clone()
    view = changed.view(-1).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])
    view[index] ^= 1 << bit
    return changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_changed_bit_shows(dtype, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", 15)  # several numbers per tensor
    tensor = torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype)
    digests = {tensor_digest(tensor)}
    digests |= {tensor_digest(bits_changed(tensor, i, b)) for i in range(50) for b in range(15)}
    assert len(digests) == 1 + 50 * 15


def test_order_shape_and_dtype_show_also_where_sums_do_not():
    mask, other = torch.tensor([1.0, 0, 0, 1]), torch.tensor([0.0, 1, 1, 0])
    same_bits = torch.tensor([1.0, 0, 0, 1]).view(torch.int32)
    variants = [mask, other, mask.view(2, 2), same_bits, mask.flip(0)[:3], mask.bfloat16()]
    assert len({tensor_digest(x) for x in variants}) == len(variants)
    assert tensor_digest(torch.tensor([0.0])) != tensor_digest(torch.tensor([-0.0]))
    square = torch.arange(6.0).view(2, 3)
    assert tensor_digest(square.T) == tensor_digest(square.T.contiguous())
    empty = [torch.zeros(0), torch.zeros(0, 3), torch.zeros((), dtype=torch.complex64)]
    assert len({tensor_digest(x) for x in empty}) == 3


def test_a_models_digest_is_of_names_and_weights(tiny):
    model = tiny("gpt2").model  # with a tied head
    first = weights_sha256(model)
    twin = copy.deepcopy(model)
    assert weights_sha256(twin) == first
    with torch.no_grad():
        twin.transformer.h[1].attn.c_proj.weight[3, 5].mul_(1.001)
    assert weights_sha256(twin) != first
    a, b = nn.Linear(2, 2), nn.Bilinear(2, 2, 2)
    renamed = nn.ModuleDict({"a": a, "b": b}), nn.ModuleDict({"b": a, "a": b})
    assert weights_sha256(renamed[0]) != weights_sha256(renamed[1])


def test_provenance_names_the_file_that_lies_in_the_cache(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from aisp import assets
    from aisp.provenance import file_sha256

    monkeypatch.setenv("AISP_CACHE", str(tmp_path))
    stored = tmp_path / assets.POLICY_FOLDER / "model.safetensors"
    stored.parent.mkdir()
    stored.write_bytes(b"something else")  # overwritten, with the good manifest beside it
    policy = SimpleNamespace(name="embedded", model=nn.Linear(1, 1))
    assert weights.weight_files(policy) == {"model.safetensors": file_sha256(stored)}


def test_weights_that_are_kept_elsewhere_are_told_by_name():
    with torch.device("meta"):
        model = nn.Linear(2, 3)
    assert weights_sha256(model) == weights_sha256(model) != weights_sha256(nn.Linear(2, 3))
