"""A language model small enough to enumerate, with the law of its texts under perturbations."""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aisp.theory.toys.laws import tilt


class Law(NamedTuple):
    """The law of texts under greedy decoding of W (z + v), v ~ N(U, sigma^2 I)."""

    p: Tensor  # (S,) probability of each text
    mean: Tensor  # (S, tau, d) E[V | text]


@dataclass(frozen=True, eq=False)
class ToyLM:
    """A language model small enough to enumerate: m tokens, texts of exactly tau tokens.

    The pre-logit z_t is a fixed function of the previous tokens, kept as a table. Logits are
    W (z_t + v_t) and decoding is greedy, so token j is emitted where x = z_t + v_t lies in the cone
    {x: W_j . x >= W_k . x for all k}. A cone is a set of directions, and along one direction a
    Gaussian integrates in closed form; what remains is an integral over the circle (d = 2) or the
    sphere (d = 3), cut into pieces on which one token wins, with Gauss-Legendre nodes in each.

    Attributes:
        W: (m, d) output embeddings.
        z: tau tables; z[t] is (m^t, d), the row being the previous tokens read as base-m digits.
        rewards: (S,) reward of each text, the row being its tokens read as base-m digits.
        sigma, lam: > 0.
    """

    W: Tensor
    z: tuple[Tensor, ...]
    rewards: Tensor
    sigma: float
    lam: float

    def __post_init__(self):
        m, d = self.W.shape
        if d not in (2, 3):
            raise ValueError(f"d is {d}; the regions are integrated for d = 2 and d = 3 only")
        shapes = [tuple(table.shape) for table in self.z]
        if shapes != [(m**t, d) for t in range(len(shapes))]:
            raise ValueError(f"tables of z have shapes {shapes}; z[t] must be (m^t, d)")
        if self.rewards.shape != (m ** len(shapes),):
            raise ValueError(f"rewards has {len(self.rewards)} entries, not m^tau")

    @classmethod
    def random(
        cls, *, m: int = 4, d: int = 2, tau: int = 3, sigma: float = 1.0, lam: float = 0.5, seed=0
    ) -> "ToyLM":
        """Pre-logits from N(0, 1), output embeddings of norm 1, rewards of variance near 1.

        A reward is a sum of scores of the tokens, so that similar texts have similar rewards, plus
        a part that belongs to the text as a whole.
        """
        g = torch.Generator().manual_seed(seed)
        W = torch.randn(m, d, generator=g, dtype=torch.float64)
        z = tuple(torch.randn(m**t, d, generator=g, dtype=torch.float64) for t in range(tau))
        rewards = torch.randn(m**tau, generator=g, dtype=torch.float64) / 2
        for t in range(tau):
            score = torch.randn(m, generator=g, dtype=torch.float64) * math.sqrt(0.75 / tau)
            rewards += score[torch.arange(m**tau) // m ** (tau - 1 - t) % m]
        return cls(W / W.norm(dim=1, keepdim=True), z, rewards, sigma, lam)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.z), self.W.shape[1]

    def decode(self, V: Tensor) -> Tensor:
        """Greedy decoding of W (z_t + v_t): (..., tau, d) -> (...,) index of the text."""
        text = torch.zeros(V.shape[:-2], dtype=torch.long)
        for t, table in enumerate(self.z):
            token = ((table[text] + V[..., t, :]) @ self.W.T).argmax(-1)
            text = text * len(self.W) + token
        return text

    def tokens(self, text: int) -> tuple[int, ...]:
        """The tau tokens of a text."""
        m, tau = len(self.W), len(self.z)
        return tuple(text // m ** (tau - 1 - t) % m for t in range(tau))

    def reward(self, V: Tensor) -> Tensor:
        """(..., tau, d) -> (...,)."""
        return self.rewards[self.decode(V)]

    def law(self, U: Tensor | float = 0.0) -> Law:
        """Probability of every text under N(U, sigma^2 I), and the mean of V given the text.

        Raises:
            ValueError: U lies so far out, in units of sigma, that the nodes miss the probability.
        """
        U = torch.as_tensor(U, dtype=torch.float64).expand(self.shape)
        m, tau = len(self.W), len(self.z)
        texts = torch.arange(m**tau)
        p, mean = torch.ones(m**tau, dtype=torch.float64), []
        for t, table in enumerate(self.z):
            prob, first = self.token_law(table + U[t])  # (m^t, m), (m^t, m, d)
            until = texts // m ** (tau - 1 - t)  # the text up to and with token t
            p = p * prob.flatten()[until]
            center = first.flatten(0, 1) / prob.flatten()[:, None]
            known = prob.flatten()[:, None] > 1e-14  # below that, prob is the error of rounding
            mean.append(torch.where(known, center, 0.0)[until] - table[until // m])
        if not abs(p.sum() - 1) < 1e-6:
            raise ValueError(
                f"the quadrature finds a total probability of {p.sum():.7f}: |U| / sigma is "
                f"{U.norm() / self.sigma:.0f}, too far out for its nodes"
            )
        return Law(p, torch.stack(mean, 1))

    def token_law(self, mu: Tensor) -> tuple[Tensor, Tensor]:
        """For x ~ N(mu, sigma^2 I): P(arg max W x = j), and E[x; arg max W x = j].

        Args:
            mu: (B, d).

        Returns:
            (B, m) and (B, m, d).
        """
        e, weight, token = self._directions  # (K, d), (K,), (K, m) one-hot
        d, sigma = mu.shape[1], self.sigma
        s = mu @ e.T  # (B, K)
        # A_q = integral over rho > 0 of rho^q N(rho; s, sigma^2), by integration by parts.
        A = [torch.special.ndtr(s / sigma)]
        A.append(s * A[0] + sigma * torch.exp(-((s / sigma) ** 2) / 2) / math.sqrt(2 * math.pi))
        for q in range(1, d):
            A.append(s * A[q] + q * sigma**2 * A[q - 1])
        rest = (mu.square().sum(1, keepdim=True) - s**2) / (2 * sigma**2)
        density = weight * torch.exp(-rest) / (2 * math.pi * sigma**2) ** ((d - 1) / 2)
        prob = ((density * A[d - 1]) @ token).clamp_min(1e-30)
        first = torch.einsum("bk,kd,kj->bjd", density * A[d], e, token)
        return prob, first

    def tilted(self, base: Tensor | float = 0.0) -> Tensor:
        """(S,) probability of each text under the law proportional to exp(r / lam) N(base, .)."""
        return tilt(self.law(base).p, self.rewards, self.lam)

    def tilted_mean(self, base: Tensor | float = 0.0) -> Tensor:
        """(tau, d) mean of the law proportional to exp(r / lam) N(base, sigma^2 I)."""
        law = self.law(base)
        return torch.tensordot(tilt(law.p, self.rewards, self.lam), law.mean, 1)

    def log_partition(self, base: Tensor | float = 0.0) -> Tensor:
        """log E[exp(r / lam)] over N(base, sigma^2 I), a scalar."""
        return torch.logsumexp(self.law(base).p.log() + self.rewards / self.lam, 0)

    def kl_from_target(self, U: Tensor) -> Tensor:
        """KL(Q* || Q_U), a scalar: E_{Q*}[log dQ*/dP + log dP/dQ_U], text by text."""
        law = self.law()
        q = tilt(law.p, self.rewards, self.lam)
        cross = (law.mean * U).sum((1, 2)) - (U**2).sum() / 2
        return (q * (self.rewards / self.lam - cross / self.sigma**2)).sum() - self.log_partition()

    def best_control(self, steps: int = 2000, rate: float = 0.2) -> Tensor:
        """The mean that minimizes J(U) = -E_{Q_U}[r] + lam KL(Q_U || P), by gradient descent, (tau, d).

        E_{Q_U}[r (V - U)] / sigma^2 is the gradient of E_{Q_U}[r]; descent starts from E_{Q*}[V] and
        may end in a local minimum.
        """
        U = self.tilted_mean()
        for _ in range(steps):
            law = self.law(U)
            move = torch.tensordot(law.p * self.rewards, law.mean - U, 1) / self.lam - U
            U = U + rate * move
            if move.abs().max() < 1e-8:
                break
        return U

    @cached_property
    def _directions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes on the circle or sphere, their weights, and which token wins there."""
        W = self.W.numpy()
        pairs = np.array([a - b for a, b in itertools.combinations(W, 2)])
        turn = 2 * np.pi
        uniform = np.linspace(0, turn, 25)
        if W.shape[1] == 2:  # two tokens tie in the two directions at a right angle to W_j - W_k
            tie = np.arctan2(pairs[:, 0], -pairs[:, 1])
            angle, weight = _gauss_legendre(np.r_[uniform, tie % turn, (tie + np.pi) % turn], 16)
            e = np.stack([np.cos(angle), np.sin(angle)], -1)
        else:  # meridian by meridian; what a meridian meets changes where three tokens tie
            three = [np.cross(b - a, c - a) for a, b, c in itertools.combinations(W, 3)]
            kink = np.array([np.arctan2(v[1], v[0]) for v in three])
            cuts = np.r_[uniform[::2], kink % turn, (kink + np.pi) % turn]
            nodes, weights = [], []
            for phi, w in zip(*_gauss_legendre(cuts, 12), strict=True):
                across = pairs[:, 0] * np.cos(phi) + pairs[:, 1] * np.sin(phi)
                tie = np.arctan2(pairs[:, 2], -across) % np.pi
                theta, v = _gauss_legendre(np.r_[0, tie, uniform[2:12:2], np.pi], 12)
                x = np.sin(theta)
                nodes.append(np.stack([x * np.cos(phi), x * np.sin(phi), np.cos(theta)], -1))
                weights.append(w * v * x)
            e, weight = np.concatenate(nodes), np.concatenate(weights)
        token = np.eye(len(W))[(e @ W.T).argmax(1)]
        return torch.as_tensor(e), torch.as_tensor(weight), torch.as_tensor(token)


def _gauss_legendre(cuts: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a rule with so many points between each two neighboring cuts."""
    cuts = np.unique(cuts)
    x, w = np.polynomial.legendre.leggauss(points)
    middle, half = (cuts[1:] + cuts[:-1]) / 2, (cuts[1:] - cuts[:-1]) / 2
    return (middle[:, None] + half[:, None] * x).ravel(), (half[:, None] * w).ravel()
