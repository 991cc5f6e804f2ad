"""Sentences follow from intervals, whatever they are."""

import pandas as pd
import pytest

from aisp import experiment
from aisp.experiment.report.findings import (
    Contrast,
    across,
    association,
    caution,
    confirmed,
    contrast,
    gap,
    grouped,
    highest,
    leader,
    moved,
    origin,
    shown,
    tally,
)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.74, 0.54, 0.95), "**A** is above B by 0.74 [0.54, 0.95] (96 prompts)."),
        ((-0.4, -0.78, -0.18), "**A** is below B by 0.40 [0.18, 0.78] (96 prompts)."),
        (
            (0.15, -0.16, 0.44),
            "**A** is not distinguishable from B at this number of prompts: +0.15 [-0.16, +0.44] "
            "(96 prompts).",
        ),
        ((0.1, 0.0, 0.2), "**A** is not distinguishable from B at this number of prompts: +0.10 "),
        ((float("nan"),) * 3, "**A** is not distinguishable from B"),
    ],
)
def test_the_interval_decides_the_words(interval, expected):
    assert Contrast("A", "B", 96, *interval).sentence().startswith(expected)


def test_the_measure_is_named_and_one_prompt_is_one():
    words = Contrast("A", "B", 1, 0.5, 0.2, 0.8, "judge").sentence()
    assert words == "By the judge, **A** is above B by 0.50 [0.20, 0.80] (1 prompt)."
    assert "share no prompt" in Contrast("A", "B", 0, *(float("nan"),) * 3).sentence()


def records(shift):
    rows = [
        {"label": label, "prompt": f"p{i}", "seed": 0, "reward": 0.1 * i + add, "judged": -add * i}
        for label, add in (("A", shift), ("B", 0.0))
        for i in range(8)
    ]
    return pd.DataFrame(rows).assign(interrupted=False)


def test_a_contrast_is_the_paired_difference_of_its_column():
    up = contrast(records(0.5), "A", "B")
    expected = experiment.paired(records(0.5), "A", "B")
    assert up[2:6] == tuple(expected[k] for k in ("prompts", "difference", "low", "high"))
    assert up.verdict == "higher" and "above B by 0.50" in up.sentence()
    assert "below" in contrast(records(-0.5), "A", "B").sentence()
    assert "not distinguishable" in contrast(records(0.0), "A", "B").sentence()
    assert (
        contrast(records(0.5), "A", "B", "judged").sentence().startswith("By the judge, **A** is b")
    )
    with pytest.raises(ValueError, match=r"measure is 'wit'; the records have: label, prompt"):
        contrast(records(0.5), "A", "B", "wit")


def test_sentences_become_a_markdown_list():
    lines = shown([Contrast("A", "B", 2, 0.5, 0.2, 0.8), "And that is all."]).data.splitlines()
    assert lines == ["- **A** is above B by 0.50 [0.20, 0.80] (2 prompts).", "- And that is all."]


def test_the_origin_names_what_results_are_of():
    words = origin(experiment.records_path("main_results", "cpu")).data
    for part in (
        "Policy embedded (template chat",
        "32 prompts of builtin",
        "n x kappa = 1 x 1, 16 x 8, at most 48 tokens",
    ):
        assert part in words
    assert (
        "Read 288 records from data/results/cpu/main_results.jsonl" in words and "seeds 0" in words
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "1 second"),
        (89, "89 seconds"),
        (720, "12 minutes"),
        (5399, "90 minutes"),
        (7200, "2.0 h"),
    ],
)
def test_the_origin_says_how_long_in_the_unit_that_reads_best(seconds, said):
    path = experiment.records_path("main_results", "cpu")
    records = experiment.load(path).head(4).assign(seconds=seconds / 4)
    assert f"(about {said}" in origin(path, records).data


def test_a_tally_counts_the_intervals_without_0_beside_what_chance_gives():
    clear, not_clear = Contrast("A", "B", 9, 0.5, 0.2, 0.8), Contrast("A", "C", 9, 0.1, -0.2, 0.4)
    assert tally([clear, not_clear]).startswith("1 of the 2 intervals excludes 0.")
    assert tally([clear, clear]).startswith("2 of the 2 intervals exclude 0.")
    words = tally([not_clear] * 20)
    assert words.startswith("None of the 20 intervals excludes 0.") and "1.0 of 20" in words


def test_the_highest_setting_says_when_it_ends_the_range():
    inside = highest(pd.Series({"w = 1": 0.5, "w = 3": 0.75, "w = 10": -1}), "mean reward")
    assert inside == "Of 3 settings, **w = 3** has the highest mean reward, 0.75."
    rising = highest(pd.Series({"w = 1": 0.5, "w = 3": float("nan"), "w = 10": 1.0}), "reward")
    assert "**w = 10** has the highest reward, 1.00, at the end of the range tried" in rising
    assert highest(pd.Series({"w = 1": 0.5}), "reward").endswith("the highest reward, 0.50.")
    assert highest(pd.Series({"w = 1": float("nan")}), "reward") == "No setting has a reward."


