"""Elliptical slice sampling: the law of the points that its chains move to, and its bracket."""

import math
from collections import Counter

import pytest
import torch
from laws import chi_square
from tiny import reward
from word_system import SIGMA, responses, run, target

from aisp.methods import configure, elliptical_slice
from aisp.rewards import CallableReward


@pytest.fixture(scope="module")
def tries():
    """Responses, moves and whether something was accepted, of every iteration of many chains."""
    return [
        (responses(state)[0], state.moves[0].tolist())
        for state, _ in run("elliptical_slice", 45, sigma=SIGMA)
    ]


def test_where_the_chains_have_moved_is_the_exact_target(tries):
    """Each chain is counted once, where its seventh move ends; so the counts are independent."""
    found = {}
    for at, moves in tries:
        for i, (response, count) in enumerate(zip(at, moves, strict=True)):
            if count == 7:
                found.setdefault(i, response)
    assert len(found) == 4000, "some chains have not moved so often"
    assert chi_square(Counter(found.values()), target()) > 1e-3


def test_counted_by_iterations_it_is_another_law(tries):
    assert chi_square(Counter(tries[-1][0]), target()) < 1e-6


def test_the_bracket_as_it_is_written(tiny):
    policy, lam = tiny(), 0.4
    config = configure("elliptical_slice", n=40, max_new_tokens=5, lam=lam, sigma=0.9)
    state = elliptical_slice.init(policy, ["Hi"], config, seed=1)
    shrunk = accepted = 0
    for k in range(12):
        following, info = elliptical_slice.step(state, policy, CallableReward(reward), config)
        (source,) = state.generators(torch.device("cpu"))
        noise = 0.9 * torch.randn(40, 5, policy.d, generator=source)
        u = torch.rand(40, 2, generator=source, dtype=torch.float64)
        for i in range(40 if k else 0):
            r, r_new = state.rewards[0, i].item(), info.rewards[0, i].item()
            low, high = state.low[0, i].item(), state.high[0, i].item()
            nu, least = state.nu[0, i], state.threshold[0, i].item()
            if low == high == 0:
                nu, least = noise[i], r + lam * math.log(u[i, 0])
                angle = 2 * math.pi * u[i, 1].item()
                low, high = angle - 2 * math.pi, angle
            else:
                angle = low + (high - low) * u[i, 1].item()
            assert low <= angle <= high and least < r
            tried = state.V[0, i] * math.cos(angle) + nu * math.sin(angle)
            if r_new >= least:
                torch.testing.assert_close(following.V[0, i], tried, atol=1e-5, rtol=1e-5)
                assert following.rewards[0, i] == r_new
                assert following.low[0, i] == following.high[0, i] == 0
                assert following.moves[0, i] == state.moves[0, i] + 1
                accepted += 1
            else:
                assert torch.equal(following.V[0, i], state.V[0, i])
                assert torch.equal(following.nu[0, i], nu)
                assert following.threshold[0, i].item() == pytest.approx(least)
                left = (angle, high) if angle < 0 else (low, angle)
                now = following.low[0, i].item(), following.high[0, i].item()
                assert now == pytest.approx(left) and now[0] < 0 < now[1]
                assert following.moves[0, i] == state.moves[0, i]
                shrunk += 1
        state = following
    assert shrunk > 50 and accepted > 50
