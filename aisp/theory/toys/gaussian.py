"""A linear or quadratic reward of V itself: everything in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GaussianToy:
    """The reward r(V) = sum a v - c v^2 / 2 over all entries of V; c = 0 is the linear reward.

    Completing the square, exp(r / lam) times the density of N(base, sigma^2 I) is Gaussian with
    variance s^2 = 1 / (1 / sigma^2 + c / lam) and mean s^2 (base / sigma^2 + a / lam), entry by
    entry.

    Attributes:
        a, c: (tau, d); c may be negative as long as 1 / sigma^2 + c / lam > 0.
        sigma, lam: > 0.

    Raises:
        ValueError: exp(r / lam) has no finite expectation.
    """

    a: Tensor
    c: Tensor
    sigma: float
    lam: float

    def __post_init__(self):
        if not (1 / self.sigma**2 + self.c / self.lam > 0).all():
            raise ValueError(
                f"c is as small as {self.c.min().item():.3g}; E[exp(r / lam)] is finite only for "
                f"c > -lam / sigma^2 = {-self.lam / self.sigma**2:.3g}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        tau, d = self.a.shape
        return tau, d

    @property
    def variance(self) -> Tensor:
        """(tau, d) variance of the tilted law; it does not depend on the base."""
        return 1 / (1 / self.sigma**2 + self.c / self.lam)

    def reward(self, V: Tensor) -> Tensor:
        """(..., tau, d) -> (...,)."""
        return (self.a * V - self.c * V**2 / 2).sum((-2, -1))

    def tilted_mean(self, base: Tensor | float = 0.0) -> Tensor:
        """(tau, d) mean of the law proportional to exp(r / lam) N(base, sigma^2 I)."""
        return self.variance * (base / self.sigma**2 + self.a / self.lam)

    def log_partition(self, base: Tensor | float = 0.0) -> Tensor:
        """log E[exp(r / lam)] over N(base, sigma^2 I), a scalar."""
        base = torch.as_tensor(base, dtype=self.a.dtype).expand(self.shape)
        log_scale = torch.log(self.variance / self.sigma**2) / 2
        squares = self.tilted_mean(base) ** 2 / self.variance - base**2 / self.sigma**2
        return (log_scale + squares / 2).sum()

    def kl_from_target(self, U: Tensor) -> Tensor:
        """KL(Q* || Q_U), a scalar: between two Gaussians, entry by entry."""
        ratio = self.variance / self.sigma**2
        gap = (self.tilted_mean() - U) ** 2 / self.sigma**2
        return ((ratio - 1 - torch.log(ratio) + gap) / 2).sum()
