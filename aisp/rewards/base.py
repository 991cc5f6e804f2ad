"""What a reward is, and how it is called safely.

A reward maps (prompts, responses) to one float64 number per pair, higher is better. To write your
own batched reward, derive from `Reward`; `score` calls one and checks what it returns.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aisp.checks import as_float, whole
from aisp.display import printable
from aisp.prompts import as_messages
from aisp.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd


class RewardError(ValueError):
    """A reward failed, or returned what no weight can be computed from.

    Attributes:
        candidates: DataFrame of everything decoded before and at the failure (prompt, iteration,
            sample, response, reward, log_weight; NaN where not scored), when raised by a method.
        texts: the P lists of n responses that were to be scored, when raised by a method's step.
    """

    candidates: "pd.DataFrame | None" = None
    texts: Sequence[Sequence[str]] | None = None

    def __init__(self, message: str, index: int | None = None):
        super().__init__(message)
        self.index = index  # which pair of the batch, where it is known


class Reward(ABC):
    """Scores responses; derive from it for a reward of your own that works on batches."""

    name: str = "reward"  # records tell rewards by it: give a class of your own another one
    files: tuple[Path, ...] = ()  # weights of its own, which records name by their hash
    scores_prefixes: bool = (
        True  # False: it reads whole responses only, such as a checker of answers
    )
    maximum: float | None = None  # the highest reward there is, such as 1 for "all checks hold"
    recipe: Recipe | None = None  # how another process makes it anew; see `aisp.recipe`

    @abstractmethod
    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        """Rewards of N (prompt, response) pairs.

        Args:
            prompts: N prompts as the caller gave them: strings, message lists or `Prompt`s. From
                `aisp.rewards.score`, and so in a search, they are copies.
            responses: N texts.

        Returns:
            (N,) float64 on the CPU; -inf rejects a response.
        """

    def check(self, prompts: Sequence[Any]) -> None:  # noqa: B027  # most rewards take any prompt
        """Refuse prompts that this reward cannot score; called before anything is decoded.

        Args:
            prompts: as the caller gave them.

        Raises:
            ValueError: it names the prompt.
        """


class CallableReward(Reward):
    """A plain Python function (prompt, response) -> float.

    Attributes:
        function: the function.
        name: the one given, the function's attribute `name`, or else what Python calls it.
        named: whether one of the first two; records then tell the reward by its name alone.
        scores_prefixes: the function's attribute of this name, if it has one.
    """

    def __init__(self, function: Callable[[Any, str], float], name: str | None = None):
        given = name if name is not None else getattr(function, "name", None)
        self.function, self.named = function, given is not None
        if given is None:
            given = getattr(function, "__name__", type(function).__name__)
        self.name = str(given)
        self.scores_prefixes = bool(getattr(function, "scores_prefixes", True))

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        values = []
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            try:
                # A copy: what a reward does to its messages stays with it.
                value = self.function(copy.deepcopy(prompt), response)
            except Exception as error:
                raise RewardError(
                    f"reward {self.name!r} raised {type(error).__name__}: {printable(str(error))}, on "
                    f"{described(prompt, response)}",
                    index=i,
                ) from error
            number = as_float(value)
            if number is None:
                raise RewardError(
                    f"reward {self.name!r} returned {value!r} ({type(value).__name__}) on "
                    f"{described(prompt, response)}; a reward is one number",
                    index=i,
                )
            values.append(number)
        return torch.tensor(values, dtype=torch.float64)


def require_prefixes(reward: Reward | Callable[[Any, str], float], what: str) -> None:
    """Refuse a reward that says it cannot score unfinished responses.

    Args:
        what: needs them, for the error.
    """
    if not getattr(reward, "scores_prefixes", True):
        name = getattr(reward, "name", reward)
        raise ValueError(
            f"{what} scores responses before they end, and reward {name!r} reads whole ones only "
            "(its scores_prefixes is False); use best_of_n, or a reward that reads beginnings"
        )


def score(
    reward: Reward | Callable[[Any, str], float],
    prompts: Sequence[Any],
    texts: Sequence[Sequence[str]],
    rejectable: Sequence[bool] | None = None,
) -> Tensor:
    """Rewards of P prompts with n responses each, checked.

    Args:
        reward: a Reward, or a function (prompt, response) -> float.
        prompts: P prompts.
        texts: P lists of n responses.
        rejectable: prompts whose responses may all be rejected; None: no prompt's.

    Returns:
        (P, n) float64 on the CPU.

    Raises:
        RewardError: the reward raised, returned the wrong number of values, a non-number, NaN or
            +inf, or rejected (-inf) all n responses of a prompt that is not `rejectable`; it names
            prompt and candidate.
    """
    if not isinstance(reward, Reward):
        if not callable(reward):
            raise TypeError(
                f"the reward is {reward!r}; pass what `aisp.load_reward` returns for it"
            )
        reward = CallableReward(reward)
    n = len(texts[0])
    pairs = [(prompt, text) for prompt, row in zip(prompts, texts, strict=True) for text in row]
    try:
        own = [p for p, _ in pairs]
        if not isinstance(reward, CallableReward):  # which copies by itself
            own = [copy.deepcopy(p) for p in own]
        values = reward.score(own, [t for _, t in pairs])
    except RewardError as error:
        if error.index is not None:
            error.args = (f"candidate {error.index % n}: {error}",)
        raise
    except Exception as error:
        raise RewardError(
            f"reward {reward.name!r} raised {type(error).__name__}: {printable(str(error))}, on a "
            f"batch of {len(pairs)} responses, the first of them {described(*pairs[0])}"
        ) from error
    return _checked(values, reward.name, prompts, texts, rejectable or [False] * len(prompts))


def shaped(values: Any, name: str, count: int) -> Tensor:
    """What a reward returned for so many responses; RewardError where it is of another shape."""
    if isinstance(values, Tensor) and values.shape == (count,):
        return values
    got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    raise RewardError(
        f"reward {name!r} returned {got} for {count} responses; return a tensor of shape ({count},)"
    )


def _checked(
    values: Any,
    name: str,
    prompts: Sequence[Any],
    texts: Sequence[Sequence[str]],
    rejectable: Sequence[bool],
) -> Tensor:
    """What a reward returned, (P, n) float64 on the CPU, or the error that says what is wrong."""
    n = len(texts[0])
    pairs = [(prompt, text) for prompt, row in zip(prompts, texts, strict=True) for text in row]
    values = shaped(values, name, len(pairs))
    if values.is_complex():
        raise RewardError(
            f"reward {name!r} returned complex numbers ({values.dtype}); a reward is a real "
            "number. Return its real part or its magnitude, whichever is meant"
        )
    values = values.detach().to("cpu", torch.float64)
    for i in torch.nonzero(values.isnan() | (values == torch.inf)).flatten().tolist():
        raise RewardError(
            f"reward {name!r} is {values[i].item()} for candidate {i % n} of "
            f"{described(*pairs[i])}; a reward is a number, or -inf to reject a response"
        )
    rejected = (values.view(-1, n) == -torch.inf).all(-1) & ~torch.tensor(rejectable)
    for p in torch.nonzero(rejected).flatten().tolist():
        raise RewardError(
            f"reward {name!r} rejected (-inf) all {n} candidates of prompt "
            f"{_beginning(prompts[p])}, the first of them {texts[p][0][:60]!r}: no sample can carry "
            "weight. Raise n, or return a low finite reward"
        )
    return values.view(-1, n)


def length_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of at most `size`, longest first, so that little is padded."""
    size = whole("batch_size", size, least=1)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + size] for i in range(0, len(order), size)]


def described(prompt: Any, response: str) -> str:
    """How errors name a pair: the beginnings of both, as Python would print them."""
    return f"prompt {_beginning(prompt)}, response {response[:60]!r}"


def _beginning(prompt: Any) -> str:
    return repr(as_messages(prompt)[-1]["content"][:60])
