"""Which candidate of a pool to return: rules other than "the highest reward", in closed form.

A rule gives probabilities over the N candidates of a pool, and so the expected reward and the
expected score of a judge (`expected`) without a draw of its own. Nothing is decoded. On a set of
candidates:

- best-of-n takes the highest reward;
- soft best-of-n draws index i with probability softmax(r / lam)_i (arXiv:2506.19248);
- pessimism draws it in proportion to max(0, (r_i - c) / beta), c such that these have mean 1: a
  reward far above the others gets no more than its share (arXiv:2503.21878);
- the ensemble's rule is any of them on `pessimistic` rewards (Coste et al., arXiv:2310.02743).

A pool of N exchangeable candidates also tells what a rule returns at any budget n <= N, as an average
over its subsets of size n, without bias: `best_of_n` and `best_of_poisson` exactly, by order
statistics; every other rule by `over_subsets`.

All tensors are (..., N), computed in float64; rewards are finite.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from aisp.checks import real, whole

# Best-of-Poisson needs n up to where its probability is as small as this.
NEGLIGIBLE = 1e-6


def expected(probabilities: Tensor, values: Tensor) -> Tensor:
    """The expected value of what a rule returns, (...,), such as its reward or its judge's score."""
    return (probabilities * values.double()).sum(-1)


