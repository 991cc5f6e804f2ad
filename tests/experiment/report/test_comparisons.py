"""Tables and examples of the main comparison."""

import pandas as pd
import pytest
from fake_runs import measured

from aisp.experiment.report import comparisons


def record(label, i, rewards, **more):
    history = {"reward_best": rewards, "reward_std": [0.5, 9.0], "ess": [2.0, 4.0]}
    about = {"label": label, "prompt": f"p{i}", "prompt_text": f"Question {i}?", "seed": 0}
    about |= {"reward": rewards[-1], "history": history, "config": {"n": 4}, "seconds": 1.0}
    return about | {"samples": 8, "interrupted": False, "response": "words " * i} | more


def records():
    ours = [record("A", i, [i, i + x]) for i, x in enumerate((0.5, 2.0, 0.5, -1.0))]
    return pd.DataFrame([*ours, *(record("B", i, [i, i]) for i in range(4))])


def test_the_lead_had_both_stopped_earlier():
    found = comparisons.lead_by_samples(records(), "A", "B")
    assert {k: c.difference for k, c in found.items()} == {4: 0, 8: 0.5}
    assert found[8].prompts == 4


def test_prompts_are_counted_and_extremes_chosen_by_their_difference():
    table = records()
    table.loc[0, "reward"] = 0.0  # level
    assert comparisons.ahead(table, "A").loc["B"].to_dict() == {"ahead": 2, "level": 1, "behind": 1}
    assert comparisons.extremes(table, "A", "B") == ["p3", "p1"]
    only = table[table["prompt"] == "p2"]
    assert comparisons.extremes(only, "A", "B") == ["p2"]


def test_spread_is_of_the_first_samples_and_single_responses_have_none():
    table = pd.concat([records(), pd.DataFrame([record("C", 0, [1.0], samples=1)])])
    found = comparisons.temperature(table)
    assert found.loc["A"].tolist() == [0.5, 3.0] and list(found.index) == ["A", "B"]


def test_favorites_are_the_highest_rewards():
    table = records().assign(length=[10.0] * 7 + [90.0])
    words, top = comparisons.favorites(table, share=0.25)
    assert top["reward"].tolist() == [3.0, 3.0] and set(top) >= {"label", "length", "response"}
    assert words == (
        "The 2 responses with the highest rewards have 50 tokens in the mean, all 8 have 20."
    )


def test_each_measure_is_a_contrast_with_its_heading():
    table = records().assign(diversity=1.0, coherence=0.5, surprisal=2.0, length=3.0)
    table.loc[table["label"] == "A", "length"] = 5.0
    found = comparisons.by_measure(table, "A", "B")
    assert [c.measure for c in found][-1] == "length (tokens)"
    assert [c.difference for c in found] == pytest.approx([0, 0, 0, 2])


def test_texts_that_are_not_stored_are_not_shown():
    table = records()
    table.loc[table["prompt"] == "p1", "prompt_text"] = None
    ((text, rows),) = comparisons.side_by_side(table, ["p1", "p2"])
    assert text == "Question 2?" and rows.loc["B", "response"] == "words words "


def test_a_seed_counts_where_every_label_has_finished_every_prompt():
    records = measured({"a": (0, 0), "b": (0, 0), "c": (0, 0)}, prompts=3, seeds=3)
    records.loc[(records["label"] == "b") & (records["seed"] == 1), "interrupted"] = [True] * 3
    some = records.drop(index=records.query("label == 'c' and seed == 2").index[0])
    found = comparisons.whole_seeds(some, ["a", "b"])
    assert sorted(found["seed"].unique()) == [0, 2] and set(found["label"]) == {"a", "b"}
    assert len(found) == 12
    assert comparisons.whole_seeds(some, ["a", "b", "c"])["seed"].unique().tolist() == [0]
    assert comparisons.whole_seeds(some, ["a", "d"]).empty
