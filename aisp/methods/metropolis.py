"""Metropolis-Hastings over perturbations: n chains on the exact target that AISP projects.

    Q*(V) proportional to exp(r(y(V)) / lam) N(V; 0, sigma^2 I)

    V' = V up to a random step, fresh after it        (suffix refreshment)
    or  sqrt(1 - b^2) V + b xi, xi ~ N(0, sigma^2 I)  (pCN)
    accept with probability min(1, exp((r' - r) / lam)), times L / L' for suffix refreshment

`aisp.methods.chains.propose` says why both leave Q* as it is, and where they come from. Suffix
refreshment decodes endings only; it is QAlign (arXiv:2504.03790) with noise in the pre-logits in
place of a temperature. pCN changes every step a little, and decodes whole responses.
"""

from dataclasses import dataclass
from typing import Any

from aisp.methods.chains import (
    MovesConfig,
    PerturbedState,
    beginning,
    check_chains,
    decide,
    propose,
)
from aisp.policy import Policy
from aisp.rewards.base import Reward
from aisp.state import Info


@dataclass(frozen=True, kw_only=True)
class MetropolisConfig(MovesConfig):
    """Parameters of Metropolis-Hastings over perturbations: those of `MovesConfig`, n chains."""


def init(
    policy: Policy, prompts: Any, config: MetropolisConfig, *, seed: int = 0
) -> PerturbedState:
    """The state before the first iteration.

    Raises:
        ValueError: suffix refreshment with a policy of another engine.
    """
    if config.pcn is None:
        policy.require_here("suffix refreshment")
    at = beginning(policy, prompts, config)
    return PerturbedState.start(policy, prompts, config, seed, **at)


def step(
    state: PerturbedState, policy: Policy, reward: Reward, config: MetropolisConfig
) -> tuple[PerturbedState, Info]:
    """Propose a move of every chain; at first, a draw from N(0, sigma^2 I).

    The history has `accepted`, the share of the proposals that were.

    Raises:
        ValueError: a state of another method, n, max_new_tokens, tau or policy.
    """
    check_chains(state, PerturbedState, policy, config)
    sources = state.generators(policy.head_device)
    return decide(state, reward, propose(state, policy, config, sources), config.lam, sources)
