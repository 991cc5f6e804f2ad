"""AISP: adaptive importance sampling on pre-logits (Kanai et al., arXiv:2510.26219).

    U = 0
    repeat kappa times:
        V_i ~ N(U, sigma^2 I)                 n perturbations of the next tau pre-logits
        y_i = decode(V_i),  r_i = r(x, y_i)
        w_i = normalized exp(r_i / lam - (1 - alpha) / sigma^2 sum_t u_t . v_t^i)
        U   = sum_i w_i V_i
    return the best of all kappa * n responses

The state of one prompt is U, (tau, d). `draw` and `step` are pure: they take tensors and
generators, and return new values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aisp import control
from aisp.alignment import Alignment, Learned, SearchConfig, check_finite, search
from aisp.engine.rollout import rollout
from aisp.policy import Policy
from aisp.rewards.base import Reward


@dataclass(frozen=True, kw_only=True)
class AISPConfig(SearchConfig):
    """Parameters of AISP.

    Attributes:
        tau: control horizon, the number of leading steps that are perturbed; None is all of
            max_new_tokens.
        sigma: standard deviation of the perturbation, in units of the pre-logit. Every logit moves
            by sigma times the norm of its row of the output embeddings.
        lam: temperature of the reward, in units of reward. It means something only relative to the
            spread of the rewards: far below it U follows single samples (ess near 1), far above it
            U stays at 0 (ess near n).
        alpha: scales the KL cost in the weights by (1 - alpha).
        adapt: False holds U at 0: the control "pre-logit noise best-of-n", which separates what
            adaptation buys from what the proposal distribution buys.
        temperature: 0, greedy decoding of the perturbed logits, makes the response a function of V
            as the derivation needs; sampling is an ablation.

    The others are those of `SearchConfig`.
    """

    tau: int | None = None
    sigma: float = 0.5
    lam: float = 1.0
    alpha: float = 0.99
    adapt: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.tau is None:
            object.__setattr__(self, "tau", self.max_new_tokens)
        if not isinstance(self.tau, int) or not 1 <= self.tau <= self.max_new_tokens:
            raise ValueError(
                f"tau is {self.tau!r}; it must be a whole number from 1 to max_new_tokens = "
                f"{self.max_new_tokens}"
            )
        check_finite(self, "sigma", "lam")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha!r}; it must lie in [0, 1]")


def draw(U: Tensor, n: int, sigma: float, generators: Sequence[torch.Generator]) -> Tensor:
    """n perturbations per prompt from Q_U = N(U, sigma^2 I).

    Args:
        U: (P, tau, d).
        generators: P generators on U's device; each prompt draws from its own only.

    Returns:
        (P, n, tau, d).
    """
    V = U.new_empty(len(U), n, *U.shape[1:])
    for noise, g in zip(V, generators, strict=True):
        torch.randn(noise.shape, generator=g, out=noise)
    return V.mul_(sigma).add_(U.unsqueeze(1))


def step(U: Tensor, V: Tensor, rewards: Tensor, config: AISPConfig) -> Learned:
    """One iteration of the control: from rewards to the next mean.

    Args:
        U: (P, tau, d), the mean that V was drawn around.
        V: (P, n, tau, d).
        rewards: (P, n) float64.

    Returns:
        The next mean per prompt (U itself where `adapt` is off), the log-weights (P, n), their
        effective sample size (P,), and the KL of Q_U to the base law (P,), in nats.
    """
    log_w = control.log_weights(
        rewards.to(U.device), U, V, lam=config.lam, sigma=config.sigma, alpha=config.alpha
    )
    mean = control.update_mean(log_w, V) if config.adapt else U
    ess = control.effective_sample_size(log_w)
    return Learned(list(mean), log_w, ess, control.gaussian_kl(U, config.sigma))


def aisp(
    prompts: Sequence[Any],
    policy: Policy,
    reward: Reward,
    config: AISPConfig,
    *,
    seed: int = 0,
    progress: bool = True,
) -> list[Alignment]:
    """Align a batch of prompts with AISP; `aisp.align` is the front door."""

    def draw_responses(prefixes, states, generators):
        U = torch.stack(states)
        V = draw(U, config.n, config.sigma, generators)
        out = rollout(
            policy,
            prefixes,
            config.n,
            config.max_new_tokens,
            V=V,
            decoding=config.decoding,
            generators=generators,
        )
        return out, V

    return search(
        prompts,
        policy,
        reward,
        config,
        method="aisp",
        seed=seed,
        draw=draw_responses,
        learn=lambda states, V, rewards: step(torch.stack(states), V, rewards, config),
        initial=lambda prompt: torch.zeros(config.tau, policy.d, device=policy.head_device),
        progress=progress,
    )
