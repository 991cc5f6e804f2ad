"""Whole runs of AISP and of best-of-n, timed for equal numbers of samples."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from aisp.checks import choice, whole
from aisp.experiment.speed.timing import PROMPT, TOP_P, endless, generate, timed
from aisp.methods import align
from aisp.policy import Policy
from aisp.rewards.base import Reward, score

if TYPE_CHECKING:
    import pandas as pd

SIDES = ("AISP", "best-of-n", "best-of-n, by iteration", "best-of-n by generate")


def whole_runs(
    policy: Policy,
    reward: Reward,
    *,
    n: int = 16,
    kappa: int = 8,
    tokens: int = 48,
    repeats: int = 3,
    prompts: int = 1,
    sides: Sequence[str] = SIDES,
) -> "pd.DataFrame":
    """Seconds of AISP, our best-of-n, and best-of-n by `generate`, for equal numbers of samples.

    Rewards are included. Our best-of-n decodes its iterations together, up to its `rows` responses;
    where it has several, it is timed one iteration at a time as well, as AISP must.

    Args:
        prompts: our methods decode them as one batch. `generate` takes one after the other, with all
            n * kappa responses in one call, which is its best setting: it gives several responses to
            each of several prompts only if every prompt is copied so often.
        sides: which of SIDES are timed; with one iteration, none of them is by iteration.

    Returns:
        One row per name, with ratio, the seconds relative to our best-of-n.

    Raises:
        ValueError: sides without our best-of-n, or that are unknown.
    """
    policy, prompts = endless(policy), whole("prompts", prompts, least=1)
    if "best-of-n" not in {choice("side", side, SIDES) for side in sides}:
        raise ValueError(
            f"sides are {list(sides)}; best-of-n, which the others are compared with, is "
            "not among them; add it"
        )
    many = [f"{PROMPT} Answer number {i}." for i in range(prompts)]
    size: dict[str, Any] = {"n": n, "kappa": kappa, "max_new_tokens": tokens}

    def ours(method: str, **more: Any) -> None:
        outs = align(many, policy, reward, method=method, progress=False, **size, **more)
        assert isinstance(outs, list)  # as many as prompts
        for out in outs:
            assert out.history["tokens"].sum() == n * kappa * tokens

    def by_generate() -> None:
        for prompt in many:
            out = generate(policy, policy.prefix(prompt), n * kappa, tokens, TOP_P)
            score(reward, [prompt], [policy.decode(out[:, -tokens:].tolist())])

    known: dict[str, Callable[[], None]] = {
        "AISP": partial(ours, "aisp"),
        "best-of-n": partial(ours, "best_of_n"),
        "best-of-n, by iteration": partial(ours, "best_of_n", rows=1),
        "best-of-n by generate": by_generate,
    }
    if kappa == 1:
        del known["best-of-n, by iteration"]
    chosen = {name: run for name, run in known.items() if name in sides}
    table = timed(chosen, repeats, warm_up=False)  # long enough that the first steps do not count
    table["ratio"] = table["seconds"] / table.set_index("name").loc["best-of-n", "seconds"]
    return table
