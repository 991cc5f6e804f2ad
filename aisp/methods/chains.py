"""What the samplers of the exact target share: chains, their proposals, and what they accept.

The best law in the derivation of AISP (Kanai et al., arXiv:2510.26219) is

    Q*(V) proportional to exp(r(y(V)) / lam) N(V; 0, sigma^2 I),

y(V) being the greedy response under the perturbation V. AISP replaces it by a Gaussian, and fits the
mean; the methods `metropolis`, `elliptical_slice` and `tempered_smc` draw from it as it is, and
`qalign` from its counterpart over tokens, p(y) exp(r(y) / lam). Every proposal here is reversible
for the base law (N, or p), so that what is accepted depends on rewards only.

n chains per prompt run side by side. Every iteration decodes one proposal for each: n samples, as in
all methods, and all of them are candidates for the best response, accepted or not.

A response that the reward rejects (-inf) is never accepted where a chain has another. A chain that
has none yet takes every proposal. Only where no chain of a prompt has ever had one it is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from aisp.checks import check_finite, check_real, check_whole
from aisp.engine.continuation import continuation
from aisp.engine.perturbation import perturbations
from aisp.engine.rollout import Rollout, rollout
from aisp.policy import Policy
from aisp.prompts import prompt_list
from aisp.rewards.base import Reward
from aisp.state import Info, SearchConfig, SearchState, check_state, unweighted


@dataclass(frozen=True, kw_only=True)
class PerturbedConfig(SearchConfig):
    """What the samplers of Q* over perturbations share.

    Attributes:
        tau: steps that are perturbed, from the first on; None is all of max_new_tokens.
        sigma: standard deviation of the perturbation under the base law, in units of the pre-logit.
        lam: temperature of the reward, in units of reward: the smaller, the closer Q* is to the
            responses of the highest reward.
        temperature: 0, because the response has to be a function of V; top_k and top_p cannot be
            set either.
    """

    tau: int | None = None
    sigma: float = 0.5
    lam: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is None:
            object.__setattr__(self, "tau", self.max_new_tokens)
        check_whole(self, "tau", most=self.max_new_tokens, note=" (max_new_tokens)")
        check_finite(self, "sigma", "lam")
        if not self.decoding.greedy or self.top_k or self.top_p < 1:
            raise ValueError(
                f"temperature is {self.temperature:g}, top_k {self.top_k} and top_p {self.top_p:g}; "
                "the response has to be a function of V: leave out all three. To sample tokens in "
                "place of V use the method 'qalign'"
            )


@dataclass(frozen=True, kw_only=True)
class MovesConfig(PerturbedConfig):
    """What the samplers share that move V by suffix refreshment or by pCN.

    Attributes:
        pcn: None moves by suffix refreshment; a number b from 0 (not included) to 1 moves by pCN
            with this step. See `propose`.
    """

    pcn: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pcn is not None:
            check_real(self, "pcn", above=0, most=1, note=", or None for suffix refreshment")


@dataclass(frozen=True, eq=False, kw_only=True)
class ChainsState(SearchState):
    """The state of every method, and where each chain stands.

    Attributes:
        tokens, lengths: (P, n, T) and (P, n), the current responses as a `Rollout` has them; of
            length 0 before the first iteration.
        rewards: (P, n) float64 on the CPU, theirs; -inf before the first iteration.
    """

    per_prompt: ClassVar[tuple[str, ...]] = (
        *SearchState.per_prompt,
        "tokens",
        "lengths",
        "rewards",
    )

    tokens: Tensor
    lengths: Tensor
    rewards: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class PerturbedState(ChainsState):
    """Chains over perturbations.

    Attributes:
        V: (P, n, tau, d), which the current responses were decoded with.
    """

    per_prompt: ClassVar[tuple[str, ...]] = (*ChainsState.per_prompt, "V")

    V: Tensor


State = TypeVar("State", bound=ChainsState)


class Proposal(NamedTuple):
    """One proposed response per chain."""

    rollout: Rollout  # (P, n)
    log_ratio: Tensor  # (P, n) float64, log of how much likelier the way back is proposed
    V: Tensor | None = None  # (P, n, tau, d) that it was decoded with


def beginning(policy: Policy, prompts: Any, config: SearchConfig) -> dict[str, Any]:
    """The tensors of a state before the first iteration, in which every chain takes what it draws."""
    P, n, T = len(prompt_list(prompts)[0]), config.n, config.max_new_tokens
    device = policy.head_device
    found = {
        "tokens": torch.zeros(P, n, T, dtype=torch.long, device=device),
        "lengths": torch.zeros(P, n, dtype=torch.long, device=device),
        "rewards": torch.full((P, n), -torch.inf, dtype=torch.float64),
    }
    if isinstance(config, PerturbedConfig):
        found["V"] = torch.zeros(P, n, config.tau or T, policy.d, device=device)
    return found


def check_chains(
    state: SearchState, kind: type[ChainsState], policy: Policy, config: SearchConfig
) -> None:
    """Raise ValueError where a step is given a state of another method, size or policy."""
    check_state(state, kind)
    assert isinstance(state, ChainsState)
    sizes: dict[str, tuple[Any, Any]] = {
        "n, max_new_tokens": (tuple(state.tokens.shape[1:]), (config.n, config.max_new_tokens))
    }
    if isinstance(state, PerturbedState) and isinstance(config, PerturbedConfig):
        sizes["tau, d"] = (tuple(state.V.shape[2:]), (config.tau, policy.d))
    for names, (begun, now) in sizes.items():
        if begun != now:
            raise ValueError(
                f"the state was begun with {names} = {begun}, and now they are {now}; its chains "
                "go on with those that they began with"
            )


def uniform(sources: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Random numbers in [0, 1), (P, *shape) float64 on the CPU, each prompt from its own source."""
    float64 = torch.float64
    drawn = [torch.rand(shape, generator=g, device=g.device, dtype=float64) for g in sources]
    return torch.stack(drawn).cpu()


