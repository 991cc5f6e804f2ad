"""One run of a method: the fold over its steps, and the result.

`search` repeats a method's `step` (see `aisp.state`) and writes down what each iteration found, so
that budgets, histories, interrupts and errors are the same for all methods, and curves of reward
against samples line up.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from aisp import display
from aisp.engine import prefill
from aisp.policy import Policy
from aisp.prompts import as_messages
from aisp.rewards.base import Reward
from aisp.state import Info, Method, SearchConfig, SearchState

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Alignment:
    """The outcome of one method on one prompt.

    Attributes:
        prompt: the prompt as it was given.
        response, reward: the best response found, and its reward.
        candidates: one row per response: iteration, sample, response, reward, log_weight (the
            normalized log importance weight within its iteration; NaN for methods without one).
        history: one row per iteration: iteration, reward_mean and reward_std (of the responses that
            were not rejected), reward_max, reward_best (so far), ess, kl (of the proposal that was
            drawn from, in nats), tokens (decoded in the iteration; those kept from earlier
            responses are not counted), seconds (wall clock of the iteration, divided equally among
            the prompts decoded in one batch; of iterations that were decoded together, the first
            one has the time of decoding), what a method adds, such as reward_calls, and `solved`, how many samples reached the highest
            reward there is, for a reward that says what that is (its `maximum`).
        config, seed, method: what produced it.
        interrupted: stopped by the keyboard before the budget was used.
        state: where the method ended; `align(..., state=state)` goes on from there.
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
    state: SearchState | None = None

    @property
    def U(self) -> Tensor | None:
        """(tau, d) mean of the perturbation that AISP ended with; None for other methods."""
        means = getattr(self.state, "U", None)
        return None if means is None else means[0]

    def __repr__(self) -> str:
        return (
            f"Alignment({self.method}, reward={self.reward:.3f}, samples={len(self.candidates)}, "
            f"response={self.response[:60]!r})"
        )

    def _repr_html_(self) -> str:
        """How notebooks show it: prompt, best response, reward, and a curve of all samples."""
        prompt = as_messages(self.prompt)[-1]["content"]
        rewards = self.candidates["reward"].tolist()
        return display.card(self._title, prompt, self.response, self.reward, rewards)

    def plot(self) -> "Figure":
        """Rewards of all samples and the best so far, as a matplotlib figure."""
        found = self.candidates
        return display.rewards_by_sample(
            found["reward"].tolist(), found["iteration"].tolist(), self._title
        )

    @property
    def _title(self) -> str:
        samples, rounds = len(self.candidates), len(self.history)
        stopped = ", interrupted" if self.interrupted else ""
        return f"{self.method}: {samples} samples in {rounds} iterations, seed {self.seed}{stopped}"


def search(
    state: SearchState,
    policy: Policy,
    reward: Reward,
    config: SearchConfig,
    method: Method,
    *,
    name: str,
    progress: bool = True,
) -> list[Alignment]:
    """Run up to kappa iterations of a method.

    Args:
        state: from the method's `init`, or where an earlier run of it ended.
        method: what is run, and its name for the results.

    Returns:
        One Alignment per prompt; candidates and history are those of this run, the best response
        is that of all iterations of its state. A KeyboardInterrupt after the first iteration
        returns what was found so far, marked `interrupted`.

    Raises:
        Exception: whatever `step` raises, with an attribute `candidates`: a table of everything
            that was decoded before (prompt, iteration, sample, response, reward, log_weight; NaN
            where it was not scored).
    """
    P = len(state.prompts)
    run = _Run(
        [[] for _ in range(P)],
        [[] for _ in range(P)],
        [state.select([i]) for i in range(P)],
        getattr(reward, "maximum", None),
    )
    active = list(range(P))
    started = time.perf_counter()
    interrupted = False
    bar = tqdm(total=config.kappa, desc=name, disable=not progress, unit="iteration")
    try:
        with prefill.kept():
            left = config.kappa
            while left:
                rows = [r for r, i in enumerate(active) if run.within_budget(i, started, config)]
                if not rows:
                    break
                if len(rows) < len(active):
                    state, active = state.select(rows), [active[r] for r in rows]
                k = min(left, config.at_once(len(active))) if method.steps else 1
                left -= k
                iterations = _iterations(method, state, policy, reward, config, k)
                for _ in range(k):
                    state = run.take(iterations, state, active, config.n)
                    bar.update()
                    bar.set_postfix(best=f"{run.mean_best():.3f}")
    except KeyboardInterrupt:
        if not all(run.history):  # nothing scored yet: there is nothing to return
            raise
        interrupted = True
    finally:
        bar.close()
    return run.alignments(config, name, interrupted)


