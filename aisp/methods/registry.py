"""Which methods there are, and the front door to all of them, `align`.

To add one: write its configuration, a frozen dataclass derived from `SearchConfig`, and its `init`
and `step` (see `aisp.state`), and name the three in `METHODS`.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from aisp import sampler
from aisp.alignment import search
from aisp.checks import whole
from aisp.methods import (
    aisp_cv,
    aisp_scores,
    args,
    best_of_n,
    elliptical_slice,
    kad,
    metropolis,
    misvo,
    qalign,
    ram,
    re_control,
    speculative_rejection,
    tempered_smc,
)
from aisp.policy import Policy
from aisp.prompts import as_messages, prompt_list
from aisp.rewards.base import Reward
from aisp.rewards.load import load_reward
from aisp.state import Method, SearchConfig, SearchState

METHODS: dict[str, Method] = {
    "aisp": Method(sampler.AISPConfig, sampler.init, sampler.step, sampler.steps),
    "aisp_cv": Method(aisp_cv.AISPCVConfig, sampler.init, sampler.step, sampler.steps),
    "aisp_scores": Method(aisp_scores.AISPScoresConfig, misvo.init, misvo.step),
    "args": Method(args.ARGSConfig, args.init, args.step),
    "best_of_n": Method(best_of_n.BestOfNConfig, best_of_n.init, best_of_n.step, best_of_n.steps),
    "elliptical_slice": Method(
        elliptical_slice.EllipticalSliceConfig, elliptical_slice.init, elliptical_slice.step
    ),
    "kad": Method(kad.KADConfig, kad.init, kad.step, kad.steps),
    "metropolis": Method(metropolis.MetropolisConfig, metropolis.init, metropolis.step),
    "misvo": Method(misvo.MISVOConfig, misvo.init, misvo.step),
    "qalign": Method(qalign.QAlignConfig, qalign.init, qalign.step),
    "ram": Method(ram.RAMConfig, ram.init, ram.step, ram.steps),
    "re_control": Method(re_control.ReControlConfig, re_control.init, re_control.step),
    "speculative_rejection": Method(
        speculative_rejection.SpeculativeRejectionConfig,
        speculative_rejection.init,
        speculative_rejection.step,
        speculative_rejection.steps,
    ),
    "tempered_smc": Method(tempered_smc.TemperedSMCConfig, tempered_smc.init, tempered_smc.step),
}


def available() -> list[str]:
    """Names of the methods that `align` takes."""
    return sorted(METHODS)


def configure(method: str, **parameters: Any) -> SearchConfig:
    """The configuration of a method, checked.

    Raises:
        ValueError: an unknown method, a parameter that it does not have, or a value that it cannot
            take.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(available())}")
    config = METHODS[method].config
    known = [f.name for f in fields(config)]
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise ValueError(
            f"{method} has no parameter {', '.join(map(repr, unknown))}; it takes: "
            f"{', '.join(known)}"
        )
    return config(**parameters)


def align(
    prompts: Any,
    policy: Policy,
    reward: Reward | Callable[[Any, str], float] | str,
    method: str = "aisp",
    *,
    seed: int | None = None,
    state: SearchState | Sequence[SearchState] | None = None,
    progress: bool = True,
    **parameters: Any,
) -> Any:
    """Find a response of high reward without changing a weight of the policy.

    Args:
        prompts: a string or a list of {"role", "content"} messages; or a list of such prompts,
            which are decoded as one batch (memory grows with prompts * n).
        policy: from `load_policy`.
        reward: from `load_reward`, or any callable (prompt, response) -> float.
        method: one of `available()`.
        seed: the same seed gives the same result on the same device, dtype and versions; no global
            random state is read or changed. None is 0, or with `state` that of the state.
        state: go on from where an earlier call ended, `Alignment.state`, for kappa more iterations;
            for a list of prompts, a list of states. In float32 the two calls find what one longer
            one would have found.
        progress: show a progress bar.
        **parameters: of the method's configuration, for "aisp" those of `AISPConfig`.

    Returns:
        One `Alignment`, or a list of them for a list of prompts. After a KeyboardInterrupt, what
        was found so far, marked `interrupted`.

    Raises:
        ValueError: a prompt, method, state or parameter that cannot be used; a prompt that the
            reward cannot score.
        RewardError: the reward failed.
        FloatingPointError: logits, weights or U are not finite.
            These two have everything decoded so far in their attribute `candidates`.
    """
    config = configure(method, **parameters)
    listed, single = prompt_list(prompts)
    scorer = load_reward(reward, policy=policy)
    scorer.check(listed)
    if seed is not None:
        seed = whole("seed", seed)
    if state is None:
        begun = METHODS[method].init(policy, listed, config, seed=seed or 0)
    else:
        begun = _continued(state, listed, seed)
        _check_start(begun, method, policy, config)
    outs = search(begun, policy, scorer, config, METHODS[method], name=method, progress=progress)
    return outs[0] if single else outs


def _check_start(state: SearchState, method: str, policy: Policy, config: SearchConfig) -> None:
    """Whether a run of this method, policy and length may go on from a state."""
    kind = inspect.signature(METHODS[method].init).return_annotation
    if isinstance(kind, type) and type(state) is not kind:
        raise ValueError(
            f"the state is a {type(state).__name__}, of another method; {method} goes on from a "
            f"{kind.__name__}"
        )
    prefixes = tuple(policy.prefix(p, config.max_new_tokens) for p in state.prompts)
    if prefixes != state.prefixes:
        raise ValueError(
            f"the state was begun with another policy or template than {policy.name}: its prompts "
            "have other tokens. Go on with the policy that it was begun with"
        )


def _continued(given: Any, prompts: list[Any], seed: int | None) -> SearchState:
    """The states of earlier runs as one, checked against what is asked for now."""
    states = list(given) if isinstance(given, list | tuple) else [given]
    if not states or not all(isinstance(s, SearchState) for s in states):
        raise ValueError("state must be the `state` of an Alignment, or a list of them")
    state = states[0].joined(states[1:])
    if seed is not None and seed != state.seed:
        raise ValueError(
            f"seed is {seed}, and the state was begun with {state.seed}; leave out seed to go on"
        )
    begun = [as_messages(p) for p in state.prompts]
    if begun != [as_messages(p) for p in prompts]:
        raise ValueError(
            f"the state is of {len(begun)} prompts that differ from the {len(prompts)} given; pass "
            "the prompts that it was begun with, in their order"
        )
    return state
