"""RE-Control: the edit of the pre-logits reaches the tokens, and its parameters are checked."""

import math

import pytest
import torch

import aisp
from aisp.methods.value import ValueFunction


def test_editing_reaches_the_tokens_and_finds_what_the_value_function_likes(tiny):
    """With V(h) = w_token . h, the logit of one token, ascent makes the policy say that token."""
    policy = tiny()
    head = policy.model.get_output_embeddings().weight
    token = policy.tokenizer("e", add_special_tokens=False)["input_ids"][0]
    value = ValueFunction(32, 64)
    with torch.no_grad():  # relu(x) - relu(-x) = x, twice
        first, _, second, _, third = value.layers
        for layer in (first, second, third):
            layer.weight.zero_()
            layer.bias.zero_()
        first.weight[0], first.weight[1] = head[token], -head[token]
        second.weight[0, 0] = second.weight[1, 1] = 1.0
        third.weight[0, 0], third.weight[0, 1] = 1.0, -1.0
    h = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(value(h), h @ head[token])

    def share(prompt, response):
        return response.count("e") / 8

    size = dict(n=8, kappa=1, max_new_tokens=8, progress=False)
    rewards = []
    for step_size in (0.0, 0.5, 4.0):
        out = aisp.align(
            "Hi", policy, share, "re_control", value=value, steps=5, step_size=step_size, **size
        )
        rewards.append(out.candidates["reward"].mean())
        length = 5 * step_size * head[token].norm().item()
        assert out.history["edit"][0] == pytest.approx(length, rel=1e-3, abs=1e-6)
        gain = length * head[token].norm().item()
        assert out.history["value_gain"][0] == pytest.approx(gain, rel=1e-3, abs=1e-5)
    assert rewards[0] < rewards[1] < rewards[2] and rewards[2] > 0.9
    plain = aisp.align("Hi", policy, share, "best_of_n", **size)
    unedited = aisp.align("Hi", policy, share, "re_control", value=value, step_size=0.0, **size)
    assert plain.candidates["response"].tolist() == unedited.candidates["response"].tolist()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number >= 1"),
        ({"step_size": -0.1}, "step_size is -0.1; it must be >= 0"),
        ({"step_size": math.inf}, "step_size is inf"),
        ({"value": 3}, "value is 3; pass a ValueFunction"),
    ],
)
def test_bad_parameters_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        aisp.methods.configure("re_control", **bad)
