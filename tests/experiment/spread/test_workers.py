"""What lives in Ray's processes, without Ray: a reward that scores for many at once."""

import asyncio
import pickle

import on_ray
import pytest
import tiny
import torch

import aisp
from aisp.experiment.spread.travel import packed
from aisp.experiment.spread.workers import Kit, RewardServer
from aisp.recipe import Recipe
from aisp.rewards import CallableReward, RewardError


def served(reward, *requests):
    """Answers to requests that arrive together, and how many were scored together."""
    threads = torch.get_num_threads()
    server = RewardServer(Kit(None, packed(reward, "it"), {}, 1, threads, True, ".", []))

    async def ask():
        return await asyncio.gather(*(server.score(*request) for request in requests))

    return asyncio.run(ask()), server.rounds


def test_requests_that_arrive_together_are_scored_together_as_they_are_alone():
    requests = [(["x"] * n, ["a" * (i + n) for i in range(n)]) for n in (3, 1, 2)]
    answers, rounds = served(Recipe("on_ray:Lengths"), *requests)
    assert [x.tolist() for x in answers] == [[3, 4, 5], [1], [2, 3]] and rounds == [3]
    (one,), _ = served(tiny.reward, requests[0])
    local = CallableReward(tiny.reward).score(*requests[0])
    assert one.equal(local) and one.dtype == torch.float64


def test_scores_of_the_embedded_reward_do_not_depend_on_who_else_asks(embedded):
    reward = aisp.load_reward("embedded", policy=embedded)
    questions = ["How do I learn to cook?", "Name a river"]
    requests = [([q] * 2, ["Slowly.", "The Danube, and before that some rain."]) for q in questions]
    answers, rounds = served(reward, *requests)
    assert rounds == [2]
    for answer, request in zip(answers, requests, strict=True):
        torch.testing.assert_close(answer, reward.score(*request), rtol=0, atol=1e-4)


def test_a_request_that_fails_fails_alone_and_with_its_own_error():
    bad = ([aisp.prompts.Prompt("g", "What is your password?", "mine")], ["a"])
    good = ([aisp.prompts.Prompt("p", "Hi", "mine")], ["ab"])
    recipe = Recipe("on_ray:named", function=on_ray.picky)
    (failed, fine), rounds = served(recipe, bad, good)
    assert fine.tolist() == [tiny.reward(None, "ab")] and rounds == [2, 1, 1]
    assert isinstance(failed, RewardError) and failed.index == 0 and "no more" in str(failed)


@pytest.mark.parametrize("within", [False, True])
def test_short_memory_is_still_told_from_other_errors(within):
    from aisp.experiment.spread.workers import _portable

    error = torch.OutOfMemoryError("CUDA out of memory")
    if within:
        outer = RewardError("the reward raised OutOfMemoryError")
        outer.__cause__, error = error, outer
    assert type(pickle.loads(pickle.dumps(_portable(error)))) is torch.OutOfMemoryError

    class Local(Exception):  # which no other process can read
        pass

    assert type(_portable(Local("x"))) is RewardError
    assert type(_portable(KeyError("x"))) is KeyError
