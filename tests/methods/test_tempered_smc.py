"""Tempered SMC: the law of its particles along the way and at the end, its steps and its drawing."""

from collections import Counter

import numpy as np
import pytest
import torch
from small_systems import LIMIT
from word_system import SIGMA, responses, run, target, word_policy

import aisp
from aisp import control
from aisp.methods import configure, tempered_smc
from aisp.rewards import CallableReward

PARTICLES = torch.tensor([[0.3, -1.2, 2.0, 0.9, -torch.inf], [1.0] * 5], dtype=torch.float64)


@pytest.mark.parametrize("own", [{}, {"pcn": 0.7}], ids=["suffix", "pcn"])
def test_the_particles_follow_the_law_at_their_beta(own):
    """40 independent runs; the particles of one are not, so that the error is that between runs.

    Right after the first rise of beta, where drawing by the weights does it all; and at 1 / lam.
    """
    R, n, lam = 40, 300, 0.4
    prompts = [f"run {i}" for i in range(R)]
    own = {"sigma": SIGMA, "lam": lam, "ess": 0.6, **own}
    for state, info in run("tempered_smc", 6, n=n, prompts=prompts, **own):
        if state.iteration not in (2, 6):
            continue
        betas = info.columns["beta"]
        assert state.iteration < 6 or betas == [1 / lam] * R
        assert state.iteration > 2 or 0.1 / lam < min(betas) <= max(betas) < 0.9 / lam
        laws = [target(beta=b) for b in betas]
        likely = sorted(laws[0], key=laws[0].get)[-10:]
        found = [Counter(x) for x in responses(state)]
        shares = np.array([[x[y] / n for y in likely] for x in found])
        expected = np.array([[law[y] for y in likely] for law in laws])
        apart = shares - expected  # (R, 10)
        error = apart.std(0, ddof=1) / R**0.5
        assert (np.abs(apart.mean(0)) < LIMIT * error).all(), apart.mean(0) / error
        base = np.array([target(beta=0.0)[y] for y in likely])
        assert (np.abs(shares.mean(0) - base) > 2 * LIMIT * error).sum() > 3, "nothing to see"


def test_beta_rises_to_the_wanted_effective_sample_size():
    config = configure("tempered_smc", n=5, lam=0.05, ess=0.5)
    beta = torch.tensor([1.5, 1.5], dtype=torch.float64)
    following, log_w = tempered_smc.raised(PARTICLES, beta, config)
    step = following[0] - 1.5
    weight = torch.exp(step * PARTICLES[0])
    torch.testing.assert_close(log_w[0].exp(), weight / weight.sum())
    ess = control.effective_sample_size(log_w)
    assert ess[0].item() == pytest.approx(2.5, rel=1e-6) and 1.5 < following[0] < 20
    assert following[1] == 20 and ess[1].item() == pytest.approx(
        5
    )  # equal rewards: nothing holds it back


def test_beta_stops_at_its_end():
    config = configure("tempered_smc", n=5, lam=0.5, ess=0.3)
    for beta, end in ((1.9, 2.0), (2.0, 2.0)):
        start = torch.tensor([beta, beta], dtype=torch.float64)
        following, log_w = tempered_smc.raised(PARTICLES, start, config)
        assert following.tolist() == [end, end]
        weight = torch.exp((end - beta) * PARTICLES[0])
        weight = torch.ones(5) if beta == end else weight  # then nothing is drawn, and all stay
        torch.testing.assert_close(log_w[0].exp(), weight / weight.sum(), check_dtype=False)


def test_particles_are_drawn_systematically(tiny):
    config = configure("tempered_smc", n=6, max_new_tokens=4)
    state = tempered_smc.init(tiny(), ["Hi", "Why?"], config)
    names = torch.arange(12.0).view(2, 6)
    state = tempered_smc.replace(
        state,
        rewards=names.double(),
        V=names.view(2, 6, 1, 1).expand_as(state.V),
        tokens=names.long().unsqueeze(-1).expand_as(state.tokens),
        lengths=names.long(),
    )
    w = torch.tensor([[0.05, 0.3, 0.0, 0.25, 0.1, 0.3], [1 / 6] * 6], dtype=torch.float64)
    total, runs = torch.zeros(6), 4000
    for seed in range(runs):
        sources = [torch.Generator().manual_seed(seed + k) for k in (0, runs)]
        drawn = tempered_smc.resampled(state, w.log(), sources)
        for x in (drawn.V[..., 0, 0], drawn.tokens[..., 0], drawn.lengths):
            assert torch.equal(x.double(), drawn.rewards)
        assert torch.equal(drawn.rewards[1], state.rewards[1])  # equal weights: all stay
        counts = torch.bincount(drawn.rewards[0].long(), minlength=6)
        assert ((counts - 6 * w[0]).abs() < 1).all()
        total += counts
    error = (w[0] * 6 * 0.5 / runs).sqrt() + 1e-6
    assert ((total / runs - 6 * w[0]).abs() < LIMIT * error).all()


def test_the_history_says_how_far_beta_came():
    def letters(prompt, response):
        return float(response.count("a") - len(response) / 3)

    size = dict(n=32, max_new_tokens=3, sigma=SIGMA, progress=False)
    far = aisp.align("any", word_policy(), letters, "tempered_smc", lam=0.3, kappa=8, **size)
    beta, ess = far.history["beta"].tolist(), far.history["ess"].tolist()
    rises = beta.index(1 / 0.3)
    assert beta[0] == 0 and ess[0] == 32 and sorted(beta) == beta and beta[-1] == 1 / 0.3
    assert all(x == pytest.approx(16, rel=1e-6) for x in ess[1:rises]) and rises > 1
    assert ess[rises] >= 16 and ess[rises + 1 :] == [32] * (7 - rises)
    early = aisp.align("any", word_policy(), letters, "tempered_smc", lam=0.3, kappa=2, **size)
    assert early.history["beta"].tolist() == beta[:2] and beta[1] < 1 / 0.3
    config = configure("tempered_smc", n=32, max_new_tokens=3, lam=1.0)
    reward = CallableReward(letters)
    with pytest.raises(
        ValueError, match=r"at beta = 3.33333, beyond 1 / lam = 1; go on with lam ="
    ):
        tempered_smc.step(far.state, word_policy(), reward, config)
