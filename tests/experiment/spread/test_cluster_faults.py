"""A Ray of its own for each test: drivers that are stopped or killed, and a machine that leaves."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import tiny
from fake_runs import comparable
from on_ray import METHODS, named

from aisp import experiment
from aisp.prompts import Prompt
from aisp.recipe import Recipe

pytestmark = pytest.mark.slow

PROMPTS = [Prompt(f"q{i}", f"Tell me about {'more ' * i}rivers", "mine") for i in range(12)]
PATIENCE = 300  # seconds; what is waited for takes ten on an idle machine


def go(path, reward, **more):
    policy = Recipe("on_ray:policy")
    how = {"policy": policy, "reward": reward, "batch": 2, "progress": False, "seeds": range(3)}
    return experiment.run(path, METHODS, PROMPTS, **how, **more)


def whole(tmp_path):
    return comparable(go(tmp_path / "serial.jsonl", named(tiny.reward)))


def lines(path):
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def until(what, happened):
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE} s"
        time.sleep(0.2)


@pytest.fixture
def driver(tmp_path):
    """A run with two workers in a process of its own, in the middle of its records."""
    pytest.importorskip("ray")
    path = tmp_path / "e.jsonl"
    command = [sys.executable, __file__, str(path)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    errors = (tmp_path / "stderr").open("w+")
    process = subprocess.Popen(command, env=env, stderr=errors)
    try:
        until("the first records", lambda: lines(path) >= 4 or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "stderr").read_text()
        yield process, psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_is_stopped_leaves_no_process_and_is_resumed(how, driver, tmp_path):
    process, others = driver
    path = tmp_path / "e.jsonl"
    workers = [p for p in others if "ray::Worker" in " ".join(p.cmdline())]
    assert len(workers) == 2
    process.send_signal(how)
    process.wait(PATIENCE)
    if how == signal.SIGINT:
        assert "KeyboardInterrupt" in (tmp_path / "stderr").read_text()
    # Of a killed driver, Ray's own agents look only now and then whether it is there.
    _, alive = psutil.wait_procs(workers if how == signal.SIGKILL else others, timeout=60)
    assert not alive, alive
    kept = lines(path)
    assert 4 <= kept < 72, "it was stopped in the middle"
    found = go(path, named(tiny.reward))
    pd.testing.assert_frame_equal(comparable(found), whole(tmp_path))
    assert len(found["run"].unique()) == 2 and lines(path) == 72


def test_a_machine_that_leaves_loses_nothing(tmp_path):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    path = tmp_path / "e.jsonl"
    try:
        size.pop("include_dashboard")
        node = cluster.add_node(**size)
        cluster.wait_for_nodes(timeout=PATIENCE)

        def leave():
            """Once both workers have computed something."""
            until("two workers", lambda: len(list(tmp_path.glob("pid-*"))) == 2)
            cluster.remove_node(node, allow_graceful=False)

        leaving = threading.Thread(target=leave)
        leaving.start()
        unhurried = Recipe("on_ray:slow", folder=str(tmp_path), seconds=0.1)
        found = go(path, unhurried, workers=2, address=cluster.address)
        leaving.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    pd.testing.assert_frame_equal(comparable(found), whole(tmp_path))
    (run,) = json.loads(path.with_suffix(".runs.json").read_text()).values()
    assert run["workers_lost"] >= 1 and {w["node"] for w in run["workers"]} == {0, 1}


if __name__ == "__main__":
    records = Path(sys.argv[1])
    go(records, Recipe("on_ray:slow", folder=str(records.parent), seconds=0.1), workers=2)
