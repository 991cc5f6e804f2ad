"""The methods, one file each, behind one call.

To add one: write `run(prompts, policy, reward, config, *, seed, progress) -> list[Alignment]` and
its configuration, a frozen dataclass derived from `SearchConfig`, and name both in `METHODS`.
"""

from collections.abc import Callable
from typing import Any

from aisp.alignment import Alignment, SearchConfig, make_config, prompt_list
from aisp.methods.args import ARGSConfig, args
from aisp.methods.best_of_n import BestOfNConfig, best_of_n
from aisp.methods.kad import KADConfig, kad
from aisp.methods.ram import RAMConfig, ram
from aisp.methods.re_control import ReControlConfig, re_control
from aisp.policy import Policy
from aisp.rewards.base import Reward
from aisp.rewards.load import load_reward
from aisp.sampler import AISPConfig, aisp

METHODS: dict[str, tuple[Callable[..., list[Alignment]], type[SearchConfig]]] = {
    "aisp": (aisp, AISPConfig),
    "args": (args, ARGSConfig),
    "best_of_n": (best_of_n, BestOfNConfig),
    "kad": (kad, KADConfig),
    "ram": (ram, RAMConfig),
    "re_control": (re_control, ReControlConfig),
}


def available() -> list[str]:
    """Names of the methods that `align` takes."""
    return sorted(METHODS)


def configure(method: str, **parameters: Any) -> SearchConfig:
    """The configuration of a method, checked; raises ValueError on what the method cannot take."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(available())}")
    return make_config(METHODS[method][1], method, parameters)


def align(
    prompts: Any,
    policy: Policy,
    reward: Reward | Callable[[Any, str], float] | str,
    method: str = "aisp",
    *,
    seed: int = 0,
    progress: bool = True,
    **parameters: Any,
) -> Alignment | list[Alignment]:
    """Find a response of high reward without touching a weight of the policy.

    Args:
        prompts: a string or a list of {"role", "content"} messages; or a list of such prompts,
            which are decoded as one batch (memory grows with prompts * n).
        policy: from `load_policy`.
        reward: from `load_reward`, or any callable (prompt, response) -> float.
        method: one of `available()`.
        seed: the same seed gives the same result on the same device, dtype and versions; no global
            random state is read or changed.
        progress: show a progress bar.
        **parameters: of the method's configuration, for "aisp" those of `AISPConfig`.

    Returns:
        One Alignment, or a list of them for a list of prompts. After a KeyboardInterrupt, what was
        found so far, marked `interrupted`.

    Raises:
        ValueError: a prompt, method or parameter that cannot be used.
        RewardError: the reward failed; the error's `candidates` holds everything decoded so far.
    """
    config = configure(method, **parameters)
    prompts, single = prompt_list(prompts)
    run, _ = METHODS[method]
    out = run(
        prompts, policy, load_reward(reward, policy=policy), config, seed=seed, progress=progress
    )
    return out[0] if single else out
