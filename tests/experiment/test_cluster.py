"""Experiments on Ray: the same records as in this process, whatever becomes of workers."""

import pandas as pd
import pytest
from fake_runs import comparable
from on_ray import METHODS, policy

import aisp
from aisp import experiment
from aisp.recipe import Recipe

ray = pytest.importorskip("ray")
PROMPTS = aisp.load_prompts("builtin", split="test", limit=7)


@pytest.fixture(scope="module")
def small_ray():
    """A Ray of two CPUs and little memory, which the tests of this file share."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        logging_level="error",
    )
    yield
    ray.shutdown()


def go(path, policy, reward, **more):
    more = {"prompts": PROMPTS, "batch": 2, "progress": False, "seeds": [0, 1]} | more
    return experiment.run(path, METHODS, policy=policy, reward=reward, **more)


def test_records_of_workers_are_those_of_one_process(small_ray, tmp_path):
    import time
    recipe = Recipe("on_ray:policy")
    from tiny import reward
    t = time.time()
    serial = go(tmp_path / "serial.jsonl", policy(), reward)
    print("serial", time.time() - t); t = time.time()
    found = go(tmp_path / "ray.jsonl", recipe, reward, workers=2)
    print("ray", time.time() - t); t = time.time()
    columns = ["batch"]
    pd.testing.assert_frame_equal(comparable(found), comparable(serial))
    print((tmp_path / "ray.runs.json").read_text())
