"""A stored value function: the same after loading, and refused where it does not fit."""

import pytest
import torch

from aisp.methods.value import ValueFunction, load_value


def test_a_saved_value_function_is_the_same(tmp_path, tiny):
    value = ValueFunction(32, 7, torch.Generator().manual_seed(1))
    value.scale.fill_(2.0)
    value.save(tmp_path / "v.safetensors")
    loaded = load_value(tmp_path / "v.safetensors", tiny())
    h = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    assert torch.equal(value(h), loaded(h)) and loaded.name == str(tmp_path / "v.safetensors")
    with pytest.raises(
        ValueError, match=r"there is no value function at .*none.st; .*aisp.training.value"
    ):
        load_value(tmp_path / "none.st", tiny())
    with pytest.raises(ValueError, match="width 5; those of tiny-llama have 32"):
        load_value(ValueFunction(5), tiny())


def test_a_file_that_holds_no_value_function(tmp_path, tiny):
    from safetensors.torch import save_file

    path = tmp_path / "v.safetensors"
    save_file({"w": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"v\.safetensors' holds no value function: 'layers"):
        load_value(path, tiny())
    value = ValueFunction(tiny().d, 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        value.layers[0].weight[0, 0] = float("nan")
    value.save(path)
    with pytest.raises(ValueError, match=r"1 of 128 numbers in layers\.0\.weight that are NaN"):
        load_value(path, tiny())
    path.write_bytes(b"no such format")
    with pytest.raises(ValueError, match="cannot read the value function at"):
        load_value(path, tiny())
    for wrong in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"width is {wrong}; it must be a whole number >= 1"):
            ValueFunction(4, wrong)
