"""The samplers of the exact target: their long-run laws are the enumerated ones.

The chains of a run are independent, and each is counted once, where it ends; so the chi-square test
of these counts is that of independent draws.
"""

import math
from collections import Counter

import pytest
import torch
from laws import chi_square
from tiny import reward
from word_system import SIGMA, TEMPERATURE, T, responses, run, target, word_policy

import aisp
from aisp.engine.rollout import rollout
from aisp.methods import METHODS, chains, configure, metropolis
from aisp.rewards import CallableReward, RewardError
from aisp.state import generator

SAMPLERS = {
    "qalign": ("qalign", {"temperature": TEMPERATURE}, 15),
    "suffix": ("metropolis", {"sigma": SIGMA}, 15),
    "pcn": ("metropolis", {"sigma": SIGMA, "pcn": 0.7}, 20),
}
each_sampler = pytest.mark.parametrize(
    ("method", "own", "iterations"), SAMPLERS.values(), ids=SAMPLERS
)
OVER_V = [
    ("metropolis", {}),
    ("metropolis", {"pcn": 0.3}),
    ("elliptical_slice", {}),
    ("tempered_smc", {}),
]
each_over_V = pytest.mark.parametrize(("method", "own"), OVER_V)
SMALL = dict(n=4, kappa=4, max_new_tokens=6, progress=False)


@each_sampler
def test_where_the_chains_end_is_the_exact_target(method, own, iterations):
    exact = target(sampled=method == "qalign")
    for state, info in run(method, iterations, **own):
        assert 0 < info.columns["accepted"][0] <= 1
        if state.iteration == 1:  # the base law, and that is another one
            began = Counter(responses(state)[0])
            beyond = {x: max(p, 1e-12) for x, p in exact.items()}
            assert chi_square(began, beyond) < 1e-12
    assert chi_square(Counter(responses(state)[0]), exact) > 1e-3


@pytest.mark.parametrize("method", ["qalign", "metropolis", "elliptical_slice", "tempered_smc"])
def test_a_rejected_response_is_left_and_never_taken(method):
    without = refused = 0
    before = None
    for state, info in run(method, 10, n=300):
        if before is not None:
            had = before.rewards.isfinite()
            without += int((~had).sum())
            refused += int((info.rewards == -torch.inf)[had].sum())
            if method != "tempered_smc":  # whose particles change places
                assert state.rewards[had].isfinite().all()
        before = state
    assert without and refused and state.rewards.isfinite().all()


@pytest.mark.parametrize(
    ("method", "own", "n"),
    [(*of, n) for of in [("qalign", {}), *OVER_V[:3]] for n in (1, 2)] + [(*OVER_V[3], 2)],
)
def test_an_iteration_whose_proposals_are_all_rejected_is_one_that_stays(tiny, method, own, n):
    """A reward that rejects all but what the first iteration found; then one that rejects that too."""
    calls, size = [], SMALL | own | {"n": n}

    def once(prompt, response):
        calls.append(response)
        return reward(prompt, response) if len(calls) <= n else -math.inf

    out = aisp.align("Hi", tiny(), once, method, **size)
    assert out.reward == out.history["reward_max"][0] > -math.inf
    assert out.history["accepted"].tolist() == [1, 0, 0, 0]
    assert out.history["reward_mean"].isna().tolist() == [False, True, True, True]
    assert out.candidates["reward"].tolist()[n:] == [-math.inf] * 3 * n
    with pytest.raises(RewardError, match=f"all {n} candidates"):
        aisp.align("Hi", tiny(), once, method, **size)