def several(slope):
    """Four responses to each of four prompts: what prompts add to both is no association."""
    rows = [
        {"prompt": f"p{i}", "seed": j, "reward": 10 * i + slope * j, "coherence": 10 * i + j}
        for i in range(4)
        for j in range(4)
    ]
    return pd.DataFrame(rows).assign(interrupted=False)


def test_an_association_is_within_prompts():
    assert association(several(1.0), "reward", "coherence") == (
        "Among responses to one prompt, the higher the coherence, the higher the reward: rank "
        "correlation +1.00 [+1.00, +1.00] (4 prompts)."
    )
    assert ", the lower the reward:" in association(several(-1.0), "reward", "coherence")
    assert "No prompt has responses that vary" in association(several(0.0), "reward", "coherence")
    mixed = several(1.0)
    mixed.loc[mixed["prompt"].isin(["p0", "p1"]), "reward"] *= -1
    assert "are not distinguishable from unrelated: " in association(mixed, "reward", "coherence")


def test_conclusions_from_few_prompts_say_so():
    some = pd.DataFrame({"prompt": [f"p{i}" for i in range(24)]})
    assert caution(some) == []
    assert caution(some[:2]) == ["With 2 prompts, **none of this is evidence**."]


# -- several differences in one sentence ----------------------------------------------------------


def found(difference, low, high, prompts=16, measure="reward"):
    return Contrast("A", "B", prompts, difference, low, high, measure)


UP, DOWN, NONE = found(0.5, 0.2, 0.8), found(-0.5, -0.8, -0.2), found(0.1, -0.2, 0.4, 14)


def test_other_measures_are_named_in_their_sentence():
    assert found(2, 1, 3, measure="length").sentence().startswith("In length, **A** is above B by")


def test_differences_are_sorted_by_their_intervals():
    words = grouped("**A minus it**", {"x": NONE, "y": UP, "z": DOWN, "u": UP})
    assert words == (
        "**A minus it** is above 0 for y (+0.50 [+0.20, +0.80]), u (+0.50 [+0.20, +0.80]); below 0 "
        "for z (-0.50 [-0.80, -0.20]); not distinguishable from 0, at this number of prompts, for "
        "x (+0.10 [-0.20, +0.40]) (14 to 16 prompts)."
    )
    assert grouped("A", {"y": UP}) == "A is above 0 for y (+0.50 [+0.20, +0.80]) (16 prompts)."
    assert grouped("A", {}) == "A: there is nothing to compare."


def test_sets_are_listed_behind_all_of_them():
    words = across({"one": NONE, "two": UP, "together": UP})
    assert words == (
        "**A** is above B by 0.50 [0.20, 0.80] (16 prompts). Set by set: one +0.10 [-0.20, +0.40], "
        "undecided; two +0.50 [+0.20, +0.80], higher."
    )
    assert across({"only": UP, "together": UP}) == UP.sentence()


def test_the_leader_is_the_highest_mean_and_names_what_is_close():
    both = records(0.5)
    third = both[both["label"] == "A"].assign(label="C", reward=lambda x: x["reward"] - 0.01)
    third.loc[third.index[::2], "reward"] += 0.02 - 0.001
    words = leader(pd.concat([both, third]))
    assert words.startswith("**A** has the highest mean reward, 0.85 [")
    assert "this number of prompts: C (+0.00 [" in words and "B" not in words
    assert "difference from every other one is above 0" in leader(both)
    assert leader(both, "judged").startswith("**B** has the highest mean score by the judge, -0.00")
    assert leader(both.assign(judged=float("nan")), "judged") == "No label has a judged."


def test_a_judge_confirms_contradicts_or_does_not_show():
    reward = {"v": UP, "w": UP, "x": DOWN, "y": NONE, "z": UP}
    judge = {"v": UP, "w": NONE, "x": UP, "y": UP}
    assert confirmed("A minus it", reward, judge) == (
        "A minus it: the judge confirms what the reward shows for v; it does not show it for w; it "
        "contradicts it for x."
    )
    assert "shows no difference" in confirmed("A", {"y": NONE}, judge)


def test_a_gap_is_a_contrast_of_differences():
    values = pd.Series([0.5, float("nan"), 0.7, 0.6], index=list("dcab"))
    one = gap(values, "A", "B", "judge")
    assert one[:3] == ("A", "B", 3) and one.difference == pytest.approx(0.6)
    assert one[4:6] == experiment.bootstrap([0.7, 0.6, 0.5]) and one.measure == "judge"
    assert gap(values[:0], "A", "B").prompts == 0


def test_movements_and_cautions_are_plain_comparisons():
    assert moved("It", 1.234, 20000, 1) == "It rises from 1.2 to 20,000.0."
    assert moved("It", 0.5, 0.25) == "It falls from 0.50 to 0.25."
    assert moved("It", 0.501, 0.5) == "It begins and ends at 0.50."
    assert caution(records(0)) == ["With 8 prompts, **none of this is evidence**."]
    assert caution(records(0), fewest=8) == []
