"""The perturbations of one iteration, V ~ N(U, sigma^2 I): drawn here, or told to another process.

A perturbation is known by its mean and by the state of the generators that draw it. So an engine in
another process draws the same numbers again, and n x tau x d of them never travel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Perturbation:
    """n perturbations per prompt, drawn when they are first read.

    Attributes:
        U: (P, tau, d), the mean.
        n: how many per prompt.
        sigma: standard deviation.
        generators: P generators on U's device, which nothing else draws from before `tensor` is read.
        antithetic: in pairs, see `perturbations`.
        states: P states of these generators, before they draw.
    """

    U: Tensor
    n: int
    sigma: float
    generators: Sequence[torch.Generator]
    antithetic: bool = False
    states: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "states", tuple(g.get_state() for g in self.generators))

    @property
    def shape(self) -> torch.Size:
        """That of `tensor`, (P, n, tau, d)."""
        return torch.Size((len(self.U), self.n, *self.U.shape[1:]))

    @property
    def ndim(self) -> int:
        return 4

    @cached_property
    def tensor(self) -> Tensor:
        """V, (P, n, tau, d)."""
        with torch.inference_mode(False):  # also where an engine is the first to read it
            how = {"antithetic": self.antithetic}
            return perturbations(self.U, self.n, self.sigma, self.generators, **how)


def perturbations(
    U: Tensor,
    n: int,
    sigma: float,
    generators: Sequence[torch.Generator],
    *,
    antithetic: bool = False,
) -> Tensor:
    """n perturbations per prompt from Q_U = N(U, sigma^2 I).

    Args:
        U: (P, tau, d).
        generators: P generators on U's device; each prompt draws from its own only.
        antithetic: n/2 draws and then their reflections at U, in the same order; n is even.

    Returns:
        (P, n, tau, d).
    """
    V = U.new_empty(len(U), n, *U.shape[1:])
    for noise, g in zip(V, generators, strict=True):
        drawn = noise[: n // 2] if antithetic else noise
        torch.randn(drawn.shape, generator=g, out=drawn)
        if antithetic:
            noise[n // 2 :] = -drawn
    return V.mul_(sigma).add_(U.unsqueeze(1))


def uniforms(
    generators: Sequence[torch.Generator], n: int, steps: int, device: torch.device
) -> Tensor:
    """Random numbers in [0, 1) for n responses per generator, drawn at once, (P * n, steps).

    Each prompt draws only from its own generator, so that a response does not depend on what else
    is in the batch.
    """
    drawn = [torch.rand(n, steps, generator=g, device=g.device) for g in generators]
    return torch.cat(drawn).to(device)
