"""Speculative rejection: best-of-n where nothing is stopped, and who is stopped when and at what cost."""

import numpy as np
import pytest
import torch
from tiny import reward

import aisp
from aisp.methods import METHODS, configure
from aisp.rewards import CallableReward, Reward, RewardError

PROMPTS = ["Hi", "How do I learn to cook?"]
SIZE = dict(n=8, kappa=2, max_new_tokens=12, seed=1, progress=False)


def first_letter(prompt, response):
    """Every beginning tells all of it."""
    return float(ord(response[0])) if response else -1.0


@pytest.fixture
def often(tiny):
    """A policy that ends many responses early; what fills them up afterwards is visible text."""
    base, ends = tiny(), (70, *range(0, 258, 7))
    return aisp.Policy(base.model, base.tokenizer, name="often", eos_ids=ends)


def both(policy, r=reward, prompts=PROMPTS, **more):
    given = SIZE | more
    spec = aisp.align(prompts, policy, r, "speculative_rejection", **given)
    plain = {x: v for x, v in given.items() if x not in ("share", "checkpoints")}
    return zip(spec, aisp.align(prompts, policy, r, "best_of_n", **plain), strict=True)


@pytest.mark.parametrize("more", [{"share": 0}, {"share": 0.1}], ids=["none", "less than one"])
def test_a_share_that_stops_none_is_best_of_n(often, more):
    for ours, plain in both(often, **more):
        assert ours.candidates["response"].tolist() == plain.candidates["response"].tolist()
        assert ours.candidates["reward"].tolist() == plain.candidates["reward"].tolist()
        assert ours.history["tokens"].tolist() == plain.history["tokens"].tolist()
        assert ours.history["reward_calls"].tolist() == [8, 8]


def test_the_rest_are_those_of_best_of_n_and_the_stopped_are_their_beginnings(often):
    infos = {}
    for method in ("speculative_rejection", "best_of_n"):
        config = configure(method, n=8, kappa=1, max_new_tokens=12, top_p=0.9)
        _, init, step, _ = METHODS[method]
        state = init(often, PROMPTS, config, seed=1)
        state, infos[method] = step(state, often, CallableReward(reward), config)
    ours, plain = infos["speculative_rejection"], infos["best_of_n"]
    cut = ours.rewards == -torch.inf
    assert cut.any(-1).all() and cut.sum(-1).tolist() == ours.columns["stopped"]
    assert torch.equal(ours.rewards[~cut], plain.rewards[~cut])
    assert torch.equal(ours.rollout.tokens[~cut], plain.rollout.tokens[~cut])
    assert set(ours.rollout.lengths[cut].tolist()) <= {3, 6, 9}
    assert (ours.rollout.lengths[cut] < plain.rollout.lengths[cut]).all()
    within = torch.arange(12) < ours.rollout.lengths[cut][:, None]
    assert torch.equal(ours.rollout.tokens[cut][within], plain.rollout.tokens[cut][within])


def test_the_reward_reads_beginnings_as_they_stand_and_what_has_ended_as_it_ended(often):
    seen = []

    def watched(prompt, response):
        seen.append(response)
        return reward(prompt, response)

    config = configure("speculative_rejection", n=8, kappa=1, max_new_tokens=12, temperature=1.0)
    plain = configure("best_of_n", n=8, kappa=1, max_new_tokens=12, temperature=1.0)
    for method, given, r in (
        ("speculative_rejection", config, watched),
        ("best_of_n", plain, reward),
    ):
        _, init, step, _ = METHODS[method]
        _, info = step(init(often, "Hi", given, seed=1), often, CallableReward(r), given)
    tokens, lengths = info.rollout.tokens[0].tolist(), info.rollout.lengths[0].tolist()
    at = [
        [often.decode([row[: min(t, end)]])[0] for row, end in zip(tokens, lengths, strict=True)]
        for t in (3, 6, 9, 12)
    ]
    assert min(lengths) < 3 and seen[:8] == at[0]
    assert set(seen[8:12]) <= set(at[1]) and set(seen[12:14]) <= set(at[2])
    assert set(seen[14:]) <= set(at[3])


def test_where_beginnings_tell_all_the_best_is_kept_at_half_of_the_tokens(tiny):
    """8 responses of 12 tokens: 8 go 3 tokens, 4 go 6, 2 go 9 and 1 all 12; 96 for best-of-n."""
    for ours, plain in both(tiny(), first_letter):
        assert plain.history["tokens"].tolist() == [96, 96], "one has ended: count anew"
        assert ours.history["tokens"].tolist() == [4 * 3 + 2 * 6 + 1 * 9 + 12] * 2
        assert ours.history["stopped"].tolist() == [7, 7]
        assert ours.history["reward_calls"].tolist() == [8 + 4 + 2 + 1] * 2
        assert (ours.response, ours.reward) == (plain.response, plain.reward)


def test_what_has_ended_keeps_its_reward_and_its_place_in_the_ranking(often):
    """Responses that ended are scored at their own end, and may push others out."""

    def short(prompt, response):
        return -float(len(response))

    for ours, plain in both(often, short, share=0.5, checkpoints=1):
        found = ours.candidates
        tokens = [len(often.tokenizer(x)["input_ids"]) for x in plain.candidates["response"]]
        for iteration in (0, 1):
            rows = found[found["iteration"] == iteration]
            early = {i for i in rows.index if tokens[i] < 6}
            assert early and (found["reward"][list(early)] > -np.inf).all()
            # The rest are equally long, in tokens, when they are compared.
            assert (rows["reward"] == -np.inf).sum() <= 4
        assert ours.reward == plain.reward


