"""The systems with exact answers that the tests of the theory share.

Exact claims are compared exactly: with enumeration, quadrature or closed forms from `aisp.theory.toys`,
which shares no formula with `aisp.control`. Monte Carlo claims are compared within LIMIT standard
errors at a fixed seed, after their preconditions: enough draws and enough effective samples.
sigma and lam differ from 1 throughout, so that a lost factor shows.
"""

import pytest
import torch
from hypothesis import strategies as st

from aisp.sampler import perturbations
from aisp.theory import toys

LIMIT = 5  # standard errors; a two-sided chance of 6e-7 per comparison of a correct estimate
SIGMA, LAM = 0.7, 0.6
f64 = {"dtype": torch.float64}

# What hypothesis draws rewards and lam from.
reward_values = st.floats(-5, 5)
lams = st.floats(0.05, 20)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def language_model(d: int = 2, seed: int = 0, tau: int = 3, **changes) -> toys.ToyLM:
    changes = {"sigma": SIGMA, "lam": LAM} | changes
    return toys.ToyLM.random(d=d, tau=tau, seed=seed, **changes)


def gaussian_toy(curvature: float, tau: int = 3, d: int = 2) -> toys.GaussianToy:
    g = rng(1)
    a = torch.randn(tau, d, generator=g, **f64)
    c = curvature * torch.rand(tau, d, generator=g, **f64)
    return toys.GaussianToy(0.5 * LAM / SIGMA * a / a.norm(), c, SIGMA, LAM)


def draws_around(U: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    return perturbations(U[None], n, SIGMA, [rng(seed)])[0]


TOYS = {
    "linear": gaussian_toy(0.0),
    "quadratic": gaussian_toy(LAM / SIGMA**2),
    "lm2": language_model(2),
    "lm3": language_model(3),
}
toy_of_each_kind = pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
