"""What lives in Ray's processes: workers with a policy and a reward each, and a reward that they share.

`aisp.experiment.spread.cluster` starts them and gives them work. Ray is imported in their processes only.
"""

import asyncio
import importlib
import os
import pickle
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aisp.experiment import identity
from aisp.experiment.batches import BatchSize, Task, computed, out_of_memory
from aisp.experiment.spread.travel import Unpacker
from aisp.methods import configure
from aisp.prompts import Prompt
from aisp.provenance import environment
from aisp.rewards.base import CallableReward, Reward, RewardError


def ray() -> Any:
    """Ray, which is optional, and none of whose types is known here."""
    return importlib.import_module("ray")


class Kit(NamedTuple):
    """What a process is sent at its start.

    Attributes:
        policy, reward, methods: from `aisp.experiment.spread.travel.packed`; methods by label.
        batch: prompts decoded together at most.
        threads: of torch.
        gpu: whether it may use one.
        folder, path: the driver's working folder, and where it finds modules.
    """

    policy: Any
    reward: Any
    methods: dict[str, dict[str, Any]]
    batch: int
    threads: int
    gpu: bool
    folder: str
    path: list[str]

    def settle_in(self) -> None:
        """Make this process find what the driver finds, and use what it was given."""
        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        known = set(sys.path)
        sys.path += [p for p in self.path if p not in known and os.path.exists(p)]
        if not self.gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(self.threads)


class Worker:
    """A policy and a reward in a process of their own, and the prompts that come to it."""

    def __init__(self, kit: Kit, shared: "SharedReward | None" = None) -> None:
        self.kit, self.shared = kit, shared
        self.sizes: dict[str, BatchSize] = {}

    def start(self) -> dict[str, Any]:
        """Load everything; what it turned out to be, and where it is."""
        self.kit.settle_in()
        make = Unpacker()
        self.policy = make.of(self.kit.policy)
        self.reward = make.of(self.kit.reward) if self.shared is None else self.shared
        self.methods = {label: make.of(given) for label, given in self.kit.methods.items()}
        configs = {label: configure(**given) for label, given in self.methods.items()}
        own = None if self.shared else self.reward
        return {
            "made": identity.made_with(self.policy, own, configs),
            "node": ray().get_runtime_context().get_node_id(),
            "environment": environment(self.policy.device),
        }

    def compute(
        self, label: str, seed: int, head: dict[str, Any], prompts: list[Prompt]
    ) -> list[dict[str, Any]]:
        """The records of some prompts of one label and seed."""
        size = self.sizes.setdefault(label, BatchSize(self.kit.batch))
        task = Task(label, seed, self.methods[label], head)
        found = computed(task, prompts, self.policy, self.reward, size)
        return [one for records in found for one in records]


class SharedReward(Reward):
    """A reward in a process of its own, which several workers ask; see `RewardServer`."""

    def __init__(self, server: Any, name: str, scores_prefixes: bool) -> None:
        self.server, self.name, self.scores_prefixes = server, name, scores_prefixes

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        answer = ray().get(self.server.score.remote(list(prompts), list(responses)))
        if isinstance(answer, Exception):
            raise answer
        return answer


class RewardServer:
    """Scores for many workers: what is asked while it computes, it scores together next."""

    def __init__(self, kit: Kit) -> None:
        kit.settle_in()
        reward = Unpacker().of(kit.reward)
        self.reward: Reward = reward if isinstance(reward, Reward) else CallableReward(reward)
        self.waiting: list[tuple[Sequence[Any], Sequence[str], asyncio.Future]] = []
        self.serving: asyncio.Task | None = None
        self.thread = ThreadPoolExecutor(1)
        self.rounds: list[int] = []  # requests that were scored together, of each round

    async def about(self) -> dict[str, Any]:
        """What it turned out to be."""
        reward = self.reward
        told = identity.told_of_reward(reward)
        return {"name": reward.name, "scores_prefixes": reward.scores_prefixes, "made": told}

    async def scored_together(self) -> list[int]:
        return self.rounds

    async def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Any:
        """The rewards, (N,), or the error that they end in."""
        answer: asyncio.Future = asyncio.get_running_loop().create_future()
        self.waiting.append((prompts, responses, answer))
        if self.serving is None:
            self.serving = asyncio.create_task(self._serve())
        return await answer

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while self.waiting:
            asked, self.waiting = self.waiting, []
            pairs = [(prompts, responses) for prompts, responses, _ in asked]
            found = await loop.run_in_executor(self.thread, self._answers, pairs)
            for (_, _, answer), value in zip(asked, found, strict=True):
                answer.set_result(value)
        self.serving = None

    def _answers(self, asked: list[tuple[Sequence[Any], Sequence[str]]]) -> list[Any]:
        """One answer to each request; where all together fail, each alone."""
        self.rounds.append(len(asked))
        prompts = [p for one, _ in asked for p in one]
        responses = [r for _, one in asked for r in one]
        try:
            values = self.reward.score(prompts, responses)
            if isinstance(values, Tensor) and len(values) == len(responses):
                return list(values.split([len(r) for _, r in asked]))
            raise RewardError("it returned something else than one number for each response")
        except Exception as error:
            if len(asked) > 1:
                return [answer for one in asked for answer in self._answers([one])]
            return [_portable(error)]


def _portable(error: Exception) -> Exception:
    """An error that any process can read, and that still says whether memory was short."""
    if out_of_memory(error):
        return torch.OutOfMemoryError(str(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RewardError(f"{type(error).__name__}: {error}", getattr(error, "index", None))
    return error
