"""What a method is made of: a configuration, a state, and what one iteration tells of itself.

A method is a configuration and two functions, in the shape of blackjax:

    init(policy, prompts, config, *, seed) -> state
    step(state, policy, reward, config)    -> state, info

A state is immutable and holds P prompts, which are decoded as one batch; an info has everything that
one iteration saw. `aisp.alignment.search` folds `step` over the iterations of a run.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from aisp.checks import check_real, check_whole, whole
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import Rollout
from aisp.policy import Policy
from aisp.prompts import as_messages, prompt_list
from aisp.rewards.base import Reward, RewardError, score


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The budget that all methods share.

    Attributes:
        n: responses drawn per iteration and prompt.
        kappa: iterations.
        max_new_tokens: tokens decoded per response at most.
        temperature, top_k, top_p: how tokens are taken from the logits, see `Decoding`.
        token_budget: start no further iteration for a prompt once it has decoded this many tokens.
        second_budget: start no further iteration once the call has run this many seconds.
    """

    n: int = 16
    kappa: int = 8
    max_new_tokens: int = 48
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    token_budget: int | None = None
    second_budget: float | None = None

    def __post_init__(self) -> None:
        check_whole(self, "n", "kappa", "max_new_tokens")
        for name in ("token_budget", "second_budget"):
            if getattr(self, name) is not None:
                check_real(self, name, above=0, note=", or None for no limit")
        taken = self.decoding  # checks its three, and turns them into plain numbers
        for name in ("temperature", "top_k", "top_p"):
            object.__setattr__(self, name, getattr(taken, name))

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.temperature, self.top_k, self.top_p)

    def at_once(self, prompts: int) -> int:
        """How many iterations of so many prompts are decoded as one batch: 1, one after another."""
        return 1

    def describe(self) -> dict[str, Any]:
        """The parameters as plain JSON; of a model or value function among them, its name.

        Raises:
            TypeError: a parameter that is neither plain nor has a name, which records could not
                tell from another one.
        """
        return {f.name: _described(f.name, getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class IndependentConfig(SearchConfig):
    """The budget of a method whose iterations do not depend on each other.

    Attributes:
        rows: decode as many iterations in one batch as make at most so many responses, over all
            prompts; at least one iteration. Larger batches are faster until a processor is busy,
            and take memory for the keys and values of all their tokens. In float32 the responses
            do not depend on it; in bfloat16 rounding does. With a token_budget or second_budget
            iterations are decoded one by one.
    """

    rows: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "rows")

    def at_once(self, prompts: int) -> int:
        if self.token_budget or self.second_budget:
            return 1
        return max(1, min(self.kappa, self.rows // (prompts * self.n)))


class Best(NamedTuple):
    """The best response to a prompt so far."""

    response: str
    reward: float


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchState:
    """Where a method stands between two iterations, for P prompts decoded as one batch.

    Methods that carry more derive from it, and name in `per_prompt` what belongs to single prompts.

    Attributes:
        prompts: P prompts as they were given.
        prefixes: P token id sequences that the responses continue.
        seed: of all randomness, together with a prompt's messages and the iteration.
        iteration: how many iterations were done; the next one has this number.
        best: P best responses so far; before the first iteration "" with a reward of -inf.
    """

    per_prompt: ClassVar[tuple[str, ...]] = ("prompts", "prefixes", "best")

    prompts: tuple[Any, ...]
    prefixes: tuple[list[int], ...]
    seed: int
    iteration: int = 0
    best: tuple[Best, ...]

    @classmethod
    def start(
        cls, policy: Policy, prompts: Any, config: SearchConfig, seed: int, **more: Any
    ) -> Self:
        """The state before the first iteration.

        Args:
            prompts: one prompt or a list of them, see `prompt_list`.
            **more: what a derived state has besides.

        Raises:
            ValueError: a prompt that is malformed, or too long for the policy's context.
        """
        seed = whole("seed", seed)
        listed, _ = prompt_list(prompts)
        prefixes = tuple(policy.prefix(p, config.max_new_tokens) for p in listed)
        best = (Best("", float("-inf")),) * len(listed)
        return cls(prompts=tuple(listed), prefixes=prefixes, seed=seed, best=best, **more)

    def generators(self, device: torch.device, k: int = 1) -> list[torch.Generator]:
        """The sources of randomness of the next k iterations, k for each prompt in turn."""
        steps = range(self.iteration, self.iteration + k)
        return [generator(self.seed, p, i, device) for p in self.prompts for i in steps]

    def repeated_prefixes(self, k: int) -> list[list[int]]:
        """Each prefix k times, as the generators of k iterations need them."""
        return [prefix for prefix in self.prefixes for _ in range(k)]

    @property
    def found(self) -> list[bool]:
        """For each prompt, whether some response so far was not rejected."""
        return [best.reward > -math.inf for best in self.best]

    def select(self, rows: Sequence[int]) -> Self:
        """The state of some of the prompts."""
        return replace(self, **{x: _rows_of(getattr(self, x), rows) for x in self.per_prompt})

    def joined(self, others: "Sequence[SearchState]") -> Self:
        """This state's prompts followed by those of the others.

        Raises:
            ValueError: states of another method, seed or iteration.
        """
        for other in others:
            for what in (type, lambda s: s.seed, lambda s: s.iteration):
                if what(other) != what(self):
                    raise ValueError(
                        f"states differ: {what(self)!r} and {what(other)!r}; prompts that are "
                        "decoded as one batch must be of one method, seed and iteration. Continue "
                        "them one by one"
                    )
        parts = {x: [getattr(s, x) for s in (self, *others)] for x in self.per_prompt}
        return replace(self, **{x: _joined(values) for x, values in parts.items()})

    def advanced(self, rollout: Rollout, rewards: Tensor) -> Self:
        """The state one iteration later, with the best of these responses and those before them."""
        best = list(self.best)
        for row, (texts, values) in enumerate(zip(rollout.texts, rewards.tolist(), strict=True)):
            top = max(range(len(texts)), key=values.__getitem__)
            if values[top] > best[row].reward:
                best[row] = Best(texts[top], values[top])
        return replace(self, iteration=self.iteration + 1, best=tuple(best))


@dataclass(frozen=True, eq=False, kw_only=True)
class Info:
    """Everything that one iteration saw; P prompts, n samples.

    Attributes:
        iteration: its number, from 0.
        rollout: the responses, (P, n).
        rewards: (P, n) float64.
        log_w: (P, n) normalized log importance weights; NaN for methods without weights.
        ess: (P,) their effective sample size; NaN likewise.
        kl: (P,) KL of the proposal that was drawn from to the base law, in nats; NaN likewise.
        columns: further columns of the history, P values each.
    """

    iteration: int
    rollout: Rollout
    rewards: Tensor
    log_w: Tensor
    ess: Tensor
    kl: Tensor
    columns: dict[str, Sequence[float]]


class Method(NamedTuple):
    """A method: its configuration, and its `init` and `step` as this module describes them.

    A method whose iterations do not depend on each other also has `steps`: as `step`, with the
    number k of iterations as last argument, which decodes them as one batch and yields them in turn.
    """

    config: type[SearchConfig]
    init: Callable[..., SearchState]
    step: Callable[..., tuple[SearchState, Info]]
    steps: Callable[..., Iterator[tuple[SearchState, Info]]] | None = None


State = TypeVar("State", bound=SearchState)


def scored(
    state: SearchState,
    reward: Reward,
    rollout: Rollout,
    ahead: Sequence[Rollout] = (),
    rejectable: Sequence[bool] | None = None,
) -> Tensor:
    """Rewards of one iteration's responses, (P, n) float64 on the CPU.

    Args:
        ahead: of later iterations, decoded already.
        rejectable: as `aisp.rewards.score` takes it.

    Raises:
        RewardError: as `aisp.rewards.score`; its `texts` are the responses, and those of the
            iterations ahead, so that none is lost.
    """
    try:
        return score(reward, state.prompts, rollout.texts, rejectable)
    except RewardError as error:
        texts = zip(rollout.texts, *(r.texts for r in ahead), strict=True)
        error.texts = [list(chain.from_iterable(of_prompt)) for of_prompt in texts]
        raise


def unweighted(
    state: State,
    reward: Reward,
    rollout: Rollout,
    ahead: Sequence[Rollout] = (),
    **columns: Sequence[float],
) -> tuple[State, Info]:
    """The end of a step of a method that makes no weights of the rewards.

    All responses of an iteration may be rejected, where an earlier one has found some.

    Args:
        rollout, ahead: the responses that the method drew, as in `scored`.
        **columns: further columns of the history, P values each.
    """
    rewards = scored(state, reward, rollout, ahead, state.found)
    undefined = torch.full_like(rewards, torch.nan)
    info = Info(
        iteration=state.iteration,
        rollout=rollout,
        rewards=rewards,
        log_w=undefined,
        ess=undefined[:, 0],
        kl=undefined[:, 0],
        columns=columns,
    )
    return state.advanced(rollout, rewards), info


def each_unweighted(
    state: State,
    reward: Reward,
    rollout: Rollout,
    k: int,
    columns: Mapping[str, Sequence[float]] | None = None,
) -> Iterator[tuple[State, Info]]:
    """The ends of k iterations that were decoded as one batch, each as `unweighted` makes it.

    Args:
        rollout: P * k groups of responses, the k iterations of a prompt after one another.
        columns: further columns of the history, P * k values each.
    """
    parts = rollout.interleaved(k)
    for i, part in enumerate(parts):
        own = {name: values[i::k] for name, values in (columns or {}).items()}
        state, info = unweighted(state, reward, part, parts[i + 1 :], **own)
        yield state, info


def check_state(state: SearchState, wanted: type[SearchState]) -> None:
    """Raise ValueError where a step is given a state that another method's `init` made."""
    if not isinstance(state, wanted):
        raise ValueError(
            f"the state is a {type(state).__name__}, of another method; this one needs a "
            f"{wanted.__name__}, from its own `init` or an Alignment of it"
        )


def generator(seed: int, prompt: Any, iteration: int, device: torch.device) -> torch.Generator:
    """The source of one prompt's randomness in one iteration.

    It depends on (seed, the prompt's own messages, iteration) and on nothing else, so that a prompt
    gets the same noise alone or in a batch, and every method the same noise as every other.
    """
    content = json.dumps([whole("seed", seed), as_messages(prompt), iteration], sort_keys=True)
    digest = hashlib.sha256(content.encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _described(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    called = getattr(value, "name", None) or getattr(value, "__name__", None)
    if not isinstance(called, str):
        raise TypeError(
            f"{name} is {value!r}, a {type(value).__name__} without a name, which records could not "
            "tell from another one; give it an attribute `name`"
        )
    return called


def _rows_of(values: Any, rows: Sequence[int]) -> Any:
    if isinstance(values, Tensor):
        return values[list(rows)]
    return tuple(values[row] for row in rows)


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return tuple(x for part in parts for x in part)
