"""Intervals that claims about methods come with, and what they support."""


def bootstrap(values, *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean (Efron, 1979); NaN for no values.

    Where values are few it is narrow: of 16 normal ones it covers the mean in 92% of the cases, of
    32 or more in 94 to 95% (2,000 simulations). An end close to 0 decides little there.

    Args:
        values: (k,) one number per prompt.
    """
    import numpy as np

    values = np.asarray(values, dtype=float)
    if not len(values):
        return float("nan"), float("nan")
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)


def verdict(low: float, high: float) -> str:
    """What the interval of a difference supports: "higher", "lower", or "undecided" around 0."""
    return "higher" if low > 0 else "lower" if high < 0 else "undecided"


def wilson(successes: int, trials: int) -> list[float]:
    """95% interval of a proportion (Wilson, 1927)."""
    z, p = 1.959964, successes / trials
    middle = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * (p * (1 - p) / trials + z**2 / (4 * trials**2)) ** 0.5 / (1 + z**2 / trials)
    return [middle - half, middle + half]