def picked(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One index per pool, (...,), drawn by a rule's probabilities."""
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    found = torch.multinomial(rows, 1, generator=generator)
    return found.view(probabilities.shape[:-1])


def best_of_n(rewards: Tensor, n: int) -> Tensor:
    """Best-of-n, averaged over all subsets of size n of the pool; equal rewards share.

    The highest of n candidates drawn without replacement has rank at most j (from the lowest) with
    probability C(j, n) / C(N, n).

    Args:
        n: from 1 to N; N takes the highest of all.

    Returns:
        (..., N) probabilities.
    """
    r = _checked(rewards)
    return _by_rank(r, _rank_at_most(r.shape[-1], whole("n", n, 1, r.shape[-1], " (the pool)")))


def best_of_poisson(rewards: Tensor, mean: float) -> Tensor:
    """Best-of-Poisson (arXiv:2506.19248): best-of-n where n - 1 is Poisson, averaged over subsets.

    Its law is close to that of the best policy at its KL, with exponential weights.

    Args:
        mean: of n, >= 1. So small that n exceeds the pool with negligible probability.

    Returns:
        (..., N) probabilities.

    Raises:
        ValueError: a mean that the pool is too small for.
    """
    r, mean = _checked(rewards), real("mean", mean, least=1)
    N = r.shape[-1]
    extra = torch.arange(N, dtype=torch.float64)  # n - 1
    rate = torch.tensor(mean - 1, dtype=torch.float64)
    weights = (torch.special.xlogy(extra, rate) - rate - torch.lgamma(extra + 1)).exp()
    if 1 - weights.sum() > NEGLIGIBLE:
        raise ValueError(
            f"mean is {mean:g}; n would exceed the pool of {N} with probability "
            f"{1 - weights.sum():.2g}. Lower mean, or take a larger pool"
        )
    table = sum(w * _rank_at_most(N, n + 1) for n, w in enumerate(weights / weights.sum()))
    return _by_rank(r, torch.as_tensor(table))


def soft(rewards: Tensor, lam: float) -> Tensor:
    """Soft best-of-n over all candidates given: softmax(r / lam).

    Args:
        lam: > 0; towards 0 it is best-of-n, towards infinity a plain draw.

    Returns:
        (..., N) probabilities.
    """
    return torch.softmax(_checked(rewards) / real("lam", lam, above=0), -1)


def pessimism(rewards: Tensor, beta: float) -> Tensor:
    """Inference-time pessimism over all candidates given: max(0, (r_i - c) / beta) / N.

    With c such that these probabilities sum to 1. Without regularization by beta the highest reward
    takes all; with more candidates the law tends to the optimum of E[r] - beta chi^2 / 2 and not to
    the highest reward (arXiv:2503.21878, whose rejection sampling draws from it). It is the
    Euclidean projection of r / (N beta) onto probabilities, found by sorting.

    Args:
        beta: > 0, in units of reward; towards 0 it is best-of-n, towards infinity a plain draw.

    Returns:
        (..., N) probabilities.
    """
    r = _checked(rewards)
    total = r.shape[-1] * real("beta", beta, above=0)
    highest = r.sort(-1, descending=True).values
    # c if the k highest were those above it: the largest k that is consistent.
    c = (highest.cumsum(-1) - total) / torch.arange(1, r.shape[-1] + 1)
    k = (highest > c).sum(-1, keepdim=True)
    return ((r - c.gather(-1, k - 1)) / total).clamp(min=0)


def pessimistic(members: Tensor, k: float) -> Tensor:
    """The mean of an ensemble's rewards minus k times their standard deviation.

    Pairs of responses to one prompt say nothing of a reward's mean over them, in which refits differ
    and which decides no choice: so each member's mean over the candidates is set to that of all.

    Args:
        members: (..., N, K) rewards of each candidate by each member.
        k: >= 0.

    Returns:
        (..., N).
    """
    members = _checked(members)
    own = members.mean(-2, keepdim=True)
    centered = members - own + own.mean(-1, keepdim=True)
    return centered.mean(-1) - real("k", k, least=0) * centered.std(-1)


def over_subsets(
    rule: Callable[[Tensor], Tensor],
    rewards: Tensor,
    n: int,
    *,
    permutations: int | None = None,
    seed: int = 0,
) -> Tensor:
    """A rule on n candidates, averaged over random subsets of the pool.

    Each permutation of the pool is cut into blocks of n: every candidate has its turn, which leaves
    little noise, and none at n = 1 and n = N. For N = 512 and rewards of spread 1 the expected reward
    of one pool is off by 0.02 at most (standard deviation), that of 32 pools by 0.004.

    Args:
        rule: from rewards (..., n) to probabilities (..., n), such as `soft` with its lam.
        n: from 1 to N.
        permutations: None is n, at least 16 and at most 256: small blocks are many.

    Returns:
        (..., N) probabilities.
    """
    r = _checked(rewards)
    N = r.shape[-1]
    n = whole("n", n, 1, N, " (the pool)")
    count = min(max(n, 16), 256) if permutations is None else permutations
    count = whole("permutations", count, least=1)
    generator = torch.Generator().manual_seed(whole("seed", seed, least=0))
    order = torch.rand(*r.shape[:-1], count, N, generator=generator).argsort(-1)
    order = order[..., : N // n * n].flatten(-2)
    blocks = r.gather(-1, order).unflatten(-1, (-1, n))
    shares = rule(blocks) / blocks.shape[-2]
    return torch.zeros_like(r).scatter_add_(-1, order, shares.flatten(-2))


def _rank_at_most(N: int, n: int) -> Tensor:
    """P(the highest of n drawn from N has rank <= j) for j = 0 ... N, (N + 1,)."""
    j = torch.arange(N + 1, dtype=torch.float64)
    log_ways = torch.lgamma(j + 1) - torch.lgamma((j - n).clamp(min=0) + 1)  # C(j, n) n!
    return torch.where(j < n, 0.0, (log_ways - log_ways[-1]).exp())


def _by_rank(r: Tensor, at_most: Tensor) -> Tensor:
    """Probabilities from those of ranks: each candidate has an equal share of those it ties with."""
    ordered = r.sort(-1).values
    below, upto = (torch.searchsorted(ordered, r, right=x) for x in (False, True))
    return (at_most[upto] - at_most[below]) / (upto - below)


def _checked(rewards: Tensor) -> Tensor:
    r = rewards.double()
    if not r.ndim or not r.shape[-1] or not bool(r.isfinite().all()):
        raise ValueError(
            f"rewards of shape {tuple(rewards.shape)} are empty or not all finite; give the finite "
            "ones of a pool of at least one candidate"
        )
    return r.contiguous()


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one of k samples is correct, without bias from n samples (arXiv:2107.03374, eq. 1).

    1 - C(n - correct, k) / C(n, k): what `best_of_n` is for rewards that are 0 or 1.

    Raises:
        ValueError: not 0 <= correct <= n, or not 1 <= k <= n.
    """
    n, correct, k = (
        whole("n", n, least=1),
        whole("correct", correct, least=0),
        whole("k", k, least=1),
    )
    if correct > n or k > n:
        raise ValueError(f"n is {n}, correct {correct} and k {k}; both must be at most n")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)
