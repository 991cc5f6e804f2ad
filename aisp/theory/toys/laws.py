"""Laws on finitely many points, and expectations under a Gaussian by quadrature."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def kl(q: Tensor, p: Tensor) -> Tensor:
    """KL(q || p) in nats by summation over the last dimension, with 0 log 0 = 0.

    Args:
        q, p: (..., m) probabilities; p > 0 wherever q > 0, else the result is inf.
    """
    return (torch.xlogy(q, q) - torch.xlogy(q, p)).sum(-1)


def tilt(p: Tensor, r: Tensor, lam: float) -> Tensor:
    """The law proportional to p exp(r / lam), (..., m)."""
    weight = p * torch.exp((r - r.max(-1, keepdim=True).values) / lam)
    return weight / weight.sum(-1, keepdim=True)


def objective(q: Tensor, p: Tensor, r: Tensor, lam: float) -> Tensor:
    """E_q[r] - lam KL(q || p), (...,): -J of the control problem, for any law q."""
    return (q * r).sum(-1) - lam * kl(q, p)


def normal_expectation(
    f: Callable[[Tensor], Tensor], mean: Tensor, sigma: float, points: int = 64
) -> Tensor:
    """E[f(v)] for v ~ N(mean, sigma^2 I) by tensor-product Gauss-Hermite quadrature.

    Args:
        f: from (N, k) to (N, ...).
        mean: (k,), with k at most 3: the grid has points^k nodes.
        points: nodes per dimension; exact for polynomials of degree 2 * points - 1.

    Returns:
        (...,) float64.
    """
    if len(mean) > 3:
        raise ValueError(f"mean has {len(mean)} dimensions; a product grid is built for at most 3")
    x, w = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(points))
    k = len(mean)
    nodes = torch.stack(torch.meshgrid(*[x] * k, indexing="ij"), -1).reshape(-1, k)
    weights = torch.stack(torch.meshgrid(*[w] * k, indexing="ij"), -1).prod(-1).reshape(-1)
    return torch.tensordot(weights / weights.sum(), f(mean + sigma * nodes), 1)
