"""Recipes: how a thing was made, and following it."""

import functools

import pytest
import tiny

from aisp.experiment.studies import main_results
from aisp.policy import Policy
from aisp.recipe import Recipe, importable, imported, remembered


def test_a_recipe_makes_its_thing_again_and_stays_on_it():
    recipe = Recipe("on_ray:policy", name="gpt2")
    made = recipe.make()
    assert isinstance(made, Policy) and made.name == "tiny-gpt2" and made.recipe is recipe
    again = made.recipe.make()
    assert again.model is not made.model
    weight, other = (p.model.get_output_embeddings().weight for p in (made, again))
    assert weight.equal(other)
    assert "token" not in repr(Recipe("on_ray:policy", token="a secret"))


@pytest.mark.parametrize(
    "name", ["on_ray", "on_ray:", ":policy", "on_ray:nothing", "no.module:x", 3]
)
def test_what_cannot_be_imported_is_no_recipe(name):
    with pytest.raises(ValueError, match="a recipe names "):
        Recipe(name)


def test_functions_of_modules_are_importable_and_others_are_not():
    assert importable(tiny.reward, "it") == "tiny:reward" and imported("tiny:reward") is tiny.reward
    assert importable(Policy, "it") == "aisp.policy:Policy"
    assert importable(len, "it") == "builtins:len"

    def inside():
        pass

    for function in (inside, lambda: 0, functools.partial(tiny.reward), Policy.prefix.__get__(0)):
        with pytest.raises(ValueError, match=r"it is .* put it at the top level of a module"):
            importable(function, "it")


def test_a_recipe_on_a_number_is_no_error():
    assert remembered(3, Recipe("builtins:int")) == 3


def test_the_template_of_a_setting_says_how_to_make_it():
    template = main_results.template("User")
    messages = [{"role": "user", "content": "Hi"}]
    assert template.recipe.make()(messages) == template(messages) == "User: Hi\n\nAssistant:"
