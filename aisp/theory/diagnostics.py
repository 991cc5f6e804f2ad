"""Measurements on pre-logits: are they Gaussian, and which softmax does Gaussian noise resemble?

The theory needs Gaussian *perturbations*, which we choose. This module measures two other things:
whether pre-logits are Gaussian, the assumption that motivates a Gaussian base law; and how greedy
decoding of noisy pre-logits behaves as a sampler.

Shapes: N pre-logits of width d, vocabulary size |V|, P positions, K draws per position.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout

if TYPE_CHECKING:
    from aisp.policy import Policy


# -- estimates ------------------------------------------------------------------------------------


def snis_standard_error(log_w: Tensor, V: Tensor) -> Tensor:
    """Standard error of the self-normalized estimate sum_i w_i V_i, entry by entry.

    The delta method: sqrt(sum_i w_i^2 (V_i - mean)^2); see Owen, Monte Carlo theory, methods and
    examples, chapter 9. Trust it only where the effective sample size is large.

    Args:
        log_w: (n,) normalized log-weights.
        V: (n, ...).
    """
    w = log_w.exp().reshape(-1, *[1] * (V.ndim - 1))
    return (w * (V - (w * V).sum(0))).square().sum(0).sqrt()


# -- pre-logits of real responses -----------------------------------------------------------------


class Prelogits(NamedTuple):
    """Pre-logits of N responses over T steps."""

    z: Tensor  # (N, T, d) float32
    token: Tensor  # (N, T) the token emitted from z
    valid: Tensor  # (N, T) False after a response's end


def collect_prelogits(
    policy: "Policy", prompts: Sequence[Any], n: int, steps: int, *, seed: int, batch: int = 16
) -> Prelogits:
    """Pre-logits of n responses per prompt, sampled at temperature 1.

    Args:
        batch: prompts decoded together; peak memory grows with n * batch.
    """
    parts = []
    for start in range(0, len(prompts), batch):
        prefixes = [policy.prefix(p, steps) for p in prompts[start : start + batch]]
        generators = [
            torch.Generator(policy.head_device).manual_seed(seed * 1_000_003 + start + i)
            for i in range(len(prefixes))
        ]
        out = rollout(
            policy,
            prefixes,
            n,
            steps,
            decoding=Decoding(temperature=1.0),
            generators=generators,
            keep_prelogits=True,
        )
        assert out.prelogits is not None  # asked for
        valid = torch.arange(steps, device=out.lengths.device) < out.lengths[..., None]
        parts.append([x.flatten(0, 1).cpu() for x in (out.prelogits.float(), out.tokens, valid)])
    return Prelogits(*(torch.cat(part) for part in zip(*parts, strict=True)))


# -- how Gaussian is a cloud of points? -----------------------------------------------------------


def participation_ratio(Z: Tensor) -> float:
    """(tr C)^2 / tr C^2 of the sample covariance C of Z (N, d): the effective dimension.

    d where all directions carry the same variance, 1 where one carries it all; at most N - 1.
    """
    variance = torch.linalg.svdvals(Z.double() - Z.double().mean(0)).square()
    return float(variance.sum() ** 2 / variance.square().sum())


def whitened(Z: Tensor, k: int) -> Tensor:
    """The k leading principal components of Z (N, d), each scaled to variance 1 (divisor N).

    The squared length of a row is its squared Mahalanobis distance within those k directions.

    Returns:
        (N, k) float64.

    Raises:
        ValueError: N <= k.
    """
    if len(Z) <= k:
        raise ValueError(f"{len(Z)} points span fewer than k = {k} directions; lower k")
    left, _, _ = torch.linalg.svd(Z.double() - Z.double().mean(0), full_matrices=False)
    return left[:, :k] * math.sqrt(len(Z))


def gaussian_twin(Z: Tensor, generator: torch.Generator) -> Tensor:
    """As many draws from the Gaussian with the mean and covariance of Z, (N, d).

    A statistic of Z is compared with its values on such twins, which go through the same choice of
    components. With N below d, textbook quantiles do not account for that choice.
    """
    centered = Z.double() - Z.double().mean(0)
    mix = torch.randn(len(Z), len(Z), generator=generator, dtype=torch.float64)
    return mix @ centered / math.sqrt(len(Z) - 1) + Z.double().mean(0)


def mardia_kurtosis(X: Tensor) -> float:
    """Mean fourth power of the Mahalanobis distance over its Gaussian value k (k + 2).

    Mardia (1970), Biometrika 57: about 1 for a Gaussian, above 1 for heavier tails.

    Args:
        X: (N, k), whitened.
    """
    k = X.shape[1]
    return float(X.square().sum(1).square().mean() / (k * (k + 2)))


def henze_zirkler(X: Tensor) -> float:
    """The statistic of Henze and Zirkler (1990), Communications in Statistics 19(10).

    A weighted squared distance between the characteristic function of the points and that of a
    Gaussian; consistent against every alternative. Compare it with `gaussian_twin`s.

    Args:
        X: (N, k), whitened.
    """
    N, k = X.shape
    b = ((2 * k + 1) * N / 4) ** (2 / (k + 4)) / 2  # beta squared
    own = X.square().sum(1)
    between = torch.cdist(X, X).square()
    return float(
        torch.exp(-b / 2 * between).sum() / N
        - 2 * (1 + b) ** (-k / 2) * torch.exp(-b / (2 * (1 + b)) * own).sum()
        + N * (1 + 2 * b) ** (-k / 2)
    )


def normality(Z: Tensor, k: int, *, twins: int, seed: int) -> dict[str, float]:
    """How Z (N, d) compares with its Gaussian twins on its k leading components.

    Returns:
        n; coordinates, the share of the d coordinates that D'Agostino and Pearson's test rejects at
        5%, so 0.05 where all are Gaussian; hz, the Henze-Zirkler statistic over its mean on the
        twins; kurtosis, Mardia's over its mean on the twins; p, the Monte Carlo p-value of hz, at
        least 1 / (twins + 1); dimension, the participation ratio.
    """
    from scipy.stats import normaltest

    generator = torch.Generator().manual_seed(seed)
    X = whitened(Z, k)
    null = [whitened(gaussian_twin(Z, generator), k) for _ in range(twins)]
    hz = torch.tensor([henze_zirkler(T) for T in null])
    kurtosis = sum(mardia_kurtosis(T) for T in null) / twins
    observed = henze_zirkler(X)
    return {
        "n": len(Z),
        "coordinates": float((normaltest(Z.double().numpy()).pvalue < 0.05).mean()),
        "hz": observed / float(hz.mean()),
        "kurtosis": mardia_kurtosis(X) / kurtosis,
        "p": (1 + int((hz >= observed).sum())) / (twins + 1),
        "dimension": participation_ratio(Z),
    }


# -- Gaussian noise as a sampler ------------------------------------------------------------------


def perturbed_argmax(logits: Tensor, noise: Tensor, scale: float) -> Tensor:
    """arg max(logits + scale * noise), one token per position and draw.

    With standard Gumbel noise that is a draw from softmax(logits / scale); with noise = V @ W.T,
    V ~ N(0, I), it is greedy decoding of W (z + sigma v), sigma = scale.

    Args:
        logits: (P, |V|).
        noise: (K, |V|), the same draws for every position.

    Returns:
        (P, K) token ids.
    """
    return torch.stack([torch.add(row, noise, alpha=scale).argmax(1) for row in logits])


def softmax_tokens(logits: Tensor, temperature: float, K: int, seed: int) -> Tensor:
    """K draws per position from softmax(logits / temperature), (P, K)."""
    generator = torch.Generator(logits.device).manual_seed(seed)
    probs = torch.softmax(logits / temperature, -1)
    return torch.multinomial(probs, K, replacement=True, generator=generator)


def empirical_entropy(tokens: Tensor) -> Tensor:
    """Entropy of each row's empirical law, (P, K) -> (P,), in nats.

    It is biased low where the support is large against K, so compare it only between laws that
    were estimated from the same K.
    """
    counts = [torch.unique(row, return_counts=True)[1].double() for row in tokens]
    return torch.stack([torch.special.entr(c / c.sum()).sum() for c in counts])


def total_variation(tokens: Tensor, probs: Tensor) -> Tensor:
    """Total variation between each row's empirical law and a law, (P, K), (P, |V|) -> (P,)."""
    share = torch.ones_like(tokens, dtype=probs.dtype) / tokens.shape[1]
    empirical = torch.zeros_like(probs).scatter_add_(1, tokens, share)
    return (empirical - probs).abs().sum(1) / 2


def matching_temperature(logits: Tensor, entropy: float, K: int, seed: int) -> float:
    """The temperature whose K softmax draws have this empirical entropy, averaged over positions.

    Bisection between 0.01 and 10 with the same random numbers at every temperature.

    Args:
        logits: (P, |V|).
        entropy: in nats, estimated from K draws per position too.

    Raises:
        ValueError: no temperature in that range reaches the entropy.
    """

    def reached(temperature: float) -> float:
        return float(empirical_entropy(softmax_tokens(logits, temperature, K, seed)).mean())

    low, high = 0.01, 10.0
    if not reached(low) <= entropy <= reached(high):
        raise ValueError(f"entropy is {entropy:.3f} nats; out of reach of temperatures up to 10")
    for _ in range(16):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reached(middle) < entropy else (low, middle)
    return math.sqrt(low * high)
