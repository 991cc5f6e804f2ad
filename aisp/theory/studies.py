"""The small experiments of notebook 01 on toys: each takes seconds, and ends in a table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aisp import control
from aisp.sampler import AISPConfig, perturbations
from aisp.theory import toys

if TYPE_CHECKING:
    import pandas as pd


class Hills(NamedTuple):
    """Gaussians N(u, sigma^2) under a reward with two hills of nearly the same height."""

    u: Tensor  # (N,) their means
    value: Tensor  # (N,) -J(u), by quadrature
    kl: Tensor  # (N,) KL(Q_u || Q*), by summing densities on a grid
    bound: float  # lam F, by quadrature
    target: float  # E_Q*[v], on the grid

    @property
    def best(self) -> float:
        """The mean with the largest -J."""
        return float(self.u[self.value.argmax()])


def two_hills(sigma: float, lam: float) -> Hills:
    """The two sides of the free-energy bound, computed independently of each other."""

    def reward(v: Tensor) -> Tensor:
        return 1.05 * torch.exp(-2 * (v - 1.5) ** 2) + torch.exp(-2 * (v + 1.5) ** 2)

    u = torch.linspace(-1.8, 1.8, 145, dtype=torch.float64)
    mean = torch.cat([toys.normal_expectation(reward, x[None], sigma, 200) for x in u])
    value = mean - lam * control.gaussian_kl(u[:, None, None], sigma)
    zero = torch.zeros(1, dtype=torch.float64)
    tilt = toys.normal_expectation(lambda v: torch.exp(reward(v) / lam), zero, sigma, 200)

    v = torch.linspace(-6, 6, 6001, dtype=torch.float64)
    width = v[1] - v[0]
    log_q = torch.distributions.Normal(u[:, None], sigma).log_prob(v)
    log_star = torch.distributions.Normal(0.0, sigma).log_prob(v) + reward(v) / lam
    log_star = log_star - torch.logsumexp(log_star, 0) - width.log()
    kl = (log_q.exp() * (log_q - log_star)).sum(1) * width
    target = float((log_star.exp() * v).sum() * width)
    return Hills(u, value, kl, lam * tilt.log().item(), target)


def snis_bias(
    toy: toys.GaussianToy, sizes: Sequence[int], draws: int, generator: torch.Generator
) -> "pd.DataFrame":
    """The bias of the self-normalized mean of a linear reward along its slope, from U = 0.

    Args:
        draws: in all, for each size.

    Returns:
        One row per size: n, bias, se, and leading, the term of order 1/n.
    """
    import pandas as pd

    slope = float(toy.a[0, 0]) / toy.lam
    growth = np.exp(toy.sigma**2 * slope**2)
    rows = []
    for n in sizes:
        V = toy.sigma * torch.randn(
            draws // n, n, *toy.shape, generator=generator, dtype=torch.float64
        )
        U = torch.zeros(draws // n, *toy.shape, dtype=torch.float64)
        log_w = control.log_weights(toy.reward(V), U, V, lam=toy.lam, sigma=toy.sigma)
        off = (control.update_mean(log_w, V) - toy.tilted_mean())[:, 0, 0]
        leading = -(toy.sigma**2) * slope * growth / n
        rows.append((n, off.mean().item(), off.std().item() / len(off) ** 0.5, leading))
    return pd.DataFrame(rows, columns=["n", "bias", "se", "leading"])


def alpha_trade(
    lm: toys.ToyLM,
    alphas: Sequence[float],
    scales: Sequence[float],
    n: int,
    generator: torch.Generator,
    *,
    repeats: int = 400,
) -> "pd.DataFrame":
    """Error of the estimate of U* and ESS, for weights with alpha and proposals at multiples of U*.

    Returns:
        One row per (scale, alpha): bias and ess, the limits of many samples (ess as a share of n),
        and rmse, the root mean squared error with n samples.
    """
    import pandas as pd

    U_star, rows = lm.tilted_mean(), []
    for scale in scales:
        for alpha in alphas:
            U = (scale * U_star).expand(repeats, *lm.shape)
            V = perturbations(U, n, lm.sigma, [generator] * repeats)
            log_w = control.log_weights(lm.reward(V), U, V, lam=lm.lam, sigma=lm.sigma, alpha=alpha)
            error = control.update_mean(log_w, V) - U_star
            rows.append(
                {
                    "scale": scale,
                    "alpha": alpha,
                    "bias": float((toys.alpha_step(lm, scale * U_star, alpha) - U_star).norm()),
                    "ess": toys.ess_fraction(lm, scale * U_star, alpha),
                    "rmse": float(error.square().sum((-2, -1)).mean().sqrt()),
                }
            )
    return pd.DataFrame(rows)


def expected_reward(lm: toys.ToyLM, U: Tensor) -> float:
    """E_{Q_U}[r], by enumeration."""
    return float(lm.law(U).p @ lm.rewards)


def exact_means(toy: toys.Toy, alpha: float, steps: int) -> list[Tensor]:
    """The means of AISP with infinitely many samples, from 0, after 0 to that many steps."""
    means = [torch.zeros(toy.shape, dtype=torch.float64)]
    for _ in range(steps):
        means.append(toys.alpha_step(toy, means[-1], alpha))
    return means


def iterations(
    lm: toys.ToyLM,
    sampled: Mapping[float, dict[str, Tensor]],
    exact: Mapping[float, list[Tensor]],
    n: int,
) -> "pd.DataFrame":
    """AISP by iteration, means over runs with n samples beside the exact means.

    Args:
        sampled: alpha -> from `toys.run_sampler`.
        exact: alpha -> from `exact_means`.

    Returns:
        One row per (alpha, samples, iteration), samples being n or infinity: kl (KL(Q* || Q_U);
        where sampled, of the first 20 runs), distance (|U - U*|), ess (a share of n) and reward,
        the last two NaN after the last iteration.
    """
    import pandas as pd

    U_star = lm.tilted_mean()
    rows: list[tuple[float, ...]] = []
    for alpha, path in sampled.items():
        U, last = path["U"], path["ess"].shape[1]
        for k in range(last + 1):
            kl = float(np.mean([float(lm.kl_from_target(u)) for u in U[:20, k]]))
            distance = (U[:, k] - U_star).flatten(1).norm(dim=1).mean().item()
            drawn = k < last
            ess = path["ess"][:, k].mean().item() / n if drawn else np.nan
            reward = path["reward_mean"][:, k].mean().item() if drawn else np.nan
            rows.append((alpha, n, k, kl, distance, ess, reward))
        for k, u in enumerate(exact[alpha]):
            kl, distance = float(lm.kl_from_target(u)), (u - U_star).norm().item()
            ess, reward = toys.ess_fraction(lm, u, alpha), expected_reward(lm, u)
            rows.append((alpha, np.inf, k, kl, distance, ess, reward))
    columns = ["alpha", "samples", "iteration", "kl", "distance", "ess", "reward"]
    return pd.DataFrame(rows, columns=columns)


def splits(
    lm: toys.ToyLM,
    alphas: Sequence[float],
    pairs: Sequence[tuple[int, int]],
    seed: int,
    *,
    runs: int = 50,
    **config: Any,
) -> "pd.DataFrame":
    """A budget of draws split between samples and iterations, with the sampler itself.

    Args:
        pairs: (n, kappa).
        **config: the rest of an AISPConfig.

    Returns:
        One row per (alpha, n, kappa), of the last means: error (|U - U*|), reward (E_{Q_U}[r]) and
        its standard error se.
    """
    import pandas as pd

    U_star, rows = lm.tilted_mean(), []
    for alpha in alphas:
        for n, kappa in pairs:
            own = AISPConfig(n=n, kappa=kappa, alpha=alpha, **config)
            U = toys.run_sampler(lm, own, runs, seed)["U"][:, -1]
            off = (U - U_star).flatten(1).norm(dim=1)
            gain = torch.tensor([expected_reward(lm, u) for u in U])
            se = gain.std().item() / runs**0.5
            rows.append((alpha, n, kappa, off.mean().item(), gain.mean().item(), se))
    return pd.DataFrame(rows, columns=["alpha", "n", "kappa", "error", "reward", "se"])


def smallest_margin(lm: toys.ToyLM) -> float:
    """The smallest distance of a pre-logit on the greedy path from where another token would win."""
    path: list[int] = []
    margins = []
    for t, table in enumerate(lm.z):
        logits = lm.W @ table[sum(x * len(lm.W) ** (t - 1 - i) for i, x in enumerate(path))]
        top = int(logits.argmax())
        away = (lm.W[top] - lm.W).norm(dim=1).clamp_min(1e-9)
        others = torch.arange(len(logits)) != top
        margins.append(float(((logits[top] - logits) / away)[others].min()))
        path.append(top)
    return min(margins)


def texts_and_means(lm: toys.ToyLM, means: Sequence[Tensor]) -> "pd.DataFrame":
    """KL from the base law, over perturbations and over texts: columns perturbations, texts (nats)."""
    import pandas as pd

    base = lm.law().p
    rows = [
        (float(control.gaussian_kl(U, lm.sigma)), float(toys.kl(lm.law(U).p, base))) for U in means
    ]
    return pd.DataFrame(rows, columns=["perturbations", "texts"])
