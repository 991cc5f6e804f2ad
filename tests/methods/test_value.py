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
        ValueError, match=r"there is no value function 'none.st' .*aisp.training.value"
    ):
        load_value(tmp_path / "none.st", tiny())
    with pytest.raises(ValueError, match="width 5; those of tiny-llama have 32"):
        load_value(ValueFunction(5), tiny())
