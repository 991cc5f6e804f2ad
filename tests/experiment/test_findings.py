"""Sentences follow from intervals, whatever they are."""

import pandas as pd
import pytest

from aisp import experiment
from aisp.experiment.findings import Contrast, contrast, origin, shown


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
