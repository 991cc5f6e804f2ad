"""Elliptical slice sampling (Murray, Adams and MacKay, AISTATS 2010, arXiv:1001.0175) of

    Q*(V) proportional to exp(r(y(V)) / lam) N(V; 0, sigma^2 I).

    nu ~ N(0, sigma^2 I);  threshold = r(y(V)) + lam log(uniform);  an angle in the bracket of 2 pi
    until accepted:
        V' = V cos(angle) + nu sin(angle);  accept if r(y(V')) >= threshold
        else shrink the bracket to the angle, on its side of 0, and draw another one in it

It has no step to choose, and accepts in the end whatever the reward; but every try costs a decoding.
So that every iteration decodes n responses, each of n chains tries one angle per iteration, and its
bracket is part of the state.

Which points have the law Q*: of each chain those that it moved to, counted by moves. Counted by
iterations, points that are hard to leave, because few others are as good, appear more often.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from aisp.engine.perturbation import perturbations
from aisp.engine.rollout import rollout
from aisp.methods.chains import (
    PerturbedConfig,
    PerturbedState,
    Proposal,
    beginning,
    check_chains,
    chosen,
    moved,
    uniform,
)
from aisp.policy import Policy
from aisp.rewards.base import Reward
from aisp.state import Info, unweighted


@dataclass(frozen=True, kw_only=True)
class EllipticalSliceConfig(PerturbedConfig):
    """Parameters of elliptical slice sampling: those of `PerturbedConfig`, n chains."""


@dataclass(frozen=True, eq=False, kw_only=True)
class EllipticalSliceState(PerturbedState):
    """Chains over perturbations, each with the bracket that it tries angles of.

    Attributes:
        nu: (P, n, tau, d), the other end of the ellipse.
        threshold: (P, n) float64, the least reward that is accepted.
        low, high: (P, n) float64, the bracket, with 0 inside it; both 0 where a new one begins.
        moves: (P, n), how many points each chain has accepted, its first draw among them.
    """

    per_prompt: ClassVar[tuple[str, ...]] = (
        *PerturbedState.per_prompt,
        "nu",
        "threshold",
        "low",
        "high",
        "moves",
    )

    nu: Tensor
    threshold: Tensor
    low: Tensor
    high: Tensor
    moves: Tensor


def init(
    policy: Policy, prompts: Any, config: EllipticalSliceConfig, *, seed: int = 0
) -> EllipticalSliceState:
    """The state before the first iteration."""
    at = beginning(policy, prompts, config)
    zeros = torch.zeros_like(at["rewards"])
    at |= {"nu": at["V"], "threshold": zeros, "low": zeros, "high": zeros, "moves": zeros.long()}
    return EllipticalSliceState.start(policy, prompts, config, seed, **at)


def step(
    state: EllipticalSliceState, policy: Policy, reward: Reward, config: EllipticalSliceConfig
) -> tuple[EllipticalSliceState, Info]:
    """Try one angle of every chain's bracket; at first, draw from N(0, sigma^2 I).

    The history has `accepted`, the share of the tries that were.

    Raises:
        ValueError: a state of another method, n, max_new_tokens, tau or policy.
    """
    check_chains(state, EllipticalSliceState, policy, config)
    sources = state.generators(policy.head_device)
    P, n, tau, d = state.V.shape
    noise = perturbations(state.V.new_zeros(P, tau, d), n, config.sigma, sources)
    level, at = uniform(sources, n, 2).unbind(-1)
    anew = state.low == state.high
    nu = chosen(anew, noise, state.nu)
    threshold = torch.where(anew, state.rewards + config.lam * level.log(), state.threshold)
    # A new bracket of 2 pi ends at its first angle: any turn of it would do.
    angle = torch.where(anew, 2 * math.pi * at, state.low + (state.high - state.low) * at)
    low = torch.where(anew, angle - 2 * math.pi, state.low)
    high = torch.where(anew, angle, state.high)
    turn = angle.to(state.V).view(P, n, 1, 1)
    V = state.V * turn.cos() + nu * turn.sin() if state.iteration else noise
    out = rollout(policy, state.prefixes, n, config.max_new_tokens, V=V)
    following, info = unweighted(state, reward, out)
    accepted = (state.rewards == -torch.inf) | (info.rewards >= threshold)
    following = replace(
        following,
        nu=nu,
        threshold=threshold,
        low=torch.where(angle < 0, angle, low).masked_fill(accepted, 0.0),
        high=torch.where(angle < 0, high, angle).masked_fill(accepted, 0.0),
        moves=state.moves + accepted,
    )
    following = moved(following, Proposal(out, level, V), info.rewards, accepted)
    return following, replace(info, columns={"accepted": accepted.double().mean(1).tolist()})
