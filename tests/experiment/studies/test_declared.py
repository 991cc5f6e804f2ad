"""Declared contrasts: paired within a seed, resampled over both levels, adjusted for their number."""

import numpy as np
import pytest
from fake_runs import measured

from aisp.experiment.studies import declared
from aisp.intervals import holm, nested_bootstrap


def test_a_contrast_is_taken_within_prompt_and_seed():
    records = measured({"a": (1.0, 0.0), "b": (0.0, 0.0)})
    records.loc[(records["label"] == "b") & (records["prompt"] == "p3"), "reward"] = np.nan
    records.loc[(records["label"] == "a") & (records["seed"] == 2), "interrupted"] = True
    found, p = declared.nested(records, "a", "b")
    wide = records[records["seed"] < 2].pivot_table(
        index=["prompt", "seed"], columns="label", values="reward"
    )
    gaps = (wide["a"] - wide["b"]).dropna()
    expected = nested_bootstrap([of.tolist() for _, of in gaps.groupby("prompt")])
    assert found[:3] == ("a", "b", 11) and found.measure == "reward"
    np.testing.assert_allclose([found.difference, found.low, found.high, p], expected)
    assert found.verdict == "higher" and found.high - found.low < 0.7  # the shared level is gone
    back, _ = declared.nested(records, "b", "a")
    assert back.difference == pytest.approx(-found.difference)
    assert declared.nested(records, "a", "b", "judged").contrast.measure == "judge"
    with pytest.raises(ValueError, match="no records of"):
        declared.nested(records, "a", "c")
    with pytest.raises(ValueError, match="measure is 'length'"):
        declared.nested(records, "a", "b", "length")


def test_labels_that_share_no_prompt_have_no_contrast():
    records = measured({"a": (1.0, 0.0), "b": (0.0, 0.0)}, prompts=2)
    same = ((records["label"] == "a") & (records["prompt"] == "p0")) | (
        (records["label"] == "b") & (records["prompt"] == "p1")
    )
    found, p = declared.nested(records[same], "a", "b")
    assert found.prompts == 0 and np.isnan(p) and found.verdict == "undecided"
    assert "share no prompt" in found.sentence()


def test_the_outcome_of_the_primary_contrast():
    for shift, word in ((1.0, "confirmed"), (-1.0, "refuted"), (0.0, "left undecided")):
        records = measured({"a": (shift, 0.0), "b": (0.0, 0.0)})
        found, _ = declared.nested(records, "a", "b")
        assert declared.outcome(found).startswith(f"The primary contrast is **{word}**: **a** is")
    for judged, only in ((1.0, False), (0.0, True), (-1.0, True)):
        records = measured({"a": (1.0, judged), "b": (0.0, 0.0)})
        both = (declared.nested(records, "a", "b", by).contrast for by in ("reward", "judged"))
        said = declared.outcome(*both)
        assert "By the judge, **a** is" in said and ("in the reward only" in said) == only


def test_secondary_contrasts_are_adjusted_together():
    records = measured({"a": (1.0, 0.15), "b": (0.0, 0.0), "c": (0.1, -1.0)})
    pairs = [("a", "b"), ("c", "b"), ("a", "gone")]
    table = declared.secondary(records, pairs, ("a", "c"))
    assert list(table.index) == [
        "a minus b, by reward",
        "c minus b, by reward",
        "a minus b, by judge",
        "c minus b, by judge",
        "a minus c, by judge",
    ]
    assert table["p_holm"].to_dict() == holm(table["p"].to_dict())
    assert (table["p_holm"] >= table["p"]).all()
    assert table["verdict"].tolist()[0] == "higher" and table["verdict"].tolist()[3] == "lower"
    # Some interval excludes 0 that the adjustment does not let pass, or none does: never the reverse.
    clear = (table["low"] > 0) | (table["high"] < 0)
    assert not ((table["verdict"] != "undecided") & ~clear).any()
    first, above, below, rest = declared.summed_up(table)
    assert first.startswith("5 secondary contrasts") and "a minus b, by reward (+" in above
    assert "c minus b, by judge (-" in below
    p = table.loc["a minus b, by reward", "p"]
    assert f"], {declared.p_value(p)})" in above and "p" not in rest.split(": ", 1)[1]
    assert [declared.p_value(x) for x in (0.0002, 0.0324)] == ["p < 0.001", "p = 0.032"]
    assert (rest == "Not distinguishable from 0: none.") == (table["verdict"] != "undecided").all()
    only = declared.secondary(records.drop(columns="judged"), pairs, ("a", "c"))
    assert list(only.index) == ["a minus b, by reward", "c minus b, by reward"]
    none = declared.secondary(records, [("x", "y")], ("x", "z"))
    assert none.empty and declared.summed_up(none)[1] == "Above 0: none."
