"""The protocol of notebook 12 as code, and its tables, from made-up histories."""

import numpy as np
import pandas as pd
import pytest

from aisp import load_reward, metrics
from aisp.experiment.studies import contenders, passing, verified
from aisp.experiment.studies.contenders import AISP, BEST, MISVO_FREE, NOISE, SCORES, STEERED
from aisp.experiment.studies.verified import POLICY
from aisp.methods import configure
from aisp.prompts import Prompt

TUNED = {BEST: 0.8, NOISE: 0.35, AISP: 0.15, STEERED: 0.5, SCORES: 0.05, MISVO_FREE: 15.0}
PROMPTS = [
    Prompt(
        f"p{i}",
        f"question {i}",
        "set",
        category,
        {
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        },
    )
    for i, category in enumerate(["instructions", "instructions", "arithmetic"])
]


def test_rows_take_each_other_s_values_and_their_own_lam():
    rows = contenders.rows(verified.size(), TUNED, verified.ROWS, verified.ROWS)
    configs = {label: configure(**row) for label, row in rows.items()}
    assert {(c.n, c.kappa, c.max_new_tokens) for c in configs.values()} == {(16, 8, 64)}
    assert configs[BEST].temperature == configs[SCORES].temperature == 0.8
    assert configs[NOISE].sigma == configs[AISP].sigma == configs[STEERED].sigma == 0.35
    assert [configs[x].lam for x in (AISP, STEERED, SCORES)] == [0.15, 0.5, 0.05]
    assert configs[STEERED].steered == 21 and configs[AISP].alpha == 0.99
    assert configs[SCORES].step_size == 1 and configs[SCORES].weights == "softmax"
    free = configs[MISVO_FREE]
    assert (free.regularization, free.weights, free.step_size) == ("none", "advantage", 15.0)
    assert len({len(row.tried) for row in verified.ROWS.values()}) == 1
    assert {
        x for pair in (*verified.SECONDARY, *verified.FURTHER, verified.PRIMARY) for x in pair
    } == set(verified.ROWS)


def test_trials_and_comparison_have_no_prompt_in_common():
    dev, test = verified.prompts_of("dev"), verified.prompts_of("test")
    for found, size in ((dev, (5, 3)), (test, (16, 8))):
        counts = [sum(p.category == x for p in found) for x in verified.CATEGORIES]
        assert tuple(counts) == size
    assert not {p.id for p in dev} & {p.id for p in test}
    load_reward("verifiable").check([*dev, *test])
    with pytest.raises(ValueError, match="split is 'train'; known: dev, test"):
        verified.prompts_of("train")


def test_prompts_are_siblings_of_those_that_few_samples_pass(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="there are no records"):
        verified.prompts_of("test", folder=tmp_path)
    dev = [p.id for p in verified.half("dev")]
    solved = {x: (0, 1, 4, 5)[i % 4] for i, x in enumerate(dev)}
    rates = pd.DataFrame({"prompt": dev, "history": [{"solved": [solved[x]]} for x in dev]})
    assert verified.counts(rates) == solved
    monkeypatch.setattr(verified, "load", lambda path: rates)
    found = [p.id for p in verified.prompts_of("test")]
    assert len(set(found)) == 24 and all("-test-" in x for x in found)
    assert {solved[x.replace("-test-", "-dev-")] for x in found} == {1, 4}
    assert {p.id for p in verified.half("test")} == {x.replace("-dev-", "-test-") for x in dev}


def test_what_the_policy_passes_by_itself():
    rates = pd.DataFrame(
        {
            "prompt": ["p0", "p1", "p2"],
            "samples": 32,
            "history": [{"solved": [0]}, {"solved": [20]}, {"solved": [4]}],
        }
    )
    table = passing.by_category(rates, PROMPTS)
    assert list(table.index) == ["instructions", "arithmetic"]
    own = ["prompts", "never", "few", "most"]
    assert table.loc["instructions", own].tolist() == [2, 1, 0, 1]
    assert table.loc["arithmetic", own].tolist() == [1, 0, 1, 0]
    assert table.loc["instructions", "passing"].startswith("0.31 [")


