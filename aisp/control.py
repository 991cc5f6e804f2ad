"""The derivation in code: what AISP computes between one batch of rewards and the next mean.

Decoding is a dynamical system whose control input v_t ~ N(u_t, sigma^2 I) is added to the
pre-logit z_t. With base law P = N(0, sigma^2 I) over V = (v_1 ... v_tau), controlled law
Q_U = N(U, sigma^2 I) and reward r(V), AISP minimizes

    J(U) = -E_{Q_U}[r(V)] + lam KL(Q_U || P).

The unrestricted optimum is Q*(V) proportional to exp(r(V) / lam) p(V), whose value is the free
energy; the Gaussian closest to it, argmin_U KL(Q* || Q_U), has mean E_{Q*}[V], and that expectation
is estimated by self-normalized importance sampling from the current Q_U (Kanai et al.,
arXiv:2510.26219, the method section; the alpha of `log_weights` is that of model predictive path
integral control, Williams et al., arXiv:1707.02342).

Every function here is a pure function of tensors. Weights are computed in float64 through
log-sum-exp: rewards divided by a small lam overflow anything less careful.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def log_weights(
    rewards: Tensor, U: Tensor, V: Tensor, *, lam: float, sigma: float, alpha: float = 0.0
) -> Tensor:
    """Normalized log importance weights of perturbations drawn from Q_U.

        log w_i = r_i / lam - (1 - alpha) / sigma^2 * sum_t u_t . v_t^i + const

    alpha = 0 is the exact density ratio Q* / Q_U (up to its constant); alpha = 1 drops the KL cost.
    The paper runs alpha close to 1. Source: arXiv:2510.26219, the importance weights of the update.

    Args:
        rewards: (..., n), any real dtype; -inf is a rejected response and gets weight 0.
        U: (..., tau, d), mean of the law that V was drawn from.
        V: (..., n, tau, d), the perturbations themselves (not V - U).
        lam: temperature of the reward and weight of the KL term, > 0.
        sigma: standard deviation of the perturbation, > 0.
        alpha: in [0, 1].

    Returns:
        (..., n) float64, logsumexp over the last dimension 0.

    Raises:
        ValueError: a parameter out of range, shapes that do not fit, a NaN or +inf reward, or a
            row whose rewards are all -inf.
        FloatingPointError: rewards / lam, or the KL cost, are too large for float64.
    """
    _check_positive(lam=lam, sigma=sigma)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must lie in [0, 1]")
    if V.shape[:-2] != rewards.shape or V.shape[:-3] + V.shape[-2:] != U.shape:
        raise ValueError(
            f"shapes do not fit: rewards {tuple(rewards.shape)}, U {tuple(U.shape)}, "
            f"V {tuple(V.shape)}; expected (..., n), (..., tau, d) and (..., n, tau, d)"
        )
    scores = _checked(rewards) / lam
    if alpha < 1:
        # Step by step: V is the largest tensor of a run, and would double in float64.
        steps = zip(V.unbind(-2), U.unbind(-2), strict=True)
        cross = sum((v.double() @ u.double().unsqueeze(-1)).squeeze(-1) for v, u in steps)
        scores = scores - (1 - alpha) / sigma**2 * cross
    log_w = torch.log_softmax(scores, dim=-1)
    if torch.isnan(log_w).any():
        raise FloatingPointError(
            f"the log-weights are not finite: rewards / lam (lam = {lam:g}) or the term of the KL "
            f"cost (sigma = {sigma:g}) overflow float64; raise lam, scale the rewards, or choose a "
            "moderate sigma"
        )
    return log_w


def update_mean(log_w: Tensor, V: Tensor) -> Tensor:
    """The importance-weighted mean of the perturbations: u_t <- sum_i w_i v_t^i.

    Args:
        log_w: (..., n) normalized log-weights, as `log_weights` returns them.
        V: (..., n, tau, d).

    Returns:
        (..., tau, d), in V's dtype; summed in float64.
    """
    w = log_w.double().exp().unsqueeze(-2)  # (..., 1, n)
    return torch.cat([w @ v.double() for v in V.unbind(-2)], -2).to(V.dtype)


def moved_mean(
    U: Tensor,
    log_w: Tensor,
    V: Tensor,
    *,
    control_variate: bool = False,
    step_size: float = 1.0,
    steered: int | None = None,
    block: int = 1,
) -> Tensor:
    """The next mean, with the noise of the update taken out where that is asked for.

        U <- U + step_size sum_i (w_i - c) (V_i - U),    c = 1/n with the control variate, else 0

    at the first `steered` steps; later steps keep their rows of U. The defaults are `update_mean`,
    as the weights sum to 1.

    Why a control variate: V_i - U = sigma e_i has mean 0, and where the reward does not depend on a
    coordinate the weights do not either, so that there the plain update is noise of variance
    sigma^2 sum_i w_i^2 = sigma^2 / ESS: over all D = tau d coordinates D / (2 ESS) nats of KL per
    iteration, whatever the reward. Their plain mean, sum_i (V_i - U) / n, is known to have
    expectation 0: subtracting it shifts no expectation, and leaves
    sigma^2 sum_i (w_i - 1/n)^2 = sigma^2 (1 / ESS - 1/n), nothing at all for uniform weights.

    Why blocks: with one u for every `block` steps, argmin_U KL(Q* || Q_U) among such U is the mean of
    E_{Q*}[v_t] over the steps of a block, as the KL is a sum of squares |E_{Q*}[v_t] - u_t|^2. The
    mean over B steps has a B-th of the noise: D / (2 B ESS) nats. U keeps all tau rows, equal within
    a block, so that `log_weights` and `gaussian_kl` are those of the family as they stand.

    Args:
        U: (..., tau, d), the mean that V was drawn around.
        log_w: (..., n) normalized log-weights, as `log_weights` returns them.
        V: (..., n, tau, d).
        step_size: > 0; 1 is the weighted mean.
        steered: from 1 to tau; None for all.
        block: steps that share one row; the last block may be shorter. 1 leaves every step its own.

    Returns:
        (..., tau, d), in V's dtype; summed in float64.
    """
    mean = update_mean(log_w, V)
    if control_variate:
        mean = U + (mean - V.mean(-3, dtype=torch.float64)).to(V.dtype)
    if step_size != 1:
        mean = U + step_size * (mean - U)
    if block > 1:
        parts = mean[..., :steered, :].split(block, -2)
        shared = [x.mean(-2, keepdim=True, dtype=torch.float64).expand_as(x) for x in parts]
        mean = torch.cat([*shared, mean[..., steered or mean.shape[-2] :, :]], -2).to(V.dtype)
    if steered is not None:
        mean = torch.cat([mean[..., :steered, :], U[..., steered:, :].to(V.dtype)], -2)
    return mean


def effective_sample_size(log_w: Tensor) -> Tensor:
    """Kish's effective sample size 1 / sum_i w_i^2 of normalized log-weights.

    Args:
        log_w: (..., n) normalized log-weights.

    Returns:
        (...,) float64 in [1, n]: 1 where one sample carries all the weight, n where all are equal.
    """
    return torch.exp(-torch.logsumexp(2 * log_w.double(), dim=-1)).clamp(1, log_w.shape[-1])


def lam_for_ess(rewards: Tensor, target: float) -> Tensor:
    """The temperature lam at which the weights softmax(r / lam) have a given effective sample size.

    With A(b) = log sum_i exp(b r_i) and b = 1 / lam, log ESS = 2 A(b) - A(2 b). Its derivative by b,
    2 (A'(b) - A'(2 b)), is at most 0 because A is convex: the ESS rises with lam, from the number
    of samples that share the highest reward to the number of those with a finite one, so that
    bisection finds the one lam. A shift of the rewards leaves it, a factor scales it.

    Args:
        rewards: (..., n); -inf is a rejected response.
        target: from 1 to n. Where no lam reaches it, the nearest end of the range is returned, 1e-6
            or 1e6 times the spread of the rewards.

    Returns:
        (...,) float64, > 0; 1 where all finite rewards are equal and every lam gives the same weights.

    Raises:
        ValueError: as `log_weights`; a target out of range.
    """
    r = _checked(rewards)
    if not 1 <= target <= r.shape[-1]:
        raise ValueError(f"target is {target}; it must lie in [1, {r.shape[-1]}], from 1 to n")
    return _lam_where(r, lambda log_w: effective_sample_size(log_w) < target)


def kl_from_uniform(log_w: Tensor) -> Tensor:
    """KL(w || uniform) = log n + sum_i w_i log w_i of normalized log-weights, in nats.

    Args:
        log_w: (..., n) normalized log-weights.

    Returns:
        (...,) float64 in [0, log n]: log n where one sample carries all the weight.
    """
    log_w = log_w.double()
    highest = math.log(log_w.shape[-1])
    return (highest + torch.xlogy(log_w.exp(), log_w.exp()).sum(-1)).clamp(0, highest)


def lam_for_kl(rewards: Tensor, bound: float) -> Tensor:
    """The temperature of the weights that gain most within a bound on their KL from uniform.

    max_w sum_i w_i r_i subject to KL(w || uniform) <= bound is solved by w = softmax(r / lam), whose
    lam minimizes the dual lam bound + lam log mean_i exp(r_i / lam) (REPS: Peters et al., 2010; MPO:
    Abdolmaleki et al., arXiv:1806.06920). The dual is convex in lam and its derivative is
    bound - KL(w || uniform), so that bisection on that sign finds the minimum. A shift of the rewards
    leaves lam, a factor scales it.

    It is `lam_for_ess` by another count of the samples in use: n exp(-KL), the exponential of the
    entropy of w, in place of 1 / sum_i w_i^2.

    Args:
        rewards: (..., n); -inf is a rejected response: one of m of n that are left makes the KL at
            least log(n / m).
        bound: in nats, from 0 to log n. Where no lam reaches it, see `lam_for_ess`.

    Returns:
        (...,) float64, > 0; 1 where all finite rewards are equal.

    Raises:
        ValueError: as `log_weights`; a bound out of range.
    """
    r = _checked(rewards)
    highest = math.log(r.shape[-1])
    if not 0 <= bound <= highest:
        raise ValueError(f"bound is {bound}; it must lie in [0, {highest:.4g}], from 0 to log n")
    return _lam_where(r, lambda log_w: kl_from_uniform(log_w) > bound)


def _lam_where(r: Tensor, too_low: Callable[[Tensor], Tensor]) -> Tensor:
    """The lam from which on the weights softmax(r / lam) are no longer `too_low`'s, by bisection.

    Args:
        r: (..., n) checked rewards.
        too_low: from log-weights to (...,) bool, monotone in lam.
    """
    r = r - r.amax(-1, keepdim=True)
    spread = -r.masked_fill(r == -torch.inf, 0).amin(-1)
    scale = torch.where(spread > 0, spread, torch.ones_like(spread))
    low, high = torch.full_like(scale, -6.0), torch.full_like(scale, 6.0)  # log10 of lam / spread
    for _ in range(60):
        middle = (low + high) / 2
        below = too_low(torch.log_softmax(r / (scale * 10**middle).unsqueeze(-1), dim=-1))
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(spread > 0, scale * 10 ** ((low + high) / 2), scale)


def gaussian_kl(U: Tensor, sigma: float) -> Tensor:
    """KL(Q_U || P) = |U|^2 / (2 sigma^2) in nats, for N(U, sigma^2 I) against N(0, sigma^2 I).

    Args:
        U: (..., tau, d).
        sigma: > 0.

    Returns:
        (...,) float64.
    """
    _check_positive(sigma=sigma)
    return U.double().square().sum((-2, -1)) / (2 * sigma**2)


def free_energy(rewards: Tensor, lam: float) -> Tensor:
    """lam * log mean_i exp(r_i / lam): the estimate of lam * F = lam * log E_P[exp(r / lam)].

    It is the best value of E_Q[r] - lam KL(Q || P) over all Q; estimated from draws of the base
    law it is biased low, and the bias vanishes as n grows.

    Args:
        rewards: (..., n), rewards of draws from P; -inf allowed, but not for all of a row.
        lam: > 0.

    Returns:
        (...,) float64, in units of reward; between the mean and the maximum of the rewards.

    Raises:
        ValueError: as `log_weights`.
    """
    _check_positive(lam=lam)
    r = _checked(rewards)
    n = torch.tensor(r.shape[-1], dtype=r.dtype)
    return lam * (torch.logsumexp(r / lam, dim=-1) - n.log())


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0 or (name == "sigma" and value**2 == 0):
            raise ValueError(f"{name} is {value}; it must be > 0, and its square too")


def _checked(rewards: Tensor) -> Tensor:
    """Rewards in float64, refused where no weight could be computed from them."""
    r = rewards.double()
    if r.numel() == 0:
        raise ValueError("no rewards: n is 0; at least one sample is needed")
    if torch.isnan(r).any() or (r == torch.inf).any():
        where = torch.nonzero(torch.isnan(r) | (r == torch.inf))[0].tolist()
        raise ValueError(f"reward at {where} is {r[tuple(where)].item()}; use a number or -inf")
    if (r == -torch.inf).all(-1).any():
        raise ValueError("all rewards of one row are -inf: no sample can carry weight")
    return r
