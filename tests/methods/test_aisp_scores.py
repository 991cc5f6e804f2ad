"""AISP by exact scores under its own name: MISVO with options set, as notebook 11 compares it."""

from tiny import reward

import aisp
from aisp.experiment.studies import contenders
from aisp.methods import configure


def test_it_is_misvo_with_the_weights_of_aisp(tiny):
    budget = dict(n=6, kappa=3, max_new_tokens=5)
    named = aisp.align("Hi", tiny(), reward, "aisp_scores", progress=False, **budget)
    options = dict(weights="softmax", regularization="none", step_size=1.0, temperature=0.65)
    same = aisp.align("Hi", tiny(), reward, "misvo", progress=False, **budget, **options)
    assert named.candidates.equals(same.candidates)
    assert named.history.drop(columns="seconds").equals(same.history.drop(columns="seconds"))
    assert named.method == "aisp_scores" and named.config.describe() == same.config.describe()


def test_its_defaults_are_what_notebook_11_measured():
    row = contenders.CONTENDERS[contenders.SCORES]
    tuned = {contenders.SCORES: 1.0, contenders.BEST: 0.65}
    measured = contenders.rows({"n": 16, "kappa": 8}, tuned, [contenders.SCORES])
    assert configure(**measured[contenders.SCORES]) == configure(
        "misvo",
        **{
            k: getattr(configure("aisp_scores", n=16, kappa=8), k)
            for k in ("n", "kappa", "step_size", "regularization", "weights", "temperature")
        },
    )
    assert row.dial == "step_size"
