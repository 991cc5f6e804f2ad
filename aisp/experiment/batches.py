"""Prompts to records, some at a time: fewer where memory or time does not suffice."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from aisp.experiment.store.contents import contents
from aisp.methods import align
from aisp.policy import Policy
from aisp.prompts import Prompt
from aisp.remote import EngineError


class Task(NamedTuple):
    """What prompts of one label and seed have in common.

    Attributes:
        parameters: of `align`: the method, and its configuration's values.
        head: the first fields of each record: label, method, config, made_with, seed.
    """

    label: str
    seed: int
    parameters: dict[str, Any]
    head: dict[str, Any]


class BatchSize:
    """How large the batches of one label are: smaller after one in which the process was killed.

    Attributes:
        most: what was asked for.
        now: prompts in the next batch. Each batch that is computed doubles it, up to `most`.
        limit: what the GPU's memory holds, as far as is known.
    """

    def __init__(self, most: int, killed: int | None = None) -> None:
        """
        Args:
            killed: prompts in the batch in which the run before was killed; None where it was not.
        """
        self.most = self.now = self.limit = most
        if killed is not None:
            self.now = max(1, min(most, killed // 2))
            print(
                f"the run before was killed within a batch of {killed}: going on with {self.now}",
                file=sys.stderr,
            )

    def computed(self, prompts: int) -> None:
        """A batch of so many prompts was computed."""
        if prompts >= self.now:
            self.now = min(self.most, 2 * self.now)


def computed(
    task: Task,
    prompts: list[Prompt],
    policy: Policy,
    reward: Any,
    size: BatchSize,
    begin: Callable[[list[Prompt]], None] = lambda group: None,
) -> Iterator[list[dict[str, Any]]]:
    """The records of a task's prompts, batch by batch, as they are finished; see `attempts`."""
    shared = {"policy": policy, "reward": reward, "seed": task.seed, "progress": False}
    compute = partial(align, **shared, **task.parameters)
    for group, outs in attempts(compute, prompts, size, begin):
        head = task.head | {"batch": len(group)}
        yield [head | contents(p, out) for p, out in zip(group, outs, strict=True)]


def attempts(
    compute: Callable[[list[Prompt]], Any],
    prompts: list[Prompt],
    size: BatchSize,
    begin: Callable[[list[Prompt]], None],
) -> Iterator[tuple[list[Prompt], list[Any]]]:
    """Batches of prompts with their results; for a prompt that fails alone, the error's text.

    Where the GPU's memory does not hold a batch, this and all later ones of its label are half as
    large. Where a batch fails otherwise, its prompts are tried one by one.

    Args:
        compute: from prompts to one Alignment each.
        begin: called with each batch before it is computed.

    Raises:
        EngineError: the processes of another engine have ended; what was computed is recorded.
    """
    alone = 0  # how many of the next prompts are tried one by one
    while prompts:
        group = prompts[: 1 if alone else min(size.now, size.limit)]
        begin(group)
        outs: list[Any] | None
        try:
            outs = compute(group)
        except EngineError:  # no later prompt could be decoded either
            raise
        except Exception as error:  # one failing prompt must not end an overnight run
            outs = [f"{type(error).__name__}: {error}"] if len(group) == 1 else None
            exhausted = out_of_memory(error)
        if outs is None and exhausted:
            torch.cuda.empty_cache()  # out here, where the error no longer holds tensors alive
            size.limit = len(group) // 2
            print(
                f"out of GPU memory with {len(group)} prompts in a batch: going on with {size.limit}",
                file=sys.stderr,
            )
        elif outs is None:
            alone = len(group)
        else:
            yield group, outs
            prompts, alone = prompts[len(group) :], max(0, alone - 1)
            size.computed(len(group))


def out_of_memory(error: BaseException | None) -> bool:
    """Whether the GPU's memory was exhausted, also inside a reward, whose errors are wrapped."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__cause__
    return error is not None
