"""Experiments of a method that takes no time, for tests of what becomes of their records."""

import random
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

import aisp.experiment.batches
import aisp.experiment.records
from aisp import experiment
from aisp.alignment import Alignment
from aisp.methods import configure
from aisp.prompts import Prompt
from aisp.rewards import RewardError

PROMPTS = [Prompt(f"p{i}", f"question {i}", "set") for i in range(10)]
POLICY = SimpleNamespace(
    name="fake",
    template="continuation",
    dtype=torch.float32,
    device="cpu",
    prefix=lambda p: [0],
    model=torch.nn.Identity(),
    tokenizer=None,
    eos_ids=(0,),
    engine="aisp",
)


def reward(prompt, response):
    return float(len(set(response)))


class Fake:
    """Stands in for `align`: a result is a function of prompt, seed and method only."""

    def __init__(self, seconds=0.0):
        self.seconds, self.guilty, self.memory, self.within_reward = seconds, set(), 100, False
        self.batches = []

    def __call__(self, prompts, policy, reward, method, *, seed, progress, **parameters):
        self.batches.append(len(prompts))
        time.sleep(self.seconds)
        if len(prompts) > self.memory:
            error = torch.OutOfMemoryError("CUDA out of memory")
            if self.within_reward:
                raise RewardError("the reward raised OutOfMemoryError") from error
            raise error
        if self.guilty & {p.id for p in prompts}:
            raise RuntimeError("the model fails")
        config = configure(method, **parameters)
        return [self.result(p, config, seed, method) for p in prompts]

    def result(self, prompt, config, seed, method):
        rng = random.Random(f"{prompt.id!a} {seed} {method}")
        value, response = rng.random(), f"{rng.random()} " * rng.choice([1, 5000])
        history = {"reward_best": [value], "tokens": [7], "seconds": [time.perf_counter()]}
        if method == "aisp":
            history["reward_calls"] = [11]
        one = {"iteration": 0, "response": response, "reward": value}
        candidates = pd.DataFrame([one] * 4)
        history = pd.DataFrame(history)
        return Alignment(prompt, response, value, candidates, history, config, seed, method)


def install(fake, setattr=setattr):
    setattr(aisp.experiment.batches, "align", fake)
    # This takes longer than a whole run of this method.
    setattr(aisp.experiment.records, "git_state", dict)
    return fake


def run_fake(path, prompts=PROMPTS, methods=None, **more):
    methods = methods or {"A": {"method": "best_of_n"}, "B": {"method": "aisp"}}
    more = {"progress": False, "batch": 2} | more
    return experiment.run(path, methods, prompts, POLICY, reward, **more)


def in_order(records):
    return records.sort_values(["label", "prompt", "seed"]).reset_index(drop=True)


def comparable(records):
    """All but what differs between runs."""
    records = in_order(records).drop(columns=["run", "seconds", "batch"])
    records["history"] = [h | {"seconds": None} for h in records["history"]]
    return records


def measured(shifts, prompts=12, seeds=3, noise=0.3):
    """Labels with a shift each, on one shared level per prompt and seed."""
    rng = np.random.default_rng(0)
    level = rng.normal(0, 2, (prompts, seeds))
    rows = []
    for label, (reward, judged) in shifts.items():
        for p in range(prompts):
            for s in range(seeds):
                of = {"label": label, "prompt": f"p{p}", "seed": s, "interrupted": False}
                of |= {"reward": level[p, s] + reward + rng.normal(0, noise)}
                rows.append(of | {"judged": level[p, s] + judged + rng.normal(0, noise)})
    return pd.DataFrame(rows)
