"""Laws over a few tokens, KAD's rules in plain Python, and the test of counts against a law.

Statistical tests are chi-square tests at a fixed seed that accept p > 1e-3.
"""

import math
from collections import Counter

import numpy as np
import torch
from scipy import stats

# KAD's rules at amounts that defer some tokens and keep others.
CASES = [("primal", 0.4), ("dual", 0.15), ("max_p", 0.2), ("nudging", 0.45)]


def laws(rows, size, seed, concentration=0.7):
    x = np.random.default_rng(seed).dirichlet(np.full(size, concentration), rows)
    return torch.tensor(x, dtype=torch.float32)


def brute_force(rule, p, q, amount):
    """The definition, in plain Python."""
    p, q = list(map(float, p)), list(map(float, q))
    if rule == "primal":
        d, total = [False] * len(p), 0.0
        for v in sorted(range(len(p)), key=lambda v: p[v]):  # -log p, largest first
            total += p[v]
            if total > amount:
                return d
            d[v] = True
        return d
    bound = {
        "dual": amount,
        "max_p": max(p) - amount,
        "max_q_minus": max(q) - amount,
        "max_q_plus": max(q) + amount,
        "nudging": math.inf if max(p) < amount else -math.inf,
    }[rule]
    return [x < bound for x in p]


def chi_square(counts: Counter, exact: dict) -> float:
    """p-value; the least likely cells are one, so that at least 5 are expected in each."""
    total = sum(counts.values())
    assert set(counts) <= {k for k, x in exact.items() if x > 0}
    cells = sorted(((x * total, counts[k]) for k, x in exact.items() if x > 0), reverse=True)
    while len(cells) > 1 and cells[-1][0] < 5:
        (x, i), (y, j) = cells.pop(), cells.pop()
        cells.append((x + y, i + j))
    statistic = sum((seen - expected) ** 2 / expected for expected, seen in cells)
    return float(stats.chi2.sf(statistic, len(cells) - 1))
