"""Experiments on Ray: workers in processes of their own, on this machine or on many, and one writer.

`experiment.run(..., workers=8)` comes here. Each worker makes policy and reward anew from their recipes
(`aisp.recipe`) and gets the next batch of prompts as soon as it is free; what it finds comes back to
this process, which alone writes. A worker that is lost, because it or its machine was killed, is
replaced, and its batch is tried again. Ray (https://docs.ray.io) is optional, imported where it is used.
"""

import contextlib
import math
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from aisp.checks import real, whole
from aisp.experiment.batches import Task
from aisp.experiment.spread.travel import packed
from aisp.experiment.spread.workers import Kit, RewardServer, SharedReward, Worker, ray
from aisp.experiment.store.contents import contents
from aisp.policy import Policy
from aisp.prompts import Prompt

TRIES = 3  # workers that may be lost with one batch before it is halved, or given up
STORE = 100 * 2**20  # bytes of Ray's object store, of a Ray of our own: what is sent is small
PATIENCE = 60.0  # seconds without any worker, after which it is said what is waited for

Records = list[dict[str, Any]]
Note = Callable[[dict[str, Any]], None]


class Crew(NamedTuple):
    """Workers as they are asked for, checked; `assembled` makes one.

    Attributes:
        address: of a running cluster; None is a Ray of our own on this machine.
        cpus, gpus: of each worker; gpus None is one where the cluster has any.
        shared_reward: GPUs of one reward for all; None where each worker has its own.
        policy, reward, methods: as they travel.
    """

    workers: int
    address: str | None
    cpus: float
    gpus: float | None
    shared_reward: float | None
    policy: Any
    reward: Any
    methods: dict[str, Any]


