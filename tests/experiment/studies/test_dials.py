"""What the ablations say: dial by dial, along the iterations, along the budget."""

import numpy as np
import pandas as pd
import pytest

from aisp import experiment
from aisp.experiment.studies import ablations, dials
from aisp.experiment.studies.ablations import AISP, NOISE, Question

QUESTION = Question(
    "sigma (lam = 2)",
    {"0.2": {AISP: "a", NOISE: "b"}, "0.5": {AISP: "c", NOISE: "d"}, "T": {"best-of-n": "e"}},
    "0.5",
)


def records(**means):
    """Rewards with these means on 8 prompts, and histories of three iterations."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(5, 8)) / 10
    rows = []
    for label, jitter in zip("abcde", noise, strict=True):
        for p in range(8):
            ess = [1.0, 2.0, 3.0]
            history = {"iteration": [0, 1, 2], "ess": ess, "kl": [p, p, 8.0 + p]}
            history |= {f"reward_{x}": [0.5, 0.1, 0.3] for x in ("mean", "std", "max")}
            about = {"label": label, "prompt": f"p{p}", "seed": 0, "history": history}
            rows.append(about | {"reward": p + means.get(label, 0.0) + jitter[p]})
    return pd.DataFrame(rows).assign(interrupted=False)


def test_changes_are_from_the_standard_and_adaptation_from_the_control():
    found = records(a=1, c=0.02)
    (change,) = dials.changes(found, QUESTION).items()
    pair = experiment.paired(found, "a", "c")
    assert change[0] == "0.2" and change[1][:2] == ("0.2", "0.5")
    assert change[1].difference == pair["difference"] and change[1].verdict == "higher"
    gains = dials.adaptation(found, QUESTION)
    assert list(gains) == ["0.2", "0.5"]
    assert [c.verdict for c in gains.values()] == ["higher", "undecided"]
    with pytest.raises(ValueError, match=r"standard is None; settings of AISP are: 0\.2, 0\.5"):
        dials.changes(found, Question("x", QUESTION.settings))


def test_the_answer_follows_the_records():
    up, down = (dials.sentences(records(a=by), QUESTION)[0] for by in (1, -1))
    assert up.startswith("**AISP minus AISP at sigma = 0.5** is above 0 for sigma = 0.2 (+")
    assert down.startswith("**AISP minus AISP at sigma = 0.5** is below 0 for sigma = 0.2 (-")


def test_every_dial_is_in_the_table_and_its_words():
    table = dials.effects(records(a=1, c=0.02), {"sigma": QUESTION, "other": QUESTION})
    assert set(table["dial"]) == {"sigma"} and len(table) == 4
    standard = table[table["standard"] & (table["kind"] == "change")]
    assert standard["difference"].tolist() == [0] and standard["verdict"].isna().all()
    row = dials.overview(table).loc["sigma (lam = 2)"]
    assert row.iloc[0] == "0.2, 0.5*"
    assert row.iloc[1].startswith("0.2 (+") and row.iloc[2].startswith("0.2 (+")
    words = dials.conclusions(table)
    assert words[0].startswith(
        "Dials with a setting that differs from the standard one: **sigma** ("
    )
    assert words[1] == "Dials without one: none."
    assert words[2] == "Adaptation shows a gain at 1 and a loss at 0 of 2 settings."
    assert "largest rise over a standard setting is that of 0.2" in words[3]
    other = dials.conclusions(dials.effects(records(), {"sigma": QUESTION}))
    assert other[0].endswith("standard one: none.") and "sigma" in other[1]


def test_every_dial_of_the_plan_has_its_standard_setting():
    for profile in experiment.PROFILES:
        budget = {k: v for k, v in experiment.settings(profile).items() if k != "n_prompts"}
        questions, _ = ablations.plan(budget)
        assert set(dials.DIALS) == set(questions) - {"budget"}
        for question in questions.values():
            assert AISP in question.settings[question.standard]


def test_histories_are_means_by_iteration():
    mean = dials.along(records(), "a")
    assert mean.index.tolist() == [1, 2, 3] and mean["ess"].tolist() == [1, 2, 3]
    assert mean["kl"].iloc[-1] == pytest.approx(8 + 3.5)
    row = dials.travel(records(), QUESTION).loc["0.2"]
    assert row.tolist() == pytest.approx([2, 3, 11.5, 0.5, 0.3])


def by_budget():
    rewards = {AISP: {16: 1, 128: 3, 512: 3}, "best-of-n": {16: 1, 128: 2, 512: 3.5}}
    return pd.DataFrame(
        [
            {"label": label, "prompt": f"p{p}", "samples": samples, "reward": value + p}
            | {"judged": p - value, "surprisal": 10.0 * value}
            for label, of in rewards.items()
            for samples, value in of.items()
            for p in range(4)
        ]
    )


def test_leads_and_rises_along_the_budget():
    table = by_budget()
    one = dials.lead(table, "best-of-n", 128)
    assert one == (AISP, "best-of-n", 4, 1.0, 1.0, 1.0, "reward")
    assert (
        dials.rise(table, "best-of-n", 128, 512, "judged")
        .sentence()
        .startswith("By the judge, **best-of-n at 512 samples** is below best-of-n at 128 by 1.50")
    )
    assert dials.lead_change(table, "best-of-n", 128, 512).difference == -1.5
    shown = dials.budget_table(table)
    assert shown.index.tolist() == [16, 128, 512]
    assert shown["AISP minus", "best-of-n"].tolist()[1] == "+1.00 [+1.00, +1.00]"
    assert shown["judge", AISP].tolist()[2] == "-1.50"


def test_what_the_judge_sees_of_a_rise_is_said():
    table = by_budget()
    words = dials.over_optimized(table, "best-of-n", 128, 512)
    assert words.startswith(
        "**best-of-n** from 128 to 512 samples: the reward rises while the judge"
    )
    assert "+1.50 [+1.50, +1.50], judge -1.50" in words
    assert "the reward shows no rise" in dials.over_optimized(table, AISP, 128, 512)
    up = dials.over_optimized(table.assign(judged=table["reward"]), AISP, 16, 512)
    assert "samples: both rise (reward +2.00" in up


def test_the_drift_of_a_run_is_described():
    words = dials.drifted(dials.along(records(), "a"))
    assert words[0] == (
        "The effective sample size, from the second iteration to the last (of 3), rises from 2.0 to "
        "3.0."
    )
    assert words[3] == (
        "The mean reward of the samples falls from 0.50 to 0.30. It is highest in iteration 1 (0.50)."
    )


def test_controls_of_the_decoding_and_of_the_long_runs():
    settings = {
        "greedy": {AISP: "a", NOISE: "b", "best-of-n": "d"},
        "top-p 0.9": {"best-of-n": "d"},
        f"T = {ablations.TEMPERATURE:g}": {"best-of-n": "e"},
    }
    question, found = Question("x", settings, "greedy"), records(a=1, b=2, e=0.01)
    cool, noise = dials.cooler(found, question)
    assert cool[:2] == ("e", "best-of-n, top-p 0.9") and cool.verdict == "undecided"
    assert noise[:2] == ("noise only, greedy", "e") and noise.verdict == "higher"
    (lead,) = dials.over_best_of_n(found, question).values()
    assert lead[:2] == (AISP, "best-of-n") and lead.verdict == "higher"