def test_other_prompts_are_named_after_their_source(tmp_path):
    assert verified.asked(None)[0] == "test" and len(verified.asked(None, profile="smoke")[1]) == 2
    file = tmp_path / "mine.jsonl"
    line = '{"prompt": "Hi", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}\n'
    file.write_text(line * 3)
    name, prompts = verified.asked(str(file), 2)
    assert name == "mine" and len(prompts) == 2
    with pytest.raises(ValueError, match="limit is 3 without prompts; name a source"):
        verified.asked(None, 3)


def record(label, prompt, seed, solved, *, n=4, ess=None):
    """A run whose samples pass in these numbers, by iteration."""
    best = list(np.maximum.accumulate([1.0 if x else 0.5 for x in solved]))
    mean = [(x + 0.5 * (n - x)) / n for x in solved]
    history = {
        "reward_best": best,
        "reward_mean": mean,
        "reward_std": [0.25 if 0 < x < n else 0.0 for x in solved],
        "ess": [None if ess is None else ess] * len(solved),
        "solved": list(solved),
    }
    return {
        "label": label,
        "prompt": prompt,
        "seed": seed,
        "reward": best[-1],
        "response": "it passes" if best[-1] == 1 else "no, it does not",
        "samples": n * len(solved),
        "history": history,
        "config": {"n": n},
        "interrupted": False,
        "error": None,
    }


@pytest.fixture
def measured():
    rows = []
    for seed in (0, 1):
        rows += [
            record(POLICY, "p0", seed, (0, 1, 0, 0)),
            record(POLICY, "p1", seed, (0, 0, 0, 0)),
            record(POLICY, "p2", seed, (2, 4, 4, 4)),
            record(AISP, "p0", seed, (1, 2, 4, 4), ess=2.0),
            record(AISP, "p1", seed, (0, 0, 0, 1), ess=3.0),
            record(AISP, "p2", seed, (4, 4, 4, 4), ess=4.0),
        ]
    return passing.measured(pd.DataFrame(rows), PROMPTS)


def test_what_passes_and_how_soon(measured):
    own = measured[measured["seed"] == 0].set_index(["label", "prompt"])
    assert own["soon"].tolist() == [0.75, 0, 1, 1, 0.25, 1]
    assert own["strict"].tolist() == own["loose"].tolist() == [1, 0, 1, 1, 1, 1]
    assert own["correct"].tolist() == [1, 0, 14, 11, 1, 16]
    assert own.loc[(POLICY, "p2"), "category"] == "arithmetic"
    table = passing.accuracy(measured)
    assert list(table.index) == [
        (label, category)
        for label in (POLICY, AISP)
        for category in ("all", "instructions", "arithmetic")
    ]
    assert table.loc[(POLICY, "all"), "strict"].startswith("0.67 [")
    assert table.loc[(POLICY, "instructions"), "passing"].startswith("0.03 [")
    assert own.loc[(AISP, "p0"), "passing"] == 11 / 16
    assert table.loc[(AISP, "arithmetic"), "soon"] == "1.00 [1.00, 1.00]"


def test_pass_at_k_pools_the_seeds(measured):
    found = passing.pass_at_k(measured).set_index(["category", "prompt", "k"])["pass"]
    assert found["instructions", "p0", 4] == pytest.approx(metrics.pass_at_k(32, 2, 4))
    assert found["all", "p2", 1] == pytest.approx(28 / 32) and found["all", "p1", 16] == 0
    assert set(found.index.get_level_values("k")) == {1, 2, 4, 8, 16}


def test_iterations_that_tell_nothing_are_counted_apart(measured):
    table = passing.sparseness(measured)
    assert table.loc[POLICY, "all equal"] == pytest.approx(10 / 12)
    assert table.loc[AISP, "all equal"] == pytest.approx(9 / 12)
    assert table.loc[AISP, "ESS"] == pytest.approx((2 + 2 + 3) / 3)
    assert np.isnan(table.loc[POLICY, "ESS"]) and table.loc[AISP, "spread"] == 0.25
    assert table.loc[AISP, ["first", "last"]].tolist() == pytest.approx([5 / 12, 9 / 12])


