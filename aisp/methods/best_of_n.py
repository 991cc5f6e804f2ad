"""Best-of-n: the best by reward of kappa batches of n responses sampled from the policy.

The baseline that every test-time method has to beat at the same number of samples. It is drawn in
the same batches as AISP, so that curves of best reward against samples used line up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aisp.alignment import Alignment, SearchConfig, independent
from aisp.engine.rollout import rollout
from aisp.policy import Policy
from aisp.rewards.base import Reward


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig(SearchConfig):
    """Parameters of best-of-n: those of `SearchConfig`, sampled by default.

    Attributes:
        temperature: 1 samples from the policy itself.
        top_p: 0.9 is usual; 1 with temperature 1 is plain ancestral sampling.
    """

    temperature: float = 1.0
    top_p: float = 0.9


def best_of_n(
    prompts: Sequence[Any],
    policy: Policy,
    reward: Reward,
    config: BestOfNConfig,
    *,
    seed: int = 0,
    progress: bool = True,
) -> list[Alignment]:
    """Sample and keep the best; nothing is learned between iterations."""

    def draw(prefixes, prompts, generators):
        out = rollout(
            policy,
            prefixes,
            config.n,
            config.max_new_tokens,
            decoding=config.decoding,
            generators=generators,
        )
        return out, {}

    return independent(
        prompts,
        policy,
        reward,
        config,
        method="best_of_n",
        seed=seed,
        draw=draw,
        progress=progress,
    )
