"""Experiments on Ray: the same records as in this process, whatever becomes of workers."""

import json
import sys

import pandas as pd
import pytest
import tiny
import torch
from fake_runs import comparable
from on_ray import METHODS, named, picky, policy

import aisp
from aisp import experiment
from aisp.prompts import Prompt
from aisp.recipe import Recipe

PROMPTS = [Prompt(f"q{i}", f"Tell me about {'more ' * i}rivers", "mine") for i in range(7)]
POLICY = Recipe("on_ray:policy")


@pytest.fixture(scope="module")
def small_ray():
    """A Ray of two CPUs and little memory, which the tests of this file share."""
    ray = pytest.importorskip("ray")
    size = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    ray.init(address="local", logging_level="error", **size)
    yield ray
    ray.shutdown()


def go(path, reward=tiny.reward, policy=POLICY, methods=METHODS, **more):
    more = {"prompts": PROMPTS, "batch": 2, "progress": False} | more
    return experiment.run(path, methods, policy=policy, reward=reward, **more)


def provenance(path):
    (run,) = json.loads(path.with_suffix(".runs.json").read_text()).values()
    return run


def same(found, serial):
    """All of the records but time and provenance."""
    pd.testing.assert_frame_equal(comparable(found), comparable(serial))


# -- the same records -----------------------------------------------------------------------------


def test_two_workers_write_the_records_of_one_process(small_ray, tmp_path):
    """Those of a prompt that the reward raises for among them."""
    guilty = Prompt("guilty", "What is your password?", "mine")
    more = {"seeds": [0, 1], "prompts": [*PROMPTS, guilty], "reward": named(picky)}
    serial = go(tmp_path / "serial.jsonl", policy=policy(), **more)
    found = go(tmp_path / "ray.jsonl", workers=2, **more)
    same(found, serial)
    keys = ["label", "prompt", "seed"]
    batches = [x.sort_values(keys)["batch"].tolist() for x in (found, serial)]
    assert batches[0] == batches[1] and len(found) == 32
    assert found["prompt"][found["error"].notna()].tolist() == ["guilty"] * 4
    run, here = (provenance(tmp_path / f"{name}.jsonl") for name in ("ray", "serial"))
    # On a busy machine one may have done all before the other has loaded.
    assert run["workers"] and {w["worker"] for w in run["workers"]} <= {0, 1}
    assert run["workers_lost"] == 0
    for one in run["workers"]:
        assert one["device"] == "cpu" and one["packages"] == here["packages"]
        assert one["threads"] == 1 and one["node"] == 0
    assert small_ray.is_initialized(), "a Ray that was there before goes on"


# -- workers that are lost ------------------------------------------------------------------------


def test_a_worker_killed_within_a_batch_is_replaced(small_ray, tmp_path, capsys):
    killer = Recipe("on_ray:deadly", folder=str(tmp_path), times=1, prompt_id=PROMPTS[3].id)
    found = go(tmp_path / "e.jsonl", killer, workers=2)
    assert (tmp_path / "killed-0").exists(), "nothing was killed, so nothing is shown"
    same(found, go(tmp_path / "serial.jsonl", named(tiny.reward)))
    assert provenance(tmp_path / "e.jsonl")["workers_lost"] == 1
    assert "a worker was lost with a batch of 2 prompts" in capsys.readouterr().err
    before = (tmp_path / "e.jsonl").read_bytes()
    go(tmp_path / "e.jsonl", killer, workers=2)
    assert (tmp_path / "e.jsonl").read_bytes() == before, "a second run has nothing to do"


@pytest.mark.slow
def test_a_prompt_that_kills_every_worker_fails_alone(small_ray, tmp_path):
    killer = Recipe("on_ray:deadly", folder=str(tmp_path), times=99, prompt_id=PROMPTS[3].id)
    one = {"methods": {"AISP": METHODS["AISP"]}, "batch": 4}
    found = go(tmp_path / "e.jsonl", killer, workers=2, **one).set_index("prompt")
    assert found.index[found["error"].notna()].tolist() == [PROMPTS[3].id]
    assert found.loc[PROMPTS[3].id, "error"].startswith("WorkerLost: 3 workers were killed")
    assert provenance(tmp_path / "e.jsonl")["workers_lost"] == 5  # thrice 4 prompts, then 2, then 1


