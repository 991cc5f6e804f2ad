"""Best-of-n: the highest-reward response among kappa batches of n, sampled from the policy.

The baseline that every test-time method has to beat at the same number of samples. It is drawn in
the same batches as AISP, so that curves of best reward against samples used line up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aisp.engine.rollout import rollout
from aisp.policy import Policy
from aisp.rewards.base import Reward
from aisp.state import IndependentConfig, Info, SearchState, each_unweighted


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig(IndependentConfig):
    """Parameters of best-of-n: those of `IndependentConfig`, sampled by default.

    Attributes:
        temperature: 1 samples from the policy itself.
        top_p: 0.9 is usual; 1 with temperature 1 is plain ancestral sampling.
    """

    temperature: float = 1.0
    top_p: float = 0.9


def init(policy: Policy, prompts: Any, config: BestOfNConfig, *, seed: int = 0) -> SearchState:
    """The state before the first iteration."""
    return SearchState.start(policy, prompts, config, seed)


def step(
    state: SearchState, policy: Policy, reward: Reward, config: BestOfNConfig
) -> tuple[SearchState, Info]:
    """Sample n responses to each prompt; nothing is learned from their rewards."""
    return next(steps(state, policy, reward, config, 1))


def steps(
    state: SearchState, policy: Policy, reward: Reward, config: BestOfNConfig, k: int
) -> Iterator[tuple[SearchState, Info]]:
    """k iterations, decoded as one batch."""
    out = rollout(
        policy,
        state.repeated_prefixes(k),
        config.n,
        config.max_new_tokens,
        decoding=config.decoding,
        generators=state.generators(policy.head_device, k),
    )
    yield from each_unweighted(state, reward, out, k)