def test_loopholes_are_looked_for_where_both_pass(measured):
    score = {POLICY: 1.0, AISP: 0.25}
    judged = measured.assign(judged=measured["label"].map(score), length=7.0)
    table = passing.loopholes(judged)
    assert list(table.index) == [AISP] and table.loc[AISP, "runs"] == 4  # p0 and p2
    assert table.loc[AISP, "judged"].startswith("-0.75")
    assert table.loc[AISP, "length"].startswith("+0.00")
    liked = passing.least_liked(judged.assign(judged=-judged.index.to_numpy(float)), PROMPTS)
    assert (
        liked.loc[POLICY, "prompt"] == "question 2" and liked.loc[POLICY, "response"] == "it passes"
    )
    assert passing.least_liked(measured, PROMPTS).empty  # no judge


def test_the_secondary_contrasts_are_by_all_measures(measured):
    known = {NOISE: (0, 0), BEST: (0, 0)}
    assert not known.keys() & set(measured["label"])
    assert passing.contrasts(measured).empty  # none of these rows is there
    renamed = measured.assign(label=measured["label"].map({POLICY: NOISE, AISP: AISP}))
    table = passing.contrasts(renamed)
    assert list(table.index) == [f"{AISP} minus {NOISE}, by {x}" for x in verified.MEASURES]
    assert table["difference"].tolist() == pytest.approx([1 / 6, 1 / 3, 1 / 3, 13 / 48])
    assert passing.further_contrasts(renamed).empty
    later = measured.assign(label=measured["label"].map({POLICY: BEST, AISP: MISVO_FREE}))
    table = passing.further_contrasts(later)
    assert list(table.index) == [f"{MISVO_FREE} minus {BEST}, by {x}" for x in verified.MEASURES]


def test_trials_and_runs_at_toy_size_resume(tiny, tmp_path):
    policy, reward = tiny(), load_reward("verifiable")
    own = {"profile": "smoke", "folder": tmp_path, "progress": False}
    with pytest.raises(FileNotFoundError, match="there are no records"):
        verified.run(policy, reward, **own)
    sampled = verified.rates(policy, reward, **own)
    assert sampled["samples"].eq(4).all() and len(sampled) == 2
    chosen = verified.tune(policy, reward, **own)
    assert set(chosen) == set(verified.ROWS)
    records = verified.run(policy, reward, seeds=[0, 1], **own)
    assert records.groupby("label").size().eq(4).all() and len(records) == 4 * len(verified.LABELS)
    assert all(len(h["solved"]) == 2 for h in records["history"])
    path = verified.path_of("test", "smoke", tmp_path)
    before = path.read_bytes()
    verified.run(policy, reward, seeds=[0, 1], **own)
    assert path.read_bytes() == before
    found = passing.measured(records, verified.prompts_of("test", "smoke"))
    assert found[list(verified.MEASURES)].isin([i / 8 for i in range(9)]).all().all()


def test_a_bad_command_says_what_is_wrong(capsys):
    with pytest.raises(SystemExit):
        verified.main(["run", "--seeds", "0,x"])
    assert "seeds is '0,x'; it must be different whole numbers" in capsys.readouterr().err


def test_a_row_declared_later_joins_where_it_is_whole_and_hides_nothing_else():
    rows = [
        {"label": label, "prompt": p, "seed": seed, "reward": 1.0, "interrupted": False}
        for label in verified.LABELS
        for p in ("a", "b")
        for seed in (0, 1)
    ]
    records = pd.DataFrame(rows)
    assert set(verified.whole(records)["label"]) == set(verified.LABELS)
    partly = records[~((records["label"] == MISVO_FREE) & (records["seed"] == 1))]
    found = verified.whole(partly)
    assert set(found["label"]) == set(verified.LABELS) - {MISVO_FREE} and set(found["seed"]) == {
        0,
        1,
    }
