"""What the workers of the tests make: tiny policies and rewards, and rewards that end their process."""

import os
import signal
import time
from pathlib import Path

import torch
from tiny import reward, tiny_model, tokenizer_of_bytes

import aisp
from aisp.rewards import CallableReward, Reward

METHODS = {
    "AISP": {"method": "aisp", "sigma": 1.0, "n": 3, "kappa": 2, "max_new_tokens": 5},
    "best-of-n": {"method": "best_of_n", "n": 3, "kappa": 2, "max_new_tokens": 5},
}


def policy(name="llama"):
    return aisp.Policy(tiny_model(name).float(), tokenizer_of_bytes(), name=f"tiny-{name}")


def named(function):
    return CallableReward(function, name="reward")  # the same one, for all that records can tell


def picky(prompt, response):
    """The tests' reward, which cannot score the prompt that asks for a password."""
    if "password" in prompt.messages[-1]["content"]:
        raise KeyError("no more")
    return reward(prompt, response)


class Lengths(Reward):
    """A reward of batches, with the sizes of those in its column."""

    name = "lengths"

    def score(self, prompts, responses):
        time.sleep(0.05)  # long enough for others to ask meanwhile
        return torch.tensor([float(len(r)) for r in responses], dtype=torch.float64)


def deadly(folder, times, prompt_id):
    """A reward that kills its process, so many times, when it is to score one prompt."""

    def score(prompt, response):
        if prompt.id == prompt_id:
            for number in range(times):
                try:
                    (Path(folder) / f"killed-{number}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return reward(prompt, response)

    return named(score)


def slow(folder, seconds):
    """A reward that takes its time, and notes the processes that ask it."""

    def score(prompt, response):
        (Path(folder) / f"pid-{os.getpid()}").touch()
        time.sleep(seconds)
        return reward(prompt, response)

    return named(score)


def in_a_worker():
    import ray

    return ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def policy_that_only_the_driver_has():
    if in_a_worker():
        raise ValueError("there are no such weights here")
    return policy()


class Cramped:
    """In the place of `align`, in the process of one worker: memory for two prompts."""

    def __init__(self, align):
        self.align = align

    def __call__(self, prompts, *args, **more):
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.align(prompts, *args, **more)


def policy_where_memory_is_short(folder):
    """The policy; the first worker that makes it has little memory from then on."""
    from aisp.experiment import batches

    if in_a_worker():
        try:
            (Path(folder) / "cramped").touch(exist_ok=False)
        except FileExistsError:
            return policy()
        batches.align = Cramped(batches.align)
    return policy()
