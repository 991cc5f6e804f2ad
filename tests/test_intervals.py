"""Intervals, and the verdicts that they support."""

from aisp import intervals


def test_a_verdict_needs_an_interval_without_0():
    assert intervals.verdict(0.1, 0.3) == "higher" and intervals.verdict(-0.3, -0.1) == "lower"
    for low, high in ((-0.1, 0.3), (0.0, 0.3), (-0.3, 0.0), intervals.bootstrap([])):
        assert intervals.verdict(low, high) == "undecided"


def test_wilson_interval_against_a_published_example():
    # 81 of 263: [0.2553, 0.3662] (Newcombe, 1998, table I, method 3).
    low, high = intervals.wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
