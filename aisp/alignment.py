"""What every method shares: its prompts, its budget, the search loop, and the result type.

Each method draws kappa batches of n responses, scores them, and may learn from the rewards what to
draw next. Only `draw` and `learn` differ between methods, so that budgets, histories, interrupts
and errors are the same for all of them, and curves of reward against samples line up.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from aisp.engine.decoding import Decoding
from aisp.engine.rollout import Rollout
from aisp.policy import Policy
from aisp.prompts import Prompt, as_messages
from aisp.rewards.base import Reward, RewardError, score

if TYPE_CHECKING:
    import pandas as pd


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

    def __post_init__(self):
        check_whole(self, "n", "kappa", "max_new_tokens")
        for name in ("token_budget", "second_budget"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value!r}; it must be > 0, or None for no limit")
        _ = self.decoding

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.temperature, self.top_k, self.top_p)

    def describe(self) -> dict[str, Any]:
        """The parameters as plain JSON; of a model or value function among them, its name."""
        plain = (bool, int, float, str, type(None))
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v if isinstance(v, plain) else _name(v) for k, v in values.items()}


@dataclass(frozen=True, eq=False)
class Alignment:
    """The outcome of one method on one prompt.

    Attributes:
        prompt: the prompt as it was given.
        response, reward: the best response found, and its reward.
        candidates: one row per response: iteration, sample, response, reward, log_weight (the
            normalized log importance weight within its iteration; NaN for methods without one).
        history: one row per iteration: iteration, reward_mean, reward_std, reward_max, reward_best
            (so far), ess, kl (of the proposal that was drawn from, in nats), tokens, seconds (wall
            clock of the iteration, divided equally among the prompts decoded in one batch), and
            what a method adds, such as reward_calls.
        config, seed, method: what produced it.
        interrupted: stopped by the keyboard before the budget was used.
    """

    prompt: Any
    response: str
    reward: float
    candidates: "pd.DataFrame"
    history: "pd.DataFrame"
    config: SearchConfig
    seed: int
    method: str
    interrupted: bool = False

    def __repr__(self):
        return (
            f"Alignment({self.method}, reward={self.reward:.3f}, samples={len(self.candidates)}, "
            f"response={self.response[:60]!r})"
        )


class Learned(NamedTuple):
    """What a method makes of the rewards of one iteration; P prompts, n samples."""

    states: list[Any]  # P states to draw from next
    log_w: Tensor  # (P, n)
    ess: Tensor  # (P,)
    kl: Tensor  # (P,)
    notes: dict[str, Sequence[float]] | None = None  # more columns of the history, P values each


Draw = Callable[[list[list[int]], list[Any], list[torch.Generator]], tuple[Rollout, Any]]
Learn = Callable[[list[Any], Any, Tensor], Learned]


def generator(seed: int, prompt: Any, iteration: int, device: torch.device) -> torch.Generator:
    """The source of one prompt's randomness in one iteration.

    It depends on (seed, the prompt's own messages, iteration) and on nothing else, so that a prompt
    gets the same noise alone or in a batch, and every method the same noise as every other.
    """
    content = json.dumps([seed, as_messages(prompt), iteration], sort_keys=True)
    digest = hashlib.sha256(content.encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def search(
    prompts: Sequence[Any],
    policy: Policy,
    reward: Reward,
    config: SearchConfig,
    *,
    method: str,
    seed: int,
    draw: Draw,
    learn: Learn,
    initial: Callable[[Any], Any],
    progress: bool = True,
) -> list[Alignment]:
    """Run one method on a batch of prompts.

    Args:
        prompts: one or more prompts.
        draw: from prefixes, states and generators (one per prompt) to a rollout of (P, n)
            responses and whatever `learn` needs to know of it.
        learn: from states, that, and rewards (P, n) to the next states and the diagnostics.
        initial: from a prompt to the state that it starts from.

    Returns:
        One Alignment per prompt. A KeyboardInterrupt after the first iteration returns what was
        found so far, marked `interrupted`.

    Raises:
        RewardError: a reward that failed; its `candidates` holds all candidates so far.
    """
    prefixes = [policy.prefix(p, config.max_new_tokens) for p in prompts]
    states = [initial(p) for p in prompts]
    candidates: list[list[dict]] = [[] for _ in prompts]
    history: list[list[dict]] = [[] for _ in prompts]
    started = time.perf_counter()
    interrupted = False
    bar = tqdm(total=config.kappa, desc=method, disable=not progress, unit="iteration")
    try:
        for k in range(config.kappa):
            active = [i for i in range(len(prompts)) if _within_budget(history[i], started, config)]
            if not active:
                break
            began = time.perf_counter()
            sources = [generator(seed, prompts[i], k, policy.head_device) for i in active]
            out = None
            try:
                at = [prefixes[i] for i in active], [states[i] for i in active]
                out, extra = draw(*at, sources)
                rewards = score(reward, [prompts[i] for i in active], out.texts)
            except RewardError as error:
                if out is not None:
                    for row, i in enumerate(active):
                        candidates[i] += _rows(k, out.texts[row])
                error.candidates = _frame(candidates)
                raise
            learned = learn([states[i] for i in active], extra, rewards)
            seconds = (time.perf_counter() - began) / len(active)
            for row, i in enumerate(active):
                states[i] = learned.states[row]
                candidates[i] += _rows(k, out.texts[row], rewards[row], learned.log_w[row])
                best = max(c["reward"] for c in candidates[i])
                history[i].append(
                    {
                        "iteration": k,
                        "reward_mean": rewards[row].mean().item(),
                        "reward_std": rewards[row].std(correction=0).item(),
                        "reward_max": rewards[row].max().item(),
                        "reward_best": best,
                        "ess": learned.ess[row].item(),
                        "kl": learned.kl[row].item(),
                        "tokens": int(out.lengths[row].sum()),
                        "seconds": seconds,
                        **{name: values[row] for name, values in (learned.notes or {}).items()},
                    }
                )
            bar.update()
            bar.set_postfix(best=f"{sum(h[-1]['reward_best'] for h in history) / len(history):.3f}")
    except KeyboardInterrupt:
        if not all(history):  # nothing scored yet: there is nothing to return
            raise
        interrupted = True
    finally:
        bar.close()
    return [
        _alignment(p, c, h, config, seed, method, interrupted)
        for p, c, h in zip(prompts, candidates, history, strict=True)
    ]


def independent(
    prompts: Sequence[Any],
    policy: Policy,
    reward: Reward,
    config: SearchConfig,
    *,
    method: str,
    seed: int,
    draw: Callable[..., tuple[Rollout, dict[str, Sequence[float]]]],
    progress: bool = True,
) -> list[Alignment]:
    """`search` for methods that learn nothing from the rewards of one iteration for the next.

    Args:
        draw: from prefixes, prompts and generators (P of each) to a rollout of (P, n) responses and
            further columns of the history, P values each.
    """

    def learn(prompts, notes, rewards):
        undefined = torch.full_like(rewards, torch.nan)
        return Learned(prompts, undefined, undefined[:, 0], undefined[:, 0], notes)

    return search(
        prompts,
        policy,
        reward,
        config,
        method=method,
        seed=seed,
        draw=draw,
        learn=learn,
        initial=lambda prompt: prompt,
        progress=progress,
    )


def prompt_list(prompts: Any) -> tuple[list[Any], bool]:
    """The prompts as a list, and whether it was a single one.

    A prompt is a string, a list of {"role", "content"} messages or a `Prompt`; a list of those is
    several prompts.
    """
    if isinstance(prompts, str | Prompt):
        prompts, single = [prompts], True
    elif not isinstance(prompts, Sequence):
        raise TypeError(
            f"prompts is {prompts!r}; pass a string, a list of messages, a Prompt, or a list of "
            "these"
        )
    elif not prompts:
        raise ValueError("the list of prompts is empty; pass at least one prompt")
    else:
        single = all(isinstance(m, dict) for m in prompts)
        prompts = [prompts] if single else list(prompts)
    for prompt in prompts:
        as_messages(prompt)
    return prompts, single


def make_config(config_type: type[SearchConfig], method: str, parameters: dict) -> SearchConfig:
    """The method's configuration; a parameter that it does not have is an error."""
    known = [f.name for f in fields(config_type)]
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise ValueError(
            f"{method} has no parameter {', '.join(map(repr, unknown))}; it takes: "
            f"{', '.join(known)}"
        )
    return config_type(**parameters)


def check_whole(config: Any, *names: str, least: int = 1, note: str = "") -> None:
    """Raise ValueError where one of these parameters is no whole number >= least."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; it must be a whole number >= {least}{note}")


def check_finite(config: Any, *names: str, zero: bool = False) -> None:
    """Raise ValueError where one of these is not finite and > 0, or >= 0 where zero is allowed."""
    bound = ">= 0" if zero else "> 0"
    for name in names:
        value = getattr(config, name)
        if not (0 < value < float("inf") or (zero and value == 0)):
            raise ValueError(f"{name} is {value!r}; it must be {bound} and finite")


def _within_budget(history: list[dict], started: float, config: SearchConfig) -> bool:
    if not history:
        return True
    if config.second_budget and time.perf_counter() - started >= config.second_budget:
        return False
    return not config.token_budget or sum(h["tokens"] for h in history) < config.token_budget


def _name(value: Any) -> str:
    name = getattr(value, "name", None) or getattr(value, "__name__", None)
    return str(name or (value if isinstance(value, Path) else type(value).__name__))


def _rows(iteration: int, texts: list[str], rewards=None, log_w=None) -> list[dict]:
    blank = [float("nan")] * len(texts)
    rewards = blank if rewards is None else rewards.tolist()
    log_w = blank if log_w is None else log_w.tolist()
    return [
        {"iteration": iteration, "sample": i, "response": t, "reward": r, "log_weight": w}
        for i, (t, r, w) in enumerate(zip(texts, rewards, log_w, strict=True))
    ]


def _frame(candidates: list[list[dict]]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame([{"prompt": p} | row for p, rows in enumerate(candidates) for row in rows])


def _alignment(prompt, candidates, history, config, seed, method, interrupted) -> Alignment:
    import pandas as pd

    best = max(candidates, key=lambda c: c["reward"])
    return Alignment(
        prompt,
        best["response"],
        best["reward"],
        pd.DataFrame(candidates),
        pd.DataFrame(history),
        config,
        seed,
        method,
        interrupted,
    )
