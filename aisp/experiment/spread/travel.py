"""From what `run` is given to what reaches other processes, and back: recipes and plain values.

No weights travel. A policy is its recipe with its template, a function is its name; what has neither
is refused before anything starts.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from aisp.policy import Policy
from aisp.recipe import Recipe, importable, imported
from aisp.rewards.base import CallableReward, Reward

_PLAIN = (bool, int, float, str, bytes, type(None), PurePath, torch.dtype, torch.device)


@dataclass(frozen=True)
class Parcel:
    """Something to be made anew.

    Attributes:
        kind: "name", "recipe", "policy" or "callable reward".
        content: of the kind, see `packed`; plain values and parcels.
    """

    kind: str
    content: Any


def packed(value: Any, what: str) -> Any:
    """A value as it travels: plain values as they are, the rest as parcels.

    Args:
        what: how an error names it.

    Raises:
        ValueError: it cannot travel; says why and what to do.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict):
        return {k: packed(v, f"{k!r} of {what}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(packed(v, f"something in {what}") for v in value)
    if isinstance(value, Recipe):
        return Parcel("recipe", (value.function, packed(value.arguments, what)))
    if isinstance(value, Policy):
        return _policy(value, what)
    if getattr(value, "recipe", None) is not None:
        return packed(value.recipe, what)
    if isinstance(value, CallableReward):
        name = value.name if value.named else None
        return Parcel("callable reward", (packed(value.function, what), name))
    if callable(value) and not isinstance(value, Reward | nn.Module):
        return Parcel("name", importable(value, what))
    return _as_it_is(value, what)


def _policy(policy: Policy, what: str) -> Parcel:
    if policy.engine != "aisp":
        raise ValueError(
            f"{what} is decoded by {policy.engine}, which has processes of its own: leave out workers, "
            "and spread it by tensor_parallel_size, or use engine='aisp'"
        )
    if policy.recipe is None:
        raise ValueError(
            f"{what} ({policy.name}) does not say how it was loaded, and weights do not travel: load "
            "it by aisp.load_policy(name), or pass Recipe('module:function', ...), whose function "
            "returns it"
        )
    template = packed(policy.template, f"the template of {what}")
    recipe = packed(policy.recipe, what)
    return Parcel("policy", (recipe, template, policy.name, policy.eos_ids))


def _as_it_is(value: Any, what: str) -> Any:
    """A value of another type, such as settings of a quantization."""
    if not isinstance(value, nn.Module | Tensor | Reward):
        try:
            pickle.loads(pickle.dumps(value))
        except Exception as error:
            why = f": {error}"
        else:
            return value
    else:
        why = ", and objects with weights or a state of their own do not travel"
    raise ValueError(
        f"{what} is a {type(value).__name__}{why}. Pass Recipe('module:function', ...), whose "
        "function, in a module that every process can import, returns it"
    )


class Unpacker:
    """Makes what was packed, each model once."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def of(self, value: Any) -> Any:
        """The value that `packed` was given, made anew."""
        if isinstance(value, dict):
            return {k: self.of(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.of(v) for v in value)
        if not isinstance(value, Parcel):
            return value
        kinds: dict[str, Callable[[Any], Any]] = {
            "name": imported,
            "recipe": self._recipe,
            "policy": self._policy,
            "callable reward": self._callable_reward,
        }
        return kinds[value.kind](value.content)

    def _recipe(self, content: Any) -> Any:
        function, arguments = content
        key = repr(content)
        if key not in self._known:
            recipe = Recipe(function, **self.of(arguments))
            self._known[key] = recipe.make()
        return self._known[key]

    def _policy(self, content: Any) -> Policy:
        recipe, template, name, eos_ids = content
        policy = self.of(recipe)
        return replace(policy, template=self.of(template), name=name, eos_ids=eos_ids)

    def _callable_reward(self, content: Any) -> CallableReward:
        function, name = content
        return CallableReward(self.of(function), name)