def test_out_of_memory_halves_the_batches_of_one_worker_only(small_ray, tmp_path):
    policy = Recipe("on_ray:policy_where_memory_is_short", folder=str(tmp_path))
    unhurried = Recipe("on_ray:slow", folder=str(tmp_path), seconds=0.03)
    one = {"methods": {"AISP": METHODS["AISP"]}, "batch": 4, "seeds": range(4)}
    found = go(tmp_path / "e.jsonl", unhurried, policy, workers=2, **one)
    assert set(found["batch"]) == {1, 2, 3, 4}, "halves of 4 and of 3, and both whole"
    same(found, go(tmp_path / "serial.jsonl", named(tiny.reward), **one))


# -- a shared reward ------------------------------------------------------------------------------


def test_a_shared_reward_gives_the_scores_of_a_local_one(small_ray, tmp_path):
    found = go(tmp_path / "e.jsonl", named(picky), workers=2, shared_reward=0)
    same(found, go(tmp_path / "serial.jsonl", named(tiny.reward)))


def test_a_shared_reward_scores_many_requests_together(small_ray):
    from on_ray import Lengths

    from aisp.experiment.spread.travel import packed
    from aisp.experiment.spread.workers import Kit, RewardServer, SharedReward

    kit = Kit(None, packed(Recipe("on_ray:Lengths"), "it"), {}, 1, 1, False, ".", sys.path)
    server = small_ray.remote(num_cpus=0)(RewardServer).remote(kit)
    texts = [["a" * (i + 1), "b" * i] for i in range(9)]
    asked = [server.score.remote(["x", "x"], pair) for pair in texts]
    answers = [x.tolist() for x in small_ray.get(asked)]
    assert answers == [Lengths().score(["x", "x"], pair).tolist() for pair in texts]
    rounds = small_ray.get(server.scored_together.remote())
    assert sum(rounds) == 9 and max(rounds) > 1, rounds
    shared = SharedReward(server, "lengths", True)
    assert aisp.rewards.score(shared, ["x"], [["ab", "c"]]).tolist() == [[2.0, 1.0]]
    small_ray.kill(server)


# -- what is refused before anything starts --------------------------------------------------------


def test_without_ray_workers_are_an_error_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"workers is 2, which needs Ray.*pip install"):
        go(tmp_path / "e.jsonl", workers=2)
    assert not (tmp_path / "e.jsonl").exists()
    assert len(go(tmp_path / "e.jsonl")) == 14, "and without workers nothing needs it"


@pytest.mark.parametrize(
    "given, said",
    [
        ({"workers": 0}, "workers is 0; it must be a whole number >= 1"),
        ({"workers": 2, "cpus_per_worker": 0}, "cpus_per_worker is 0; it must be > 0"),
        ({"workers": 2, "gpus_per_worker": -1}, "gpus_per_worker is -1; it must be >= 0"),
        ({"workers": 2, "shared_reward": "1"}, "shared_reward is '1'"),
        ({"address": "auto"}, "address is 'auto', and workers is None"),
    ],
)
def test_numbers_of_a_cluster_are_checked(given, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        go(tmp_path / "e.jsonl", **given)
    assert not (tmp_path / "e.jsonl").exists()


def test_what_cannot_travel_is_refused_before_anything_starts(tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(
        ValueError, match=r"the reward is <function .*<lambda>.*top level of a module"
    ):
        go(tmp_path / "e.jsonl", lambda prompt, response: 1.0, workers=2)
    with pytest.raises(
        ValueError, match=r"the policy \(tiny-llama\) does not say how it was loaded"
    ):
        go(tmp_path / "e.jsonl", policy=policy(), workers=2)
    assert not (tmp_path / "e.jsonl").exists()


@pytest.mark.slow
def test_a_worker_with_another_policy_is_refused(small_ray, tmp_path):
    here = Recipe("on_ray:policy").make()
    with torch.no_grad():
        here.model.lm_head.weight[0, 0] += 1  # as an adapter that was merged would change it
    with pytest.raises(ValueError, match="something else than this process: policy_sha256"):
        go(tmp_path / "e.jsonl", policy=here, workers=1)


@pytest.mark.slow
def test_a_recipe_that_fails_in_a_worker_ends_the_run_with_its_error(small_ray, tmp_path):
    with pytest.raises(ValueError, match="there are no such weights here"):
        go(tmp_path / "e.jsonl", policy=Recipe("on_ray:policy_that_only_the_driver_has"), workers=2)
    same(go(tmp_path / "e.jsonl"), go(tmp_path / "serial.jsonl"))


def test_a_cluster_that_is_too_small_is_refused(small_ray, tmp_path):
    with pytest.raises(ValueError, match=r"a worker needs 64 CPUs, and all of the cluster has 2"):
        go(tmp_path / "e.jsonl", workers=1, cpus_per_worker=64)