def assembled(
    workers: int,
    policy: Policy,
    reward: Any,
    methods: Mapping[str, dict[str, Any]],
    *,
    address: str | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | None = None,
    shared_reward: float | None = None,
) -> Crew:
    """Check all that can be checked before anything starts.

    Args:
        policy, reward, methods: as in `experiment.run`.
        address: "auto" or "host:port" of a running cluster; None is that of $RAY_ADDRESS, else a Ray
            of our own on this machine, which ends with the run.
        cpus_per_worker: and threads of torch. None is one in a cluster, and an equal share of the
            cores in a Ray of our own.
        gpus_per_worker: also a part of one. None is one where the cluster has any, else none.
        shared_reward: GPUs of a reward in a process of its own that all workers ask; 0 is one on the
            CPU. None: each worker has its own.

    Raises:
        ValueError: a number that is none; Ray is not installed; a policy, reward or parameter that
            cannot travel.
    """
    count = whole("workers", workers, least=1, note=" (None: in this process)")
    place = address or os.environ.get("RAY_ADDRESS") or None
    share = 1.0 if place else max(1.0, _cores() // count)
    cpus = share if cpus_per_worker is None else real("cpus_per_worker", cpus_per_worker, above=0)
    gpus = None if gpus_per_worker is None else real("gpus_per_worker", gpus_per_worker, least=0)
    if shared_reward is not None:
        shared_reward = real("shared_reward", shared_reward, least=0, note=" (GPUs of the reward)")
    try:
        ray()
    except ImportError as error:
        raise ValueError(
            f"workers is {workers!r}, which needs Ray, and it is not installed: pip install "
            "'aisp-companion[ray]' (pip install ray), on every machine; or leave out workers"
        ) from error
    sent = packed(policy, "the policy"), packed(reward, "the reward")
    parameters = {label: packed(given, f"{label!r}") for label, given in methods.items()}
    return Crew(count, place, cpus, gpus, shared_reward, *sent, parameters)


def computed(
    crew: Crew,
    made: dict[str, dict[str, Any]],
    tasks: Sequence[tuple[Task, list[Prompt]]],
    batch: int,
    note: Note,
) -> Generator[Records, None, None]:
    """The records of all tasks, computed by workers, as they are finished.

    Args:
        made: label -> what its records are made with, which must hold in every worker.
        batch: prompts that a worker gets at once.
        note: takes what the provenance is to say: "workers", one entry for each that was started,
            and "workers_lost", how many were lost within a batch or while they were loading.

    Raises:
        ValueError: a worker has another policy or reward than this process; recipes that fail.
        ConnectionError: there is no cluster at the address.
    """
    jobs = [
        _Job(task, prompts[i : i + batch])
        for task, prompts in tasks
        for i in range(0, len(prompts), batch)
    ]
    with _joined(crew):
        yield from _Driver(crew, made, deque(jobs), batch, note).run()


class _Job:
    """A batch of prompts that goes to one worker; how often it was lost, and where the last time."""

    def __init__(self, task: Task, prompts: list[Prompt], lost: int = 0, slot: int | None = None):
        self.task, self.prompts, self.lost, self.slot = task, prompts, lost, slot


class _Driver:
    """Hires workers, gives them jobs as they become free, and replaces those that are lost."""

    def __init__(
        self, crew: Crew, made: dict[str, dict[str, Any]], jobs: deque[_Job], batch: int, note: Note
    ) -> None:
        self.crew, self.made, self.jobs, self.batch, self.note = crew, made, jobs, batch, note
        self.actors: dict[int, Any] = {}  # slot -> the worker in it
        self.running: dict[Any, tuple[int, _Job | None]] = {}  # without a job: it is loading
        self.idle: set[int] = set()
        self.failed: dict[int, int] = {}  # slot -> how often in a row a worker did not start
        self.started: list[dict[str, Any]] = []
        self.nodes: list[str] = []
        self.lost = 0
        self.server: Any = None

    def run(self) -> Iterator[Records]:
        try:
            self._open()
            waited = 0.0
            while self.jobs or any(job for _, job in self.running.values()):
                done, _ = ray().wait(list(self.running), num_returns=1, timeout=PATIENCE)
                waited = 0.0 if done else waited + PATIENCE
                if waited == PATIENCE and not any(job for _, job in self.running.values()):
                    self._say_what_is_missing()
                for reference in done:
                    yield from self._settle(reference)
        finally:
            for actor in [*self.actors.values(), *filter(None, [self.server])]:
                ray().kill(actor)

    # -- workers ----------------------------------------------------------------------------------

    def _open(self) -> None:
        self.resources = ray().cluster_resources()
        gpus = self.crew.gpus
        if gpus is None:
            gpus = float(self.resources.get("GPU", 0) >= 1)
        needs = {"CPU": self.crew.cpus, "GPU": gpus}
        for name, amount in needs.items():
            if amount > self.resources.get(name, 0):
                raise ValueError(
                    f"a worker needs {amount:g} {name}s, and all of the cluster has "
                    f"{self.resources.get(name, 0):g}; lower {name.lower()}s_per_worker, or add machines"
                )
        kit = self._kit(gpus > 0, self.crew.cpus)
        self.hiring = (
            ray().remote(num_cpus=self.crew.cpus, num_gpus=gpus, scheduling_strategy="SPREAD")(
                Worker
            ),
            kit,
        )
        self.shared = self._shared_reward()
        for slot in range(min(self.crew.workers, len(self.jobs))):
            self._hire(slot)

    def _kit(self, gpu: bool, cpus: float) -> Kit:
        crew, threads = self.crew, max(1, int(cpus))
        sent = crew.policy, crew.reward, crew.methods
        return Kit(*sent, self.batch, threads, gpu, os.getcwd(), sys.path)

    def _shared_reward(self) -> SharedReward | None:
        """Start the reward that all workers ask; Ray itself restarts it, and asks it again."""
        gpus = self.crew.shared_reward
        if gpus is None:
            return None
        kept = {"max_restarts": -1, "max_task_retries": -1}
        served = ray().remote(num_cpus=1, num_gpus=gpus, **kept)(RewardServer)
        self.server = served.remote(self._kit(gpus > 0, 1))
        try:
            about = ray().get(self.server.about.remote())
        except ray().exceptions.RayActorError as error:
            raise ValueError(f"the shared reward did not start: {error}") from error
        self._require_same(about["made"])
        return SharedReward(self.server, about["name"], about["scores_prefixes"])

    def _hire(self, slot: int) -> None:
        remote, kit = self.hiring
        self.actors[slot] = remote.remote(kit, self.shared)
        self.running[self.actors[slot].start.remote()] = slot, None

    def _welcome(self, slot: int, answer: dict[str, Any]) -> None:
        """A worker has loaded everything; it goes into the provenance."""
        for label, told in answer["made"].items():
            self._require_same(told, label)
        if answer["node"] not in self.nodes:
            self.nodes.append(answer["node"])
        where = {"worker": slot, "node": self.nodes.index(answer["node"])}
        self.started.append(where | answer["environment"])
        self.failed[slot] = 0
        self._write_down()

    def _require_same(self, told: dict[str, Any], label: str | None = None) -> None:
        here = self.made[label] if label else next(iter(self.made.values()))
        other = {k: v for k, v in told.items() if here.get(k) != v}
        if other:
            name, there = next(iter(other.items()))
            raise ValueError(
                f"a worker has something else than this process: {name} is {there!r} there and "
                f"{here.get(name)!r} here. Recipes must give the same everywhere: the same files, "
                "versions and dtype on all machines"
            )

    def _write_down(self) -> None:
        first = self.started[0] if self.started else {}
        same = {k: v for k, v in first.items() if k not in ("worker", "node")}
        self.note(same | {"workers": self.started, "workers_lost": self.lost})

    # -- jobs -------------------------------------------------------------------------------------

    def _settle(self, reference: Any) -> Iterator[Records]:
        """Take a worker's answer, or replace the worker; then give work to all that are free."""
        slot, job = self.running.pop(reference)
        try:
            answer = ray().get(reference)
        except ray().exceptions.RayTaskError as error:
            if job is not None or not self.started:
                raise error.as_instanceof_cause() from None
            self._not_started(slot, error)
        except ray().exceptions.RayError as error:
            self.lost += 1
            self._write_down()
            if job is None:
                self._not_started(slot, error)
            else:
                self._replace(slot)
                yield from self._try_again(job, slot)
        else:
            self.idle.add(slot)
            if job is None:
                self._welcome(slot, answer)
            else:
                yield answer
        for free in sorted(self.idle):
            self._give(free)

    def _replace(self, slot: int) -> None:
        ray().kill(self.actors.pop(slot))
        self._hire(slot)

    def _not_started(self, slot: int, error: BaseException) -> None:
        """A worker did not load: another try, up to TRIES; an error where it was the last."""
        self.failed[slot] = self.failed.get(slot, 0) + 1
        if self.failed[slot] < TRIES:
            self._replace(slot)
            return
        self.actors.pop(slot)
        if not self.actors:
            raise error
        print(f"worker {slot} does not start, and is given up: {error}", file=sys.stderr)

    def _try_again(self, job: _Job, slot: int) -> Iterator[Records]:
        """Put a lost batch first in the queue; halved, or as failed records, after TRIES."""
        job.lost, job.slot = job.lost + 1, slot
        print(
            f"a worker was lost with a batch of {len(job.prompts)} prompts ({self.lost} lost so far); "
            "it is replaced, and the batch tried again",
            file=sys.stderr,
        )
        if job.lost < TRIES:
            self.jobs.appendleft(job)
        elif len(job.prompts) > 1:
            middle = len(job.prompts) // 2
            for part in (job.prompts[middle:], job.prompts[:middle]):
                self.jobs.appendleft(_Job(job.task, part, TRIES - 1, slot))
        else:
            error = (
                f"WorkerLost: {TRIES} workers were killed or lost while they computed this prompt"
            )
            head = job.task.head | {"batch": 1}
            yield [head | contents(prompt, error) for prompt in job.prompts]

    def _give(self, slot: int) -> None:
        """The next job, but for one that was lost twice, the last time here, if others can have it."""
        for job in self.jobs:
            if job.lost < 2 or job.slot != slot or len(self.actors) == 1:
                self.jobs.remove(job)
                self.idle.discard(slot)
                sent = job.task.label, job.task.seed, job.task.head, job.prompts
                self.running[self.actors[slot].compute.remote(*sent)] = slot, job
                return

    def _say_what_is_missing(self) -> None:
        print(
            f"no worker has started for {PATIENCE:.0f} s: each loads its models, or waits for "
            f"{self.crew.cpus:g} CPUs to be free (`ray status` shows the cluster)",
            file=sys.stderr,
        )


def _cores() -> int:
    own = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(own(0)) if own else os.cpu_count() or 1


@contextlib.contextmanager
def _joined(crew: Crew) -> Iterator[None]:
    """Connected to the cluster, or to a Ray of our own that ends with the block."""
    if ray().is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": crew.address or "local", "logging_level": "warning"}
    if options["address"] == "local":
        cpus = math.ceil(crew.workers * crew.cpus) + (crew.shared_reward is not None)
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": STORE}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    try:
        ray().init(**options)
        yield
    finally:
        ray().shutdown()
        if main:  # Ray has put its own there
            signal.signal(signal.SIGTERM, handler)