def test_what_is_accepted(tiny):
    """The rule at a few rewards, with what the way back is likelier, as shares of many tries."""
    config = configure("qalign", n=20000, max_new_tokens=2, lam=0.5)
    start = METHODS["qalign"].init(tiny(), ["Hi"], config)
    out = aisp.engine.Rollout(start.tokens + 5, start.lengths + 2, [["x"] * config.n])

    def share(before, after, log_ratio):
        state = chains.replace(start, rewards=torch.full_like(start.rewards, before))
        kept = chains.Proposal(out, torch.full_like(start.rewards, log_ratio))
        values = CallableReward(lambda prompt, response: after)
        sources = [torch.Generator().manual_seed(0)]
        following, info = chains.decide(state, values, kept, config.lam, sources)
        accepted = (following.tokens == 5).all(-1)
        assert torch.equal(accepted.cpu(), following.rewards == after) or before == after
        assert info.columns["accepted"] == [pytest.approx(accepted.double().mean().item())]
        return accepted.double().mean().item()

    rejected = -torch.inf
    error = 5 * (0.25 / config.n) ** 0.5
    assert share(1.0, 2.0, 0.0) == share(rejected, 1.0, -3.0) == 1
    assert share(2.0, 1.0, 0.0) == pytest.approx(torch.tensor(-2.0).exp().item(), abs=error)
    assert share(2.0, 2.0, -1.0) == pytest.approx(torch.tensor(-1.0).exp().item(), abs=error)
    assert share(2.0, 1.0, 1.5) == pytest.approx(torch.tensor(-0.5).exp().item(), abs=error)


def test_cuts_are_uniform_below_the_length():
    lengths = torch.tensor([[1, 2, 5, 7]]).repeat_interleave(7000, 1)
    (drawn,) = chains.cuts(lengths, [torch.Generator().manual_seed(0)]).split(7000, 1)[3:]
    counts = Counter(drawn.flatten().tolist())
    assert chi_square(counts, dict.fromkeys(range(7), 1 / 7)) > 1e-3
    every = chains.cuts(lengths, [torch.Generator().manual_seed(0)])
    assert (every >= 0).all() and (every < lengths).all() and not every[:, :7000].any()
    assert chains.cuts(torch.zeros(1, 3, dtype=torch.long), [torch.Generator()]).tolist() == [
        [0] * 3
    ]


@pytest.mark.parametrize("own", [{}, {"pcn": 0.3}], ids=["suffix", "pcn"])
def test_a_move_as_it_is_written(tiny, own):
    """V' from the drawn noise, and the response that it decodes to from the start."""
    policy, tau = tiny(), 4
    config = metropolis.MetropolisConfig(n=5, max_new_tokens=6, tau=tau, sigma=0.8, **own)
    state = metropolis.init(policy, ["Hi", "Why?"], config, seed=3)
    state, _ = metropolis.step(state, policy, CallableReward(reward), config)
    sources = state.generators(torch.device("cpu"))
    proposal = chains.propose(state, policy, config, sources)
    again = [generator(3, p, 1, torch.device("cpu")) for p in ("Hi", "Why?")]
    xi = 0.8 * torch.stack([torch.randn(5, tau, policy.d, generator=g) for g in again])
    whole = rollout(policy, state.prefixes, 5, 6, V=proposal.V)
    assert torch.equal(proposal.rollout.tokens, whole.tokens)
    assert proposal.rollout.texts == whole.texts
    if own:
        torch.testing.assert_close(proposal.V, 0.91**0.5 * state.V + 0.3 * xi)
        assert torch.equal(proposal.rollout.decoded, whole.lengths)
        assert not proposal.log_ratio.any()
        return
    kept = whole.lengths - proposal.rollout.decoded  # (2, 5)
    assert len(set(kept.flatten().tolist())) > 1 and (kept < state.lengths.clamp(max=tau)).all()
    for p, i in torch.cartesian_prod(torch.arange(2), torch.arange(5)).tolist():
        c = int(kept[p, i])
        assert torch.equal(proposal.V[p, i, :c], state.V[p, i, :c])
        assert torch.equal(proposal.V[p, i, c:], xi[p, i, c:])
        assert torch.equal(whole.tokens[p, i, :c], state.tokens[p, i, :c])