def _iterations(
    method: Method, state: SearchState, policy: Policy, reward: Reward, config: SearchConfig, k: int
) -> Iterator[tuple[SearchState, Info]]:
    """The next k iterations, decoded as one batch where k > 1."""
    if k > 1 and method.steps:
        yield from method.steps(state, policy, reward, config, k)
    else:
        yield method.step(state, policy, reward, config)


@dataclass(frozen=True)
class _Run:
    """What a run has found so far, by prompt: candidates, history, and its own latest state."""

    candidates: list[list[dict[str, Any]]]
    history: list[list[dict[str, Any]]]
    states: list[SearchState]
    maximum: float | None  # of the reward

    def within_budget(self, i: int, started: float, config: SearchConfig) -> bool:
        if not self.history[i]:
            return True
        if config.second_budget and time.perf_counter() - started >= config.second_budget:
            return False
        used = sum(h["tokens"] for h in self.history[i])
        return not config.token_budget or used < config.token_budget

    def take(
        self,
        iterations: Iterator[tuple[SearchState, Info]],
        state: SearchState,
        active: Sequence[int],
        n: int,
    ) -> SearchState:
        """Let one iteration happen and write it down; or give its error what there is."""
        began = time.perf_counter()
        try:
            state, info = next(iterations)
        except Exception as error:
            self.keep_for(error, state, active, n)
            raise
        self.note(state, info, active, (time.perf_counter() - began) / len(active))
        return state

    def note(self, state: SearchState, info: Info, active: Sequence[int], seconds: float) -> None:
        """Write down one iteration, whose row r belongs to prompt active[r]."""
        found = []  # all of it first: an interrupt must not leave half an iteration
        for row in range(len(active)):
            rewards = info.rewards[row]
            texts, log_w = info.rollout.texts[row], info.log_w[row]
            some = rewards[rewards > -torch.inf]  # NaN where all were rejected
            about = {
                "iteration": info.iteration,
                "reward_mean": some.mean().item(),
                "reward_std": some.std(correction=0).item() if len(some) else math.nan,
                "reward_max": rewards.max().item(),
                "reward_best": state.best[row].reward,
                "ess": info.ess[row].item(),
                "kl": info.kl[row].item(),
                "tokens": int(info.rollout.decoded[row].sum()),
                "seconds": seconds,
                **{name: values[row] for name, values in info.columns.items()},
            }
            if self.maximum is not None:
                about["solved"] = int((rewards == self.maximum).sum())
            candidates = _rows(info.iteration, texts, rewards, log_w)
            found.append((candidates, about, state.select([row])))
        for i, (candidates, about, own) in zip(active, found, strict=True):
            self.candidates[i].extend(candidates)
            self.history[i].append(about)
            self.states[i] = own

    def keep_for(self, error: Exception, state: SearchState, active: Sequence[int], n: int) -> None:
        """Give an error what was found until then, and what was decoded and not scored."""
        import pandas as pd

        for row, texts in enumerate(getattr(error, "texts", None) or ()):
            for i in range(0, len(texts), n):  # n of each iteration that was decoded
                kept = _rows(state.iteration + i // n, texts[i : i + n])
                self.candidates[active[row]].extend(kept)
        rows = [{"prompt": p} | row for p, found in enumerate(self.candidates) for row in found]
        error.candidates = pd.DataFrame(rows)  # type: ignore[attr-defined]  # of any error

    def mean_best(self) -> float:
        return sum(h[-1]["reward_best"] for h in self.history) / len(self.history)

    def alignments(self, config: SearchConfig, method: str, interrupted: bool) -> list[Alignment]:
        import pandas as pd

        return [
            Alignment(
                state.prompts[0],
                state.best[0].response,
                state.best[0].reward,
                pd.DataFrame(candidates),
                pd.DataFrame(history),
                config,
                state.seed,
                method,
                interrupted,
                state,
            )
            for state, candidates, history in zip(
                self.states, self.candidates, self.history, strict=True
            )
        ]


def _rows(
    iteration: int, texts: Sequence[str], rewards: Tensor | None = None, log_w: Tensor | None = None
) -> list[dict[str, Any]]:
    blank = torch.full((len(texts),), torch.nan)
    rewards = blank if rewards is None else rewards
    log_w = blank if log_w is None else log_w
    return [
        {"iteration": iteration, "sample": i, "response": t, "reward": r, "log_weight": w}
        for i, (t, r, w) in enumerate(zip(texts, rewards.tolist(), log_w.tolist(), strict=True))
    ]
