"""AISP: adaptive importance sampling on pre-logits (Kanai et al., arXiv:2510.26219).

    U = 0
    repeat kappa times:
        V_i ~ N(U, sigma^2 I)                 n perturbations of the next tau pre-logits
        y_i = decode(V_i),  r_i = r(x, y_i)
        w_i = normalized exp(r_i / lam - (1 - alpha) / sigma^2 sum_t u_t . v_t^i)
        U   = sum_i w_i V_i
    return the best of all kappa * n responses

Options of `AISPConfig` beyond the paper change single lines of it: a control variate, antithetic
pairs, a mean that moves at the first steps only or is shared by several, and lam chosen by the
effective sample size of the weights or by a bound on their KL.

`init` and `step` are this algorithm on a real model, one iteration at a time; `aisp.align` repeats
`step`. Both are pure: they take tensors and states, and return new ones.

    state = sampler.init(policy, "How do I learn to cook?", config)
    state, info = sampler.step(state, policy, reward, config)
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from aisp import control
from aisp.checks import check_finite, check_real, check_whole, flag
from aisp.engine.decoding import GREEDY, Decoding
from aisp.engine.perturbation import Perturbation
from aisp.engine.perturbation import perturbations as perturbations  # a part of the algorithm
from aisp.engine.rollout import rollout
from aisp.policy import Policy
from aisp.prompts import prompt_list
from aisp.rewards.base import Reward
from aisp.state import (
    IndependentConfig,
    Info,
    SearchState,
    check_state,
    generator,
    scored,
)


@dataclass(frozen=True, kw_only=True)
class AISPConfig(IndependentConfig):
    """Parameters of AISP.

    Attributes:
        tau: control horizon, the number of leading steps that are perturbed; None is all of
            max_new_tokens.
        sigma: standard deviation of the perturbation, in units of the pre-logit. Every logit moves
            by sigma times the norm of its row of the output embeddings.
        lam: temperature of the reward, in units of reward. Compare it with the standard deviation
            of the rewards over responses to one prompt: far below that U follows single samples
            (ess near 1), far above it U stays at 0 (ess near n).
        alpha: scales the KL cost in the weights by (1 - alpha).
        control_variate: weigh with w_i - 1/n, which keeps what the update expects to move and takes
            out the part of its noise that no reward decides, see `control.moved_mean`.
        step_size: the update is multiplied by it.
        steered: U moves at the first `steered` steps only, later ones keep noise around 0; None is
            all tau. A control at step t means the same for two responses only while they share
            their first t tokens.
        antithetic: draw perturbations in pairs U + sigma e, U - sigma e, whose plain mean is U;
            needs an even n.
        ess: set lam anew for every prompt and iteration, so that the effective sample size of the
            weights is ess * n; needs alpha = 1, and lam left alone. From 1/n to 1; None uses lam.
        kl_bound: set lam anew likewise, to where the weights gain most within this KL from uniform
            ones, in nats (`control.lam_for_kl`), from 0 to log n; in place of ess.
        block: number of steps that share one row of U; tau is one u for all steps.
        adapt: False holds U at 0: the ablation "noise only", which separates the gain from
            adaptation from the gain of the proposal distribution.
        temperature: 0, greedy decoding of the perturbed logits, makes the response a function of V
            as the derivation needs; sampling is an ablation.

    The others are those of `IndependentConfig`; `rows` is used where `adapt` is False.
    """

    tau: int | None = None
    sigma: float = 0.5
    lam: float = 1.0
    alpha: float = 0.99
    adapt: bool = True
    control_variate: bool = False
    step_size: float = 1.0
    steered: int | None = None
    antithetic: bool = False
    ess: float | None = None
    kl_bound: float | None = None
    block: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is None:
            object.__setattr__(self, "tau", self.max_new_tokens)
        check_whole(self, "tau", most=self.max_new_tokens, note=" (max_new_tokens)")
        check_finite(self, "sigma", "lam")
        check_real(self, "alpha", least=0, most=1)
        for name in ("adapt", "control_variate", "antithetic"):
            flag(name, getattr(self, name))
        check_finite(self, "step_size")
        if self.steered is not None:
            check_whole(self, "steered", most=self.tau, note=" (tau), or None for all")
        if self.antithetic and self.n % 2:
            raise ValueError(f"n is {self.n}; antithetic pairs need an even one")
        check_whole(self, "block", most=self.tau, note=" (tau)")
        if self.ess is not None:
            self._check_lam_by("ess", 1 / self.n, 1, "1/n to 1")
        if self.kl_bound is not None:
            self._check_lam_by("kl_bound", 0, log(self.n), "0 to log n")
        if self.ess is not None and self.kl_bound is not None:
            raise ValueError(
                f"ess is {self.ess:g} and kl_bound {self.kl_bound:g}; each of them sets lam: leave "
                "out one of the two"
            )

    def at_once(self, prompts: int) -> int:
        return 1 if self.adapt else super().at_once(prompts)

    def _check_lam_by(self, name: str, least: float, most: float, range_: str) -> None:
        """`ess` or `kl_bound`, which set lam: in range, and with nothing that works against them."""
        note = f" ({range_}), or None to use lam"
        check_real(self, name, least=least, most=most, note=note)
        value = getattr(self, name)
        if self.alpha != 1:
            raise ValueError(
                f"{name} is {value:g} and alpha {self.alpha:g}; set alpha = 1 with {name}, because "
                "no lam takes the term of the KL cost out of the weights"
            )
        if self.lam != type(self).lam:
            raise ValueError(
                f"{name} is {value:g} and lam {self.lam:g}; with {name}, lam is set anew in every "
                "iteration: leave out one of the two"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class AISPState(SearchState):
    """The state of AISP: that of every method, and the mean of the perturbation.

    Attributes:
        U: (P, tau, d), on the device of the policy's head.
    """

    per_prompt: ClassVar[tuple[str, ...]] = (*SearchState.per_prompt, "U")

    U: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class AISPInfo(Info):
    """What one iteration of AISP saw: what every method's does, and the perturbations.

    Attributes:
        V: (P, n, tau, d), drawn from N(U, sigma^2 I).
    """

    V: Tensor


class Update(NamedTuple):
    """What the rewards of one iteration do to the mean; P prompts, n samples."""

    U: Tensor  # (P, tau, d), the next mean
    log_w: Tensor  # (P, n) float64, normalized
    ess: Tensor  # (P,) float64, effective sample size of the weights
    kl: Tensor  # (P,) float64, KL(Q_U || P) of the mean that V was drawn around, in nats


def init(policy: Policy, prompts: Any, config: AISPConfig, *, seed: int = 0) -> AISPState:
    """The state before the first iteration: U = 0.

    Args:
        prompts: one prompt or a list of P prompts, decoded as one batch.
        seed: of all randomness; together with a prompt's messages and the iteration it decides V.

    Raises:
        ValueError: a prompt that is malformed or too long.
    """
    if not isinstance(config, AISPConfig):
        raise TypeError(f"config is {config!r}; it must be an AISPConfig")
    listed, _ = prompt_list(prompts)
    tau = config.tau or config.max_new_tokens
    U = torch.zeros(len(listed), tau, policy.d, device=policy.head_device)
    return AISPState.start(policy, listed, config, seed, U=U)


def step(
    state: AISPState, policy: Policy, reward: Reward, config: AISPConfig
) -> tuple[AISPState, AISPInfo]:
    """One iteration: perturb, decode, score, weigh, and move the mean.

    Args:
        state: from `init` or the step before.

    Returns:
        The next state, and everything that this iteration saw. Its `kl` and `log_w` belong to the
        mean that V was drawn around, state.U.

    Raises:
        RewardError: the reward failed; its `texts` are the responses.
        FloatingPointError: logits, weights or the next mean are not finite.
        ValueError: a state of another method, or of another tau or policy.
    """
    return next(steps(state, policy, reward, config, 1))


def steps(
    state: AISPState, policy: Policy, reward: Reward, config: AISPConfig, k: int
) -> Iterator[tuple[AISPState, AISPInfo]]:
    """k iterations as `step` makes them, decoded as one batch; k > 1 needs a mean that stays."""
    _check_fit(state, policy, config)
    if k > 1 and config.adapt:
        raise ValueError(f"k is {k}; each iteration of AISP needs the one before: k must be 1")
    generators = state.generators(policy.head_device, k)
    drawn = Perturbation(
        state.U.repeat_interleave(k, 0), config.n, config.sigma, generators, config.antithetic
    )
    out = rollout(
        policy,
        state.repeated_prefixes(k),
        config.n,
        config.max_new_tokens,
        V=drawn,
        decoding=config.decoding,
        generators=generators,
    )
    parts = out.interleaved(k)
    for i, part in enumerate(parts):
        rewards = scored(state, reward, part, parts[i + 1 :])
        V = drawn.tensor[i::k]
        U, log_w, ess, kl = update(state.U, V, rewards, config)
        info = AISPInfo(
            iteration=state.iteration,
            rollout=part,
            rewards=rewards,
            log_w=log_w,
            ess=ess,
            kl=kl,
            columns={},
            V=V,
        )
        state = replace(state.advanced(part, rewards), U=U)
        yield state, info


def update(U: Tensor, V: Tensor, rewards: Tensor, config: AISPConfig) -> Update:
    """From the rewards of one iteration to the next mean (arXiv:2510.26219, the update of U).

    Args:
        U: (P, tau, d), the mean that V was drawn around.
        V: (P, n, tau, d).
        rewards: (P, n) float64.

    Returns:
        The next mean (U itself where `adapt` is off), and the weights with their diagnostics.

    Raises:
        FloatingPointError: weights or mean are not finite, as with a tiny lam or a huge sigma.
    """
    rewards, lam = rewards.to(U.device), config.lam
    scale = None
    if config.ess is not None:
        scale = control.lam_for_ess(rewards, config.ess * config.n)
    elif config.kl_bound is not None:
        scale = control.lam_for_kl(rewards, config.kl_bound)
    if scale is not None:
        rewards, lam = rewards / scale.unsqueeze(-1), 1.0
    log_w = control.log_weights(rewards, U, V, lam=lam, sigma=config.sigma, alpha=config.alpha)
    names = ("control_variate", "step_size", "steered", "block")
    how = {name: getattr(config, name) for name in names}
    mean = control.moved_mean(U, log_w, V, **how) if config.adapt else U
    if not bool(mean.isfinite().all()):
        raise FloatingPointError(
            f"the next mean U is not finite (sigma = {config.sigma:g}, lam = {config.lam:g}); "
            "lower sigma"
        )
    ess = control.effective_sample_size(log_w)
    return Update(mean, log_w, ess, control.gaussian_kl(U, config.sigma))


def respond(
    policy: Policy,
    prompt: Any,
    U: Tensor,
    *,
    max_new_tokens: int = 48,
    decoding: Decoding = GREEDY,
    seed: int = 0,
) -> str:
    """The response of the policy whose pre-logits are moved by U, without noise.

    Args:
        prompt: one prompt.
        U: (tau, d), such as `Alignment.U`; steps after tau are those of the policy itself. Of more
            than max_new_tokens rows the first ones are used.
        decoding: greedy, or how to sample; then `seed` decides what is drawn.

    Raises:
        ValueError: U of another shape, or a prompt that is malformed or too long.
    """
    if not isinstance(U, Tensor):
        raise TypeError(f"U is {U!r}; it must be a tensor (tau, d), as AISP's `Alignment.U` is")
    if U.ndim != 2 or U.shape[1] != policy.d:
        raise ValueError(f"U has shape {tuple(U.shape)}; expected (tau, d) with d = {policy.d}")
    prefix = policy.prefix(prompt, max_new_tokens)
    source = generator(seed, prompt, 0, policy.head_device)
    V = U[None, None, :max_new_tokens].to(policy.head_device)
    out = rollout(policy, [prefix], 1, max_new_tokens, V=V, decoding=decoding, generators=[source])
    return out.texts[0][0]


def _check_fit(state: AISPState, policy: Policy, config: AISPConfig) -> None:
    check_state(state, AISPState)
    if state.U.shape[1:] != (config.tau, policy.d):
        raise ValueError(
            f"the state's U has shape {tuple(state.U.shape[1:])}; the configuration's tau and the "
            f"policy's d are {(config.tau, policy.d)}: continue with the tau and the policy that it "
            "began with"
        )
