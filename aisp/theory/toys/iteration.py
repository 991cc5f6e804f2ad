"""What AISP does on either toy: the exact iteration, its objective and ESS, and the sampler itself."""

from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from aisp.sampler import AISPConfig, perturbations, update
from aisp.theory.toys.gaussian import GaussianToy
from aisp.theory.toys.language import ToyLM

Toy: TypeAlias = GaussianToy | ToyLM


def log_density_ratio(toy: Toy, U: Tensor, V: Tensor) -> Tensor:
    """log of exp(r / lam) p(V) / q_U(V), from the two densities themselves; (n, tau, d) -> (n,).

    Its exponential is the unnormalized importance weight: its mean under Q_U is E_P[exp(r / lam)].
    """
    p = torch.distributions.Normal(torch.zeros_like(U), toy.sigma).log_prob(V)
    q = torch.distributions.Normal(U, toy.sigma).log_prob(V)
    return toy.reward(V) / toy.lam + (p - q).sum((-2, -1))


def alpha_step(toy: Toy, U: Tensor, alpha: float) -> Tensor:
    """The next mean of AISP with infinitely many samples, (tau, d).

    With alpha, the weighted samples follow q_U(v) exp(r / lam - (1 - alpha) U . v / sigma^2). As
    q_U(v) is proportional to exp(-v^2 / (2 sigma^2) + U . v / sigma^2), that is proportional to
    exp(r / lam) N(v; alpha U, sigma^2 I): the weights aim at the tilt of a base law around alpha U.
    """
    return toy.tilted_mean(alpha * U)


def alpha_fixed_point(
    toy: Toy, alpha: float, *, steps: int = 5000, tolerance: float = 1e-8
) -> Tensor:
    """Where `alpha_step` ends when it starts from 0, (tau, d).

    Raises:
        RuntimeError: still moving after so many steps (at alpha = 1 it may never stop).
    """
    U = torch.zeros(toy.shape, dtype=torch.float64)
    for _ in range(steps):
        last, U = U, alpha_step(toy, U, alpha)
        if (U - last).abs().max() < tolerance:
            return U
    raise RuntimeError(f"alpha = {alpha}: still moving by {(U - last).abs().max():.1e} per step")


def alpha_objective(toy: Toy, U: Tensor, alpha: float) -> Tensor:
    """What every `alpha_step` increases, for 0 < alpha <= 1; a scalar in units of reward.

        (lam / alpha) log E_{N(alpha U, sigma^2 I)}[exp(r / lam)] - lam (1 - alpha) |U|^2 / (2 sigma^2)

    `alpha_step` is a step of expectation-maximization on it, so it never falls, and its stationary
    points are the fixed points of the step.
    """
    cost = toy.lam * (1 - alpha) * (U**2).sum() / (2 * toy.sigma**2)
    return toy.lam / alpha * toy.log_partition(alpha * U) - cost


def ess_fraction(toy: Toy, U: Tensor, alpha: float) -> float:
    """E[w]^2 / E[w^2] over Q_U of the weights with alpha: the limit of ESS / n.

    A factor exp(b U . v / sigma^2) moves the mean of a Gaussian from U to (1 + b) U, so that both
    moments are integrals of exp(r / lam) over Gaussians with another mean.
    """

    def log_moment(k: int) -> Tensor:  # log E[w^k]
        shift = 1 - k * (1 - alpha)
        constant = (shift**2 - 1) * (U**2).sum() / (2 * toy.sigma**2)
        return replace(toy, lam=toy.lam / k).log_partition(shift * U) + constant

    return float(torch.exp(2 * log_moment(1) - log_moment(2)))


def run_sampler(toy: Toy, config: AISPConfig, replicates: int, seed: int) -> dict[str, Tensor]:
    """The package's own sampler on a toy, many independent runs at once.

    Args:
        toy: its reward is the black box.
        config: n, kappa, lam, sigma, alpha; lam and sigma need not be the toy's.
        replicates: R independent runs.

    Returns:
        "U" (R, kappa + 1, tau, d), the means, starting from 0; "ess" (R, kappa); "reward_mean" and
        "reward_best" (R, kappa), the latter the best so far.
    """
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + i) for i in range(replicates)]
    U = [torch.zeros(replicates, *toy.shape, dtype=torch.float64)]
    ess, mean, best = [], [], []
    for _ in range(config.kappa):
        V = perturbations(U[-1], config.n, config.sigma, generators)
        rewards = toy.reward(V)
        step = update(U[-1], V, rewards, config)
        U.append(step.U)
        ess.append(step.ess)
        mean.append(rewards.mean(1))
        best.append(rewards.amax(1))
    return {
        "U": torch.stack(U, 1),
        "ess": torch.stack(ess, 1),
        "reward_mean": torch.stack(mean, 1),
        "reward_best": torch.stack(best, 1).cummax(1).values,
    }
