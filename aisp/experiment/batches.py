"""How many prompts are computed together: fewer where memory or time does not suffice."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from aisp.prompts import Prompt
from aisp.remote import EngineError


class BatchSize:
    """How large the batches of one label are: smaller after one in which the process was killed.

    Attributes:
        most: what was asked for.
        now: prompts in the next batch. Each batch that is computed doubles it, up to `most`.
    """

    def __init__(self, most: int, killed: int | None = None) -> None:
        """
        Args:
            killed: prompts in the batch in which the run before was killed; None where it was not.
        """
        self.most = self.now = most
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


def attempts(
    compute: Callable[[list[Prompt]], Any],
    prompts: list[Prompt],
    size: BatchSize,
    begin: Callable[[list[Prompt]], None],
) -> Iterator[tuple[list[Prompt], list[Any]]]:
    """Batches of prompts with their results; for a prompt that fails alone, the error's text.

    Where the GPU's memory does not hold a batch, this and all later ones are half as large. Where a
    batch fails otherwise, its prompts are tried one by one.

    Args:
        compute: from prompts to one Alignment each.
        begin: called with each batch before it is computed.

    Raises:
        EngineError: the processes of another engine have ended; what was computed is recorded.
    """
    alone = 0  # how many of the next prompts are tried one by one
    limit = size.most  # what the GPU's memory holds
    while prompts:
        group = prompts[: 1 if alone else min(size.now, limit)]
        begin(group)
        outs: list[Any] | None
        try:
            outs = compute(group)
        except EngineError:  # no later prompt could be decoded either
            raise
        except Exception as error:  # one failing prompt must not end an overnight run
            outs = [f"{type(error).__name__}: {error}"] if len(group) == 1 else None
            out_of_memory = _out_of_memory(error)
        if outs is None and out_of_memory:
            torch.cuda.empty_cache()  # out here, where the error no longer holds tensors alive
            limit = len(group) // 2
            print(
                f"out of GPU memory with {len(group)} prompts in a batch: going on with {limit}",
                file=sys.stderr,
            )
        elif outs is None:
            alone = len(group)
        else:
            yield group, outs
            prompts, alone = prompts[len(group) :], max(0, alone - 1)
            size.computed(len(group))


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether the GPU's memory was exhausted, also inside a reward, whose errors are wrapped."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__cause__
    return error is not None
