"""What reaches other processes: recipes and plain values, and never weights."""

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from on_ray import Lengths, named, policy

import aisp
from aisp.experiment import identity
from aisp.experiment.spread import travel
from aisp.experiment.spread.travel import Unpacker, packed
from aisp.experiment.studies import main_results
from aisp.recipe import Recipe


def sent(value):
    """What arrives, and how many bytes went."""
    content = pickle.dumps(packed(value, "it"))
    return Unpacker().of(pickle.loads(content)), len(content)


def test_plain_values_arrive_as_they_are():
    value = {"a": [1, 2.5, None], "b": (True, "x", Path("y")), "c": torch.bfloat16}
    assert sent(value)[0] == value
    assert sent(tiny.reward)[0] is tiny.reward
    assert sent(torch.device("cpu"))[0] == torch.device("cpu")


def test_the_embedded_policy_and_reward_arrive_as_recipes_and_share_their_weights(embedded):
    reward = aisp.load_reward("embedded", policy=embedded)
    bare = replace(embedded, template="continuation")  # as KAD's
    (there, scored), size = sent([bare, reward])
    assert size < 10_000 and there.model is not embedded.model
    assert (there.template, there.dtype, there.name) == ("continuation", torch.float32, "embedded")
    assert scored.policy.model is there.model and scored.policy.template == "chat"
    assert identity.made_with(there, scored, {"x": aisp.methods.configure("aisp")}) == (
        identity.made_with(bare, reward, {"x": aisp.methods.configure("aisp")})
    )


def test_a_recipe_on_a_thing_does_not_change_what_records_say_of_it():
    plain, recipe = Lengths(), Recipe("on_ray:Lengths")
    assert identity.told_of_reward(plain) == identity.told_of_reward(recipe.make())
    template = main_results.template("Human")
    one = replace(policy(), template=template)
    before = identity.made_with(one, len, {"x": aisp.methods.configure("aisp")})
    del template.recipe
    assert identity.made_with(one, len, {"x": aisp.methods.configure("aisp")}) == before


def test_templates_and_names_arrive_too():
    one = replace(
        Recipe("on_ray:policy").make(), template=main_results.template("User"), name="mine"
    )
    there, _ = sent(one)
    assert there.name == "mine" and there.prefix("Hi") == one.prefix("Hi")
    scored, _ = sent(named(tiny.reward))
    assert scored.name == "reward" and scored.named and scored.function is tiny.reward


@pytest.mark.parametrize(
    "value, said",
    [
        (policy(), r"it \(tiny-llama\) does not say how it was loaded.*aisp.load_policy\(name\)"),
        (lambda p, r: 1.0, r"it is <function .*top level of a module"),
        (named(lambda p, r: 1.0), "top level of a module"),
        (Lengths(), r"it is a Lengths, and objects .*Pass Recipe\('module:function'"),
        (torch.nn.Linear(1, 1), "it is a Linear, and objects with weights"),
        ({"x": [torch.zeros(1)]}, "something in 'x' of it is a Tensor"),
    ],
)
def test_what_cannot_travel_says_what_to_do(value, said):
    with pytest.raises(ValueError, match=said):
        packed(value, "it")


def test_a_policy_of_another_engine_is_refused():
    remote = SimpleNamespace(engine="vllm 0.32.0", recipe=None)
    with pytest.raises(ValueError, match=r"decoded by vllm 0\.32\.0.*leave out workers"):
        travel._policy(remote, "it")