def cuts(lengths: Tensor, sources: Sequence[torch.Generator]) -> Tensor:
    """Steps c, each uniform on {0, ..., length - 1}; (P, n) on the device of the lengths."""
    at = uniform(sources, lengths.shape[1]).to(lengths.device) * lengths
    return at.long().minimum((lengths - 1).clamp(min=0))  # against rounding up


def propose(
    state: PerturbedState,
    policy: Policy,
    config: MovesConfig,
    sources: Sequence[torch.Generator],
) -> Proposal:
    """One proposed V per chain, and its response.

    At first V ~ N(0, sigma^2 I). Then one of two moves, both reversible for that law:

    - suffix refreshment (`pcn` None): V' = V up to a step c, fresh after it, c uniform on the L
      perturbed steps of the response. Tokens before c stay, and are not decoded. The way back has
      the same c with probability 1 / L', which makes the ratio L / L'.
    - preconditioned Crank-Nicolson (Cotter, Roberts, Stuart and White, Statistical Science 28, 2013):
      V' = sqrt(1 - b^2) V + b xi, xi ~ N(0, sigma^2 I).
    """
    P, n, tau, d = state.V.shape
    noise = perturbations(state.V.new_zeros(P, tau, d), n, config.sigma, sources)
    b = config.pcn if state.iteration else 1.0
    T, none = config.max_new_tokens, torch.zeros(P, n, dtype=torch.float64)
    if b is not None:
        V = (1 - b**2) ** 0.5 * state.V + b * noise
        return Proposal(rollout(policy, state.prefixes, n, T, V=V), none, V)
    steps = state.lengths.clamp(max=tau)
    kept = cuts(steps, sources)
    stays = torch.arange(tau, device=kept.device) < kept.unsqueeze(-1)
    V = torch.where(stays.unsqueeze(-1), state.V, noise)
    out = continuation(policy, state.prefixes, current(state), kept, T, V=V)
    return Proposal(out, log_lengths(steps) - log_lengths(out.lengths.clamp(max=tau)), V)


def current(state: ChainsState) -> Rollout:
    """The current responses, without their texts."""
    return Rollout(state.tokens, state.lengths, [])


def log_lengths(lengths: Tensor) -> Tensor:
    """(P, n) float64 on the CPU."""
    return lengths.cpu().double().log()


def decide(
    state: State,
    reward: Reward,
    proposal: Proposal,
    lam: float | Tensor,
    sources: Sequence[torch.Generator],
) -> tuple[State, Info]:
    """The end of a Metropolis step: accept with probability min(1, exp((r' - r) / lam) ratio).

    The history has `accepted`, the share of the proposals that were; 1 in the first iteration.

    Args:
        lam: one for all, or (P, 1).
    """
    following, info = unweighted(state, reward, proposal.rollout)
    gain = (info.rewards - state.rewards) / lam + proposal.log_ratio
    accepted = (state.rewards == -torch.inf) | (uniform(sources, gain.shape[1]).log() < gain)
    share = accepted.double().mean(1).tolist()
    following = moved(following, proposal, info.rewards, accepted)
    return following, replace(info, columns={"accepted": share})


def moved(state: State, proposal: Proposal, rewards: Tensor, accepted: Tensor) -> State:
    """The state whose chains stand at their proposals where these are accepted, (P, n)."""
    out = proposal.rollout
    new = {"tokens": out.tokens, "lengths": out.lengths, "rewards": rewards}
    if proposal.V is not None:
        new["V"] = proposal.V
    taken: dict[str, Any] = {x: chosen(accepted, y, getattr(state, x)) for x, y in new.items()}
    return replace(state, **taken)


def chosen(where: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the chains (P, n) where it is said so, else `old`; (P, n, ...), where `old` is."""
    where = where.view(*where.shape, *[1] * (old.ndim - 2))
    return torch.where(where.to(old.device), new.to(old.device), old)
