"""Tempered sequential Monte Carlo (Del Moral, Doucet and Jasra, JRSS B 68, 2006) of

    Q*(V) proportional to exp(r(y(V)) / lam) N(V; 0, sigma^2 I),

over the laws proportional to exp(beta r) N, beta from 0 to 1 / lam:

    V_i ~ N(0, sigma^2 I), beta = 0
    repeat:
        beta' such that the weights exp((beta' - beta) r_i) have an effective sample size of ess * n
        draw n of the V_i by these weights (systematic resampling)
        one Metropolis move of each at beta': suffix refreshment, or pCN

The first line is the first iteration, and each pass of the loop another one: n responses are
decoded in each. Once beta is 1 / lam nothing is drawn anew, and the moves go on at 1 / lam. Where
the iterations end before, the particles follow the law at the last beta: the history's column `beta`.

The law is exact as n grows: the particles share ancestors, and the steps of beta depend on them.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from aisp import control
from aisp.checks import check_real
from aisp.methods.chains import (
    MovesConfig,
    PerturbedState,
    beginning,
    check_chains,
    decide,
    propose,
    uniform,
)
from aisp.policy import Policy
from aisp.rewards.base import Reward
from aisp.state import Info


@dataclass(frozen=True, kw_only=True)
class TemperedSMCConfig(MovesConfig):
    """Parameters of tempered sequential Monte Carlo: those of `MovesConfig`, n particles.

    Attributes:
        ess: effective sample size that a step of beta leaves, as a share of n, from 1/n to 0.95. The
            smaller, the fewer the steps to 1 / lam.
    """

    ess: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real(self, "ess", least=1 / self.n, most=0.95, note=" (from 1/n)")


@dataclass(frozen=True, eq=False, kw_only=True)
class TemperedSMCState(PerturbedState):
    """Particles over perturbations, and the law that they follow.

    Attributes:
        beta: (P,) float64.
    """

    per_prompt: ClassVar[tuple[str, ...]] = (*PerturbedState.per_prompt, "beta")

    beta: Tensor


def init(
    policy: Policy, prompts: Any, config: TemperedSMCConfig, *, seed: int = 0
) -> TemperedSMCState:
    """The state before the first iteration.

    Raises:
        ValueError: suffix refreshment with a policy of another engine.
    """
    if config.pcn is None:
        policy.require_here("suffix refreshment")
    at = beginning(policy, prompts, config)
    at["beta"] = torch.zeros(len(at["rewards"]), dtype=torch.float64)
    return TemperedSMCState.start(policy, prompts, config, seed, **at)


def step(
    state: TemperedSMCState, policy: Policy, reward: Reward, config: TemperedSMCConfig
) -> tuple[TemperedSMCState, Info]:
    """Raise beta, draw particles by their weights, and move each; at first, draw them.

    The history has `beta`, which the particles follow after the iteration; `ess`, of the weights
    that raised it, n where it stayed; and `accepted`, the share of the moves that were.

    Raises:
        ValueError: a state of another method, n, max_new_tokens, tau or policy, or beyond 1 / lam.
    """
    check_chains(state, TemperedSMCState, policy, config)
    if bool((state.beta > 1 / config.lam).any()):
        raise ValueError(
            f"the state is at beta = {state.beta.max():g}, beyond 1 / lam = {1 / config.lam:g}; go "
            f"on with lam = {1 / state.beta.max():g} or lower"
        )
    sources = state.generators(policy.head_device)
    ess = torch.full_like(state.beta, config.n)
    if state.iteration:
        beta, log_w = raised(state.rewards, state.beta, config)
        ess = control.effective_sample_size(log_w)
        state = replace(resampled(state, log_w, sources), beta=beta)
    proposal = propose(state, policy, config, sources)
    following, info = decide(state, reward, proposal, 1 / state.beta.unsqueeze(-1), sources)
    columns = {**info.columns, "beta": state.beta.tolist()}
    return following, replace(info, ess=ess, columns=columns)


def raised(rewards: Tensor, beta: Tensor, config: TemperedSMCConfig) -> tuple[Tensor, Tensor]:
    """The next beta, and the weights of the particles that lead to it.

    It is 1 / lam where the weights up to there have at least the wanted effective sample size.

    Args:
        rewards: (P, n) float64, of the particles; -inf has weight 0, but not all of a prompt's.
        beta: (P,), at most 1 / lam.

    Returns:
        (P,), and normalized log-weights (P, n), equal ones where beta stays.
    """
    end, target = 1 / config.lam, max(1.0, config.ess * config.n)
    rest = (end - beta).unsqueeze(-1)

    def weights(by: Tensor) -> Tensor:
        return torch.log_softmax(torch.where(by > 0, rewards * by, 0.0), -1)

    part = 1 / control.lam_for_ess(rewards, target).unsqueeze(-1)
    enough = control.effective_sample_size(weights(rest)) >= target
    whole = enough.unsqueeze(-1) | (part >= rest)
    following = torch.where(whole.squeeze(-1), end, beta + part.squeeze(-1))
    return following, weights(torch.where(whole, rest, part))


def resampled(
    state: TemperedSMCState, log_w: Tensor, sources: list[torch.Generator]
) -> TemperedSMCState:
    """n particles by their weights, systematically: each about n w_i times, no other way.

    Where all weights are equal, every particle stays.
    """
    n = log_w.shape[1]
    mass = log_w.exp().cumsum(-1)
    at = (uniform(sources, 1) + torch.arange(n)) / n * mass[:, -1:]
    drawn = torch.searchsorted(mass, at, right=True).clamp(max=n - 1)
    same = (log_w == log_w[:, :1]).all(-1, keepdim=True)
    drawn = torch.where(same, torch.arange(n), drawn)
    rows = torch.arange(len(drawn)).unsqueeze(-1)

    def of(x: Tensor) -> Tensor:
        return x[rows.to(x.device), drawn.to(x.device)]

    return replace(
        state,
        tokens=of(state.tokens),
        lengths=of(state.lengths),
        rewards=of(state.rewards),
        V=of(state.V),
    )
