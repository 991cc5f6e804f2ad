"""Every model, reward and data set of notebooks/params, on the hub, is as the code reads it.

No weights are downloaded. What is said of each stands below "PASSES". Gated models need a token.
"""

import pytest

from aisp.experiment.hub import check_pin, closed, ids, uses
from aisp.experiment.hub_checks import check_policy, check_prompts, check_reward
from aisp.preference_data import HUB

pytestmark = pytest.mark.hub
POLICIES, REWARDS = uses()


def readable(kind, id):
    if why := closed(kind, id):
        pytest.skip(why)


@pytest.mark.parametrize(("kind", "id"), ids())
def test_it_is_pinned_to_a_commit(kind, id):
    check_pin(kind, id)


@pytest.mark.parametrize("use", POLICIES, ids=lambda use: f"{use.id}, {use.engine}")
def test_policy(use):
    readable("model", use.id)
    how = {"template": use.template, "use_safetensors": use.use_safetensors, "engine": use.engine}
    print(check_policy(use.id, **how))


@pytest.mark.parametrize("id", REWARDS)
def test_reward(id):
    readable("model", id)
    found = check_reward(id)
    print(found)
    assert found["reads"] != "text pair", "a decoder was trained on a template; pass format="


@pytest.mark.parametrize("source", sorted(HUB))
def test_data_set(source):
    readable("dataset", HUB[source][0])
    print(check_prompts(source))
