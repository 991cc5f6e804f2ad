"""Prefixes that run through a model once in a whole search, not once per iteration.

While `kept` is open, a `Stepper` that shares prefixes leaves what it made of them here, and the next
one over the same model and prefixes takes it from here. Values are those of another pass, bit for bit.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import DynamicCache

# More than this is computed anew: a reward model may need the memory between two iterations.
MOST_BYTES = 1 << 30


class Prefill(NamedTuple):
    """What a pass over P prefixes leaves.

    Attributes:
        prefixes: the token ids.
        cache: keys and values, one row per prefix.
        z: (P, d) pre-logits of the last position.
    """

    prefixes: tuple[tuple[int, ...], ...]
    cache: DynamicCache
    z: Tensor

    def copied(self) -> DynamicCache:
        """A cache whose rows may be chosen: what is kept stays as it is. For attending layers only."""
        own = copy.copy(self.cache)
        own.layers = [copy.copy(layer) for layer in own.layers]
        return own


_kept: ContextVar["WeakKeyDictionary[nn.Module, Prefill] | None"] = ContextVar(
    "aisp_prefills", default=None
)


@contextmanager
def kept() -> Iterator[None]:
    """While open, the last prefixes of every model are kept, up to MOST_BYTES of each."""
    token = _kept.set(WeakKeyDictionary())
    try:
        yield
    finally:
        _kept.reset(token)


def known(model: nn.Module, prefixes: Sequence[Sequence[int]]) -> Prefill | None:
    """What is kept of these prefixes; None where they have to run."""
    models = _kept.get()
    found = None if models is None else models.get(model)
    return found if found and found.prefixes == _plain(prefixes) else None


def keep(
    model: nn.Module, prefixes: Sequence[Sequence[int]], cache: DynamicCache, z: Tensor
) -> Prefill:
    """Leave what a pass made, in the place of what was kept of the model before."""
    made = Prefill(_plain(prefixes), cache, z)
    models = _kept.get()
    if models is not None:
        states = [x for layer in cache.layers for x in vars(layer).values()]
        if sum(x.nbytes for x in states if isinstance(x, Tensor)) > MOST_BYTES:
            models.pop(model, None)
        else:
            models[model] = made
    return made


def _plain(prefixes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(prefix) for prefix in prefixes)
