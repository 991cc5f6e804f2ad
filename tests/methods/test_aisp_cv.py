"""The variant under its own name: AISP with three options set."""

import pytest
from tiny import reward

import aisp
from aisp.methods import configure
from aisp.sampler import AISPConfig


def test_it_is_aisp_with_three_options(tiny):
    budget = dict(n=6, kappa=3, max_new_tokens=9, sigma=0.8)
    named = aisp.align("Hi", tiny(), reward, "aisp_cv", progress=False, **budget)
    options = dict(alpha=1.0, control_variate=True, steered=3)
    same = aisp.align("Hi", tiny(), reward, "aisp", progress=False, **budget, **options)
    assert named.candidates.equals(same.candidates)
    assert named.history.drop(columns="seconds").equals(same.history.drop(columns="seconds"))
    plain = aisp.align("Hi", tiny(), reward, "aisp", progress=False, **budget)
    assert not named.candidates.equals(plain.candidates)
    assert named.method == "aisp_cv" and named.config.describe() == same.config.describe()


@pytest.mark.parametrize(
    ("given", "steered"),
    [
        (dict(max_new_tokens=48), 16),
        (dict(max_new_tokens=2), 1),
        (dict(max_new_tokens=48, tau=8), 8),
        (dict(max_new_tokens=48, steered=5), 5),
    ],
)
def test_the_mean_moves_at_the_first_third_of_the_steps(given, steered):
    config = configure("aisp_cv", **given)
    assert config.steered == steered and isinstance(config, AISPConfig)
    assert configure("aisp", **given | {"steered": None}).steered is None
