"""The questions of notebook 07: fair controls, right numbers, and long runs cut at smaller budgets."""

import numpy as np
import pandas as pd
import pytest

import aisp
from aisp import experiment, intervals, metrics
from aisp.experiment.studies import ablations
from aisp.methods import configure
from aisp.rewards import CallableReward

BUDGETS = [experiment.settings(profile) for profile in experiment.PROFILES]
BUDGETS = [{k: v for k, v in b.items() if k != "n_prompts"} for b in BUDGETS]


@pytest.mark.parametrize("budget", BUDGETS, ids=list(experiment.PROFILES))
def test_every_label_runs_and_a_control_differs_in_adaptation_only(budget):
    questions, methods = ablations.plan(budget, longer=4)
    configs = {label: configure(**m).describe() for label, m in methods.items()}
    first = {label + ablations.FIRST for label in questions["budget"].labels}
    assert {x for q in questions.values() for x in q.labels} == set(methods) | first
    for label in first:
        long = configs[label.removesuffix(ablations.FIRST)]
        configs[label] = long | {"kappa": budget["kappa"]}
    size = budget["n"] * budget["kappa"]
    for name, question in questions.items():
        for series in question.settings.values():
            sizes = {configs[x]["n"] * configs[x]["kappa"] for x in series.values()}
            assert sizes == {4 * size if name in ("budget", "drift") else size}, series
            if ablations.NOISE in series:
                ours, control = (configs[series[x]] for x in (ablations.AISP, ablations.NOISE))
                differ = {k for k in ours if ours[k] != control[k]}
                # Without adaptation, lam and alpha change no response, and no split does.
                assert "adapt" in differ <= {"adapt", "lam", "alpha", "n", "kappa"}, series


def fake(labels, config):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "label": label,
                "config": config[label],
                "prompt": f"p{p}",
                "seed": 0,
                "reward": rng.normal(),
                "samples": 1,
                "reward_calls": 1,
                "tokens": 1,
                "seconds": 1.0,
            }
            for label in labels
            for p in range(5)
        ]
    )


def test_the_questions_are_found_again_in_their_records():
    for given in ({}, {"sigma": 0.3, "lam": 0.2, "alpha": 0.9, "longer": 4}):
        questions, methods = ablations.plan(BUDGETS[1], **given)
        config = {label: configure(**m).describe() for label, m in methods.items()}
        assert ablations.questions_of(fake(methods, config)) == (questions, BUDGETS[1]["kappa"])


def test_answers_are_means_and_paired_differences():
    question = ablations.Question(
        "x", {"1": {"AISP": "a", "noise only": "b"}, "2": {"best-of-n": "c"}}
    )
    records = fake("abc", {key: {} for key in "abc"})
    mean = {label: of["reward"].to_numpy() for label, of in records.groupby("label")}
    out = ablations.answers(records, question)
    assert out.loc["1", "AISP"] == pytest.approx(mean["a"].mean())
    assert out.loc["2", "best-of-n"] == pytest.approx(mean["c"].mean())
    assert out.loc["1", "difference"] == pytest.approx((mean["a"] - mean["b"]).mean())
    low, high = intervals.bootstrap(mean["a"] - mean["b"])
    assert out.loc["1", ["low", "high", "verdict"]].tolist() == [low, high, "undecided"]
    assert np.isnan(out.loc["2", "difference"]) and np.isnan(out.loc["1", "best-of-n"])


def test_long_runs_are_judged_at_every_budget(tiny, tmp_path):
    questions, methods = ablations.plan({"n": 2, "kappa": 2, "max_new_tokens": 5}, longer=2)
    policy, prompts = tiny(), aisp.load_prompts("builtin", split="dev", limit=2)
    long = {label: methods[label] for label in questions["budget"].labels}
    records = experiment.run(
        tmp_path / "r.jsonl", long, prompts, policy, lambda p, r: len(set(r)), progress=False
    )
    judge = CallableReward(lambda prompt, response: -len(response))
    out = ablations.by_budget(records, questions["budget"], prompts, policy, judge)
    assert out["samples"].value_counts().to_dict() == {2: 6, 4: 6, 8: 6}  # 3 series x 2 prompts
    full = out[(out["samples"] == 8) & (out["label"] == "AISP")].set_index("prompt")
    ours = records[records["label"] == questions["budget"].labels[0]].set_index("prompt")
    for p in prompts:
        assert full["reward"][p.id] == ours["reward"][p.id]
        assert full["judged"][p.id] == -len(ours["response"][p.id])
        expected = metrics.surprisal(policy, [p], [ours["response"][p.id]]).item()
        assert full["surprisal"][p.id] == pytest.approx(expected)
    assert "response" not in out
    whole = ablations.with_first_parts(records, questions, 2)
    base = whole[whole["label"] == questions["alpha"].settings["0.99"]["AISP"]]
    assert base["samples"].tolist() == [4, 4]
    two = out[(out["samples"] == 4) & (out["label"] == "AISP")]
    assert sorted(base["reward"]) == sorted(two["reward"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sigma": "1e-1"}, "sigma is '1e-1'; it must be > 0 and finite.*without quotes: 0.1"),
        ({"lam": 0}, "lam is 0; it must be > 0 and finite"),
        ({"alpha": True}, r"alpha is True; it must lie in \[0, 1\]"),
        ({"longer": 1.5}, "longer is 1.5; it must be a whole number >= 1"),
    ],
)
def test_a_plan_with_bad_numbers_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ablations.plan(BUDGETS[0], **wrong)