def test_the_ratio_of_lengths():
    """Of the perturbed steps of a response: how many ways there are to the proposal and back."""
    *_, (state, _) = run("metropolis", 3, n=500, tau=2, sigma=SIGMA)
    policy, sources = word_policy(), state.generators(torch.device("cpu"))
    config = configure("metropolis", n=500, max_new_tokens=T, tau=2, sigma=SIGMA)
    proposal = chains.propose(state, policy, config, sources)
    steps = [x.clamp(max=2).double() for x in (state.lengths, proposal.rollout.lengths)]
    assert (steps[0] != steps[1]).any() and (state.lengths == 3).any()
    torch.testing.assert_close(proposal.log_ratio.exp(), steps[0] / steps[1])


def test_the_first_responses_are_those_of_best_of_n_and_of_noise_only(tiny):
    def first(method, **own):
        out = aisp.align("Hi", tiny(), reward, method, seed=2, **SMALL, **own)
        return out.candidates["response"].tolist()[:4]

    assert first("qalign", temperature=0.7) == first("best_of_n", temperature=0.7, top_p=1.0)
    noise = first("aisp", adapt=False)
    assert all(first(method, **own) == noise for method, own in OVER_V)


def test_only_new_endings_are_charged(tiny):
    """Decoded tokens of the history are fewer than those of the candidates, but for pCN."""
    for method, own in [("qalign", {}), *OVER_V]:
        size = SMALL | {"n": 16, "max_new_tokens": 12}
        out = aisp.align("Hi", tiny(), reward, method, seed=2, **size, **own)
        tokens = out.history["tokens"].tolist()
        whole = method == "elliptical_slice" or bool(own)
        assert tokens[0] > 150 and all(t > 150 if whole else 48 < t < 140 for t in tokens[1:])


@pytest.mark.parametrize(
    ("method", "bad", "message"),
    [
        ("qalign", {"temperature": 0}, "temperature is 0; QAlign samples its proposals"),
        ("qalign", {"lam": 0}, "lam is 0; it must be > 0 and finite"),
        ("qalign", {"tau": 3}, "qalign has no parameter 'tau'"),
        ("metropolis", {"pcn": 0}, r"pcn is 0; it must lie in \(0, 1\], or None for suffix"),
        ("metropolis", {"pcn": 1.5}, "pcn is 1.5"),
        ("metropolis", {"sigma": -1}, "sigma is -1; it must be > 0"),
        ("metropolis", {"tau": 49}, r"tau is 49; .* from 1 to 48 \(max_new_tokens\)"),
        ("metropolis", {"temperature": 1}, "temperature is 1, .*has to be a function of V"),
        ("elliptical_slice", {"top_p": 0.9}, "top_p 0.9; the response has to be a function of V"),
        ("elliptical_slice", {"pcn": 0.5}, "elliptical_slice has no parameter 'pcn'"),
        ("tempered_smc", {"ess": 1}, r"ess is 1; it must lie in \[0.0625, 0.95\] \(from 1/n\)"),
        ("tempered_smc", {"ess": 0.01}, "ess is 0.01"),
    ],
)
def test_parameters_are_checked(method, bad, message):
    with pytest.raises(ValueError, match=message):
        configure(method, **bad)


@pytest.mark.parametrize(("method", "own"), [("qalign", {}), *OVER_V])
def test_states_that_do_not_fit_are_refused(tiny, method, own):
    policy, about = tiny(), METHODS[method]
    size = {"n": 4, "max_new_tokens": 6}
    state = about.init(policy, "Hi", configure(method, **size, **own))

    def step(**changes):
        config = configure(method, **(size | own | changes))
        return about.step(state, policy, CallableReward(reward), config)

    with pytest.raises(
        ValueError, match=r"n, max_new_tokens = \(4, 6\), and now they are \(4, 7\)"
    ):
        step(max_new_tokens=7)
    with pytest.raises(
        ValueError, match=r"n, max_new_tokens = \(4, 6\), and now they are \(5, 6\)"
    ):
        step(n=5)
    if method != "qalign":
        with pytest.raises(ValueError, match=r"tau, d = \(6, 32\), and now they are \(3, 32\)"):
            step(tau=3)
    other = METHODS["best_of_n"].init(policy, "Hi", configure("best_of_n", **size))
    with pytest.raises(ValueError, match="of another method"):
        about.step(other, policy, CallableReward(reward), configure(method, **size, **own))
