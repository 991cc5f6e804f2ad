"""Sentences follow from intervals, whatever they are."""

import pandas as pd
import pytest

from aisp import experiment
from aisp.experiment.findings import (
    Contrast,
    association,
    caution,
    contrast,
    highest,
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


def test_a_tally_counts_the_intervals_without_0_beside_what_chance_gives():
    clear, not_clear = Contrast("A", "B", 9, 0.5, 0.2, 0.8), Contrast("A", "C", 9, 0.1, -0.2, 0.4)
    assert tally([clear, not_clear]).startswith("1 of the 2 intervals excludes 0.")
    assert tally([clear, clear]).startswith("2 of the 2 intervals exclude 0.")
    words = tally([not_clear] * 20)
    assert words.startswith("None of the 20 intervals excludes 0.") and "1.0 of 20" in words


def test_the_highest_setting_says_when_it_ends_the_range():
    inside = highest(pd.Series({"w = 1": 0.5, "w = 3": 0.75, "w = 10": -1}), "mean reward")
    assert inside == "The highest mean reward of the 3 is that of **w = 3**, 0.75."
    rising = highest(pd.Series({"w = 1": 0.5, "w = 3": float("nan"), "w = 10": 1.0}), "reward")
    assert "**w = 10**, 1.00, at the end of the range tried" in rising
    assert "end of the range" not in highest(pd.Series({"w = 1": 0.5}), "reward")
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
