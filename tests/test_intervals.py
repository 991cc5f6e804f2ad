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


def test_prompts_then_seeds_against_resampling_written_out():
    rng = np.random.default_rng(0)
    values = [list(rng.normal(0.4, 1, size=k)) for k in (3, 1, 2, 3, 3, 2)]
    again, means = np.random.default_rng(5), []
    for _ in range(20_000):
        picked = [values[i] for i in again.integers(6, size=6)]
        means.append(np.mean([np.mean(again.choice(of, size=len(of))) for of in picked]))
    found = intervals.nested_bootstrap(values, draws=20_000)
    assert found.mean == pytest.approx(np.mean([np.mean(of) for of in values]))
    # A quantile of 20,000 draws has a standard error of about 0.015 of their spread.
    close = dict(rel=0, abs=5 * 0.02 * np.std(means))
    assert found.low == pytest.approx(np.quantile(means, 0.025), **close)
    assert found.high == pytest.approx(np.quantile(means, 0.975), **close)
    assert found.p == pytest.approx(2 * np.mean(np.array(means) <= 0), abs=0.02)
    assert 0.02 < found.p < 0.98


def test_one_seed_per_prompt_is_the_plain_bootstrap_in_law():
    values = np.random.default_rng(1).normal(0.2, 1, size=32)
    plain = intervals.bootstrap(values)
    nested = intervals.nested_bootstrap([[v] for v in values])
    np.testing.assert_allclose(nested[1:3], plain, atol=0.03)
    # Several seeds that agree add nothing; several that do not widen the interval.
    same = intervals.nested_bootstrap([[v] * 3 for v in values])
    np.testing.assert_allclose(same[1:3], plain, atol=0.03)
    apart = intervals.nested_bootstrap([[v - 3, v, v + 3] for v in values])
    assert apart.high - apart.low > 1.3 * (same.high - same.low)


def test_a_p_value_agrees_with_its_interval_and_is_never_0():
    for shift in (-1.0, -0.2, 0.0, 0.2, 1.0):
        found = intervals.nested_bootstrap(np.random.default_rng(2).normal(shift, 1, (20, 3)))
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0) and 0 < found.p <= 1
    assert intervals.nested_bootstrap([[1.0], [1.0]]).p == pytest.approx(2 / 10_001)
    for values in ([], [[1.0], []], [[1.0], [float("nan")]]):
        assert np.isnan(intervals.nested_bootstrap(values)).all()


def test_holm_against_a_worked_example():
    # 0.01, 0.04, 0.03, 0.005: in order 4 x 0.005, 3 x 0.01, 2 x 0.03, and not below that for 0.04.
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "none": float("nan")}
    found = intervals.holm(p)
    assert list(found) == list(p) and np.isnan(found.pop("none"))
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert intervals.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0} and intervals.holm({}) == {}
