"""Intervals, and the verdicts that they support."""

import warnings

import numpy as np
import pytest

from aisp import intervals


def test_a_verdict_needs_an_interval_without_0():
    assert intervals.verdict(0.1, 0.3) == "higher" and intervals.verdict(-0.3, -0.1) == "lower"
    for low, high in ((-0.1, 0.3), (0.0, 0.3), (-0.3, 0.0), intervals.bootstrap([])):
        assert intervals.verdict(low, high) == "undecided"


def test_wilson_interval_against_a_published_example():
    # 81 of 263: [0.2553, 0.3662] (Newcombe, 1998, table I, method 3).
    low, high = intervals.wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize("k", [2, 5, 16, 32, 96])
def test_the_bootstrap_gives_the_numbers_of_plain_resampling(k):
    values = np.random.default_rng(k).normal(size=k)
    picks = np.random.default_rng(3).integers(k, size=(2000, k))
    expected = np.quantile(values[picks].mean(1), [0.025, 0.975])
    found = intervals.bootstrap(values, draws=2000, seed=3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert all(type(end) is float for end in found)


def test_data_without_spread_or_without_numbers_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert intervals.bootstrap([0.25]) == (0.25, 0.25)
        assert intervals.bootstrap([3, 3, 3, 3]) == (3, 3)
        for values in ([], [1.0, float("nan"), 2.0], [float("nan")]):
            assert np.isnan(intervals.bootstrap(values)).all()


def test_wilson_intervals_stay_within_0_and_1_and_are_those_of_the_cards():
    assert intervals.wilson(0, 10) == pytest.approx([0, 0.277533], abs=1e-6)
    assert intervals.wilson(10, 10) == pytest.approx([0.722467, 1], abs=1e-6)
    # 275 of 399 held-out pairs: the interval of data/reward_head.
    assert intervals.wilson(275, 399) == pytest.approx([0.6421881662, 0.7326491219], abs=1e-8)
    assert all(type(end) is float for end in intervals.wilson(5, 10))