def test_iterations_decoded_together_equal_those_one_by_one(often):
    for x, y in zip(
        aisp.align(PROMPTS, often, reward, "speculative_rejection", **SIZE, rows=128),
        aisp.align(PROMPTS, often, reward, "speculative_rejection", **SIZE, rows=1),
        strict=True,
    ):
        assert x.candidates.equals(y.candidates)
        timeless = [name for name in x.history if name != "seconds"]
        assert x.history[timeless].equals(y.history[timeless])


def test_what_a_prompt_costs_does_not_depend_on_those_beside_it(often):
    """Groups that have ended are not scored again while others go on."""
    prompts = [f"Count to {k}." for k in range(12)]
    given = dict(n=4, kappa=2, max_new_tokens=8, seed=1, progress=False)
    together = aisp.align(prompts, often, reward, "speculative_rejection", **given)
    calls = []
    for prompt, x in zip(prompts, together, strict=True):
        alone = aisp.align(prompt, often, reward, "speculative_rejection", **given, rows=1)
        assert alone.candidates.equals(x.candidates)
        assert alone.history["reward_calls"].tolist() == x.history["reward_calls"].tolist()
        calls += x.history["reward_calls"].tolist()
    assert min(calls) < max(calls)


def test_beginnings_may_all_be_rejected(tiny):
    """They are level then, and the last of them are stopped."""

    def long(prompt, response):
        return float(len(response)) if len(response) > 9 else -np.inf

    (ours,) = both(tiny(), long, ["Hi"], kappa=1)
    found, plain = ours[0].candidates["reward"], ours[1].candidates["reward"]
    assert ours[0].history["stopped"].tolist() == [7]
    assert found.idxmax() == 0 and found[0] == plain[0]
    kept = ours[0].history
    assert kept["reward_mean"].tolist() == [found[0]] and kept["reward_std"].tolist() == [0.0]


def test_where_all_that_were_not_stopped_are_rejected_the_error_counts_them(tiny):
    calls, bad = [], 8 + 4 + 2 + 1

    def last(prompt, response):
        calls.append(response)
        return -np.inf if len(calls) == bad else first_letter(prompt, response)

    with pytest.raises(RewardError, match=r"rejected \(-inf\) the 1 of 8 candidates that were not"):
        aisp.align("Hi", tiny(), last, "speculative_rejection", **SIZE, rows=8)
    calls, bad = [], 2 * bad  # the second iteration finds nothing, and the first one did
    out = aisp.align("Hi", tiny(), last, "speculative_rejection", **SIZE, rows=8)
    assert out.reward > -np.inf and out.history["reward_mean"].isna().tolist() == [False, True]


def test_a_batch_of_another_shape_is_refused(tiny):
    class One(Reward):
        name = "one"

        def score(self, prompts, responses):
            return torch.zeros(len(responses) if len(responses) > 1 else 2)

    with pytest.raises(RewardError, match=r"returned \(2,\) for 1 responses"):
        aisp.align("Hi", tiny(), One(), "speculative_rejection", **SIZE, rows=8)


def test_checkpoints_are_evenly_spaced_and_as_many_as_fit():
    def lengths(tokens, checkpoints=3):
        config = configure("speculative_rejection", max_new_tokens=tokens, checkpoints=checkpoints)
        return config.lengths

    assert lengths(48) == [12, 24, 36] and lengths(48, 1) == [24] and lengths(128, 2) == [42, 85]
    assert lengths(2) == [1] and lengths(1) == []


@pytest.mark.parametrize("method", ["speculative_rejection", "args"])
def test_a_reward_of_whole_responses_is_refused_by_what_needs_beginnings(tiny, method):
    def solved(prompt, response):
        return 1.0

    solved.scores_prefixes = False
    with pytest.raises(ValueError, match=r"before they end, and reward 'solved' reads whole ones"):
        aisp.align("Hi", tiny(), solved, method, progress=False)
    assert aisp.align("Hi", tiny(), solved, "best_of_n", **SIZE).reward == 1.0
    assert CallableReward(first_letter).scores_prefixes


def test_a_failing_reward_names_the_candidate_among_all(tiny):
    """The reward fails on the whole response of one that was not stopped."""
    calls = []

    def fails(prompt, response):
        calls.append(response)
        if len(calls) == 8 + 4 + 2 + 1:
            raise OSError("no connection")
        return -first_letter(prompt, response)

    with pytest.raises(RewardError, match="no connection") as caught:
        aisp.align("Hi", tiny(), fails, "speculative_rejection", **SIZE, rows=8)
    found = caught.value.candidates["response"].tolist()
    named = int(str(caught.value).split("candidate ")[1].split(":")[0])
    assert len(found) == 8 and found[named] == calls[-1] != "" and named > 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(share=1), "share is 1; it must be below 1"),
        (dict(share=-0.1), r"share is -0.1; it must lie in \[0, 1\], and below 1"),
        (dict(checkpoints=0), "checkpoints is 0; it must be a whole number >= 1"),
        (dict(checkpoints=1.5), "checkpoints is 1.5"),
    ],
)
def test_bad_dials_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        configure("speculative_rejection", **bad)


def test_greedy_decoding_has_nothing_to_choose_from_and_works(tiny):
    out = aisp.align("Hi", tiny(), reward, "speculative_rejection", **SIZE, temperature=0)
    kept = out.candidates[out.candidates["reward"] > -np.inf]
    assert kept["response"].nunique() == 1 and len(kept) == 2
