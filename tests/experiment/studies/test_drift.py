"""Notebook 10: what the derivation predicts, against closed forms, a toy and hand-made records."""

import math

import numpy as np
import pandas as pd
import pytest

from aisp import experiment
from aisp.experiment.studies import ablations, drift


def record(label="AISP", ess=(4.0, 2.0, 8.0), kl=(0.0, 10.0, 40.0), **config):
    config = {"n": 8, "tau": 3, "lam": 0.5, "alpha": 0.9} | config
    history = {
        "iteration": [0, 1, 2],
        "ess": list(ess),
        "kl": list(kl),
        "reward_std": [1.0, 0.5, 0.0],
    }
    about = {"label": label, "prompt": "p", "seed": 0, "reward": 1.0, "interrupted": False}
    return about | {"config": config, "history": history}


def test_predictions_by_hand():
    failed = record() | {"reward": float("nan"), "history": {}}
    found = drift.predictions(pd.DataFrame([record(), failed]), d=10)
    assert len(found) == 3 and found["iteration"].tolist() == [1, 2, 3]
    D = 30
    np.testing.assert_allclose(found["kl_predicted"], [0, D / 8, D / 8 + D / 4])
    np.testing.assert_allclose(
        found["signal"], np.array([2, 1, 0]) * np.sqrt([4 / D, 2 / D, 8 / D])
    )
    spreads = [math.hypot(r / 0.5, 0.1 * math.sqrt(2 * k)) for r, k in ((1, 0), (0.5, 10), (0, 40))]
    np.testing.assert_allclose(found["ess_predicted"], drift.expected_ess(spreads, 8))
    means = drift.at_iterations(found, [2, 9])
    assert means.index.tolist() == [("AISP", 2)] and means["kl"].iloc[0] == 10


def test_the_effective_sample_size_of_normal_log_weights():
    none, some, huge = drift.expected_ess([0.0, 0.5, 200.0], 400)
    assert none == pytest.approx(400) and huge < 1.1
    assert some == pytest.approx(400 / math.exp(0.5**2), rel=0.02)  # E[w]^2 / E[w^2], large n
    falling = drift.expected_ess([0.5, 1.0, 2.0, 4.0], 16)
    assert falling == sorted(falling, reverse=True)


def test_on_the_toy_the_mean_drifts_as_predicted_and_the_variants_less():
    tau, d, n = 12, 200, 16
    toy = drift.on_a_toy(tau, d, n=n, kappa=12, runs=3)
    assert toy["label"].unique().tolist() == list(drift.VARIANTS)
    table = drift.toy_table(toy)
    shares = {
        "alpha 1": lambda ess: 1 / ess,
        "control variate": lambda ess: 1 / ess - 1 / n,
        "control variate, first steps": lambda ess: (1 / ess - 1 / n) / 3,
    }
    for label, share in shares.items():
        for history in toy[toy["label"] == label]["history"]:
            expected = tau * d / 2 * np.sum(share(np.array(history["ess"][:-1])))
            # 800 coordinates at least: 4 standard errors, and the signal besides
            assert abs(history["kl"][-1] / expected - 1) < 4 * (2 / 800) ** 0.5 + 0.05, label
    kl = table["KL, last (nats)"]
    assert kl["control variate, first steps"] < 0.5 * kl["control variate"] < 0.5 * kl["alpha 1"]
    # U = 0: the linear part is 0, and noise takes its price.
    assert table["reward, first"].to_numpy() == pytest.approx(-4e-4 * 0.5**2 * tau * d / 2)


def test_the_toy_in_sentences():
    def row(label, value, kl, ess):
        history = {"value": value, "kl": kl, "ess": ess}
        return {"label": label, "prompt": "run 0", "reward": 0.0, "history": history}

    toy = pd.DataFrame(
        [
            row("AISP", [0, 3, 1], [0, 5, 9], [8, 4, 2]),
            row("alpha 1", [0, 3, 4], [0, 5, 10], [8, 8, 8]),
            row("control variate", [0, 3, 5], [0, 4, 6], [8, 8, 8]),
            row("control variate, first steps", [0, 3, 6], [0, 1, 2], [8, 8, 8]),
        ]
    )
    one, two, three = drift.toy_sentences(toy)
    assert "rises from 0.0 to 3.0 and falls by 2.0 to 1.0" in one and "size of 2.0" in one
    assert "ends at 5.0" in two and "only at 6.0" in two
    assert "the KL by -40% and the reward by +1.0" in three
    toy.at[0, "history"] = {"value": [0, 1, 3], "kl": [0, 5, 9], "ess": [8, 4, 2]}
    assert "to 3.0 and ends there, at 3.0" in drift.toy_sentences(toy)[0]


def test_agreement_tells_how_far_off_the_predictions_are():
    found = drift.predictions(pd.DataFrame([record(kl=(0.0, 3.75, 9.0))]), d=10)
    said = drift.agreement(found)
    assert "Recorded over predicted KL: 0.90" in said[0]  # between 1.00 and 0.80
    off = (found["ess"] / found["ess_predicted"] - 1).abs()
    assert f"{off.median():.0%} in the median" in said[1]
    assert f"{found['signal'].median():.1%} of its noise" in said[2]


def test_the_figure_shows_the_long_runs_and_the_ends_of_alpha():
    chosen = {k: v for k, v in experiment.settings("cpu").items() if k != "n_prompts"}
    questions, methods = ablations.plan(chosen)
    labels = drift.labels_of(questions)
    assert labels[0] == "AISP, 512 samples" and labels[-2:] == ["alpha=0", "alpha=1"]
    assert len(set(labels)) == len(labels) and all(methods[x]["method"] == "aisp" for x in labels)
    assert not any(methods[x].get("adapt") is False for x in labels)
