"""Real pre-logits, measured for notebook 01: how Gaussian they are, and noise on them as a sampler.

The measurements need a language model and minutes, so that `measured` keeps their tables beside the
records.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aisp.checks import choice
from aisp.experiment.profiles import records_path
from aisp.experiment.report.measures import computed_once
from aisp.policy import Policy, load_policy
from aisp.prompts import load_prompts
from aisp.theory import diagnostics

if TYPE_CHECKING:
    import pandas as pd

COMPONENTS = 10  # leading principal components that the tests look at
SIGMAS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5)
# Prompts, responses to each, tokens of each; Gaussian twins of a set; positions at which tokens are
# drawn, and how many.
SIZES = {
    "smoke": {"prompts": 16, "samples": 10, "steps": 6, "twins": 39, "positions": 24, "draws": 200},
    "cpu": {
        "prompts": 64,
        "samples": 16,
        "steps": 16,
        "twins": 99,
        "positions": 128,
        "draws": 1000,
    },
}


class Tables(NamedTuple):
    normality: "pd.DataFrame"  # from `normality`
    shape: "pd.DataFrame"  # from `shape`
    noise: "pd.DataFrame"  # from `noise_as_sampler`


def measured(profile: str, *, sigma: float, seed: int) -> Tables:
    """The three tables for the embedded model, in data/results/<profile>/prelogits_*.csv.

    Computed once, and read from there as long as size, sigma and seed are the same: no model is
    loaded then. To compute them anew, delete the files.

    Args:
        profile: of SIZES.
        sigma: standard deviation of the perturbations that the pre-logits are compared with.

    Raises:
        ValueError: a profile without a size.
    """
    size = SIZES[choice("profile", profile, list(SIZES))]
    made = {"policy": "embedded", "prompt set": "builtin", "sigma": sigma, "seed": seed, **size}
    folder = records_path("prelogits", profile).parent
    places: dict[str, Any] = {"positions": size["positions"], "draws": size["draws"]}

    @cache
    def data() -> tuple[Policy, diagnostics.Prelogits]:
        policy = load_policy("embedded", device="cpu", dtype="float32")
        prompts = load_prompts("builtin", limit=size["prompts"])
        return policy, diagnostics.collect_prelogits(
            policy, prompts, size["samples"], size["steps"], seed=seed
        )

    @cache
    def points() -> dict[str, Tensor]:
        return sets(*data(), sigma=sigma, seed=seed)

    def kept(name: str, compute: "Callable[[], pd.DataFrame]") -> "pd.DataFrame":
        path = folder / f"prelogits_{name}.csv"
        return computed_once(path, [], lambda: compute().round(7), **made)

    folder.mkdir(parents=True, exist_ok=True)
    return Tables(
        kept("normality", lambda: normality(points(), twins=size["twins"], seed=seed)),
        kept("shape", lambda: shape(one_of_each(points()), seed=seed)),
        kept("noise", lambda: noise_as_sampler(*data(), SIGMAS, seed=seed, **places)),
    )


def sets(
    policy: "Policy", data: diagnostics.Prelogits, *, sigma: float, seed: int, least: int = 31
) -> dict[str, Tensor]:
    """Pre-logits at three steps, those of the four most frequent tokens, and our perturbations.

    Args:
        sigma: of the perturbations, drawn as often as there are responses.
        least: sets with fewer points are left out.

    Returns:
        Name -> (N, d), N at most the number of responses.
    """
    N, T, d = data.z.shape
    tokens, counts = data.token[data.valid].unique(return_counts=True)
    common = tokens[counts.argsort(descending=True)][:4].tolist()
    found = {f"step {t + 1}": data.z[data.valid[:, t], t] for t in (1, T // 2, T - 1)}
    for i in common:
        name = f"token {policy.tokenizer.decode([i])!r}"
        found[name] = data.z[data.valid & (data.token == i)]
    noise = torch.randn(N, d, generator=torch.Generator().manual_seed(seed))
    found = {name: Z[:N] for name, Z in found.items() if len(Z) >= least}
    return found | {"our perturbations": sigma * noise}


def one_of_each(points: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the sets: the second step, the most frequent token, and our perturbations."""
    steps, tokens = ([x for x in points if x.startswith(kind)] for kind in ("step", "token"))
    return {x: points[x] for x in (*steps[1:2], *tokens[:1], "our perturbations")}


def normality(
    points: Mapping[str, Tensor], *, twins: int, seed: int, components: int = COMPONENTS
) -> "pd.DataFrame":
    """`diagnostics.normality` of each set: one row per set, its name in the column "set".

    The p-value stands in the column "p of hz".
    """
    import pandas as pd

    found = {
        name: diagnostics.normality(Z, components, twins=twins, seed=seed)
        for name, Z in points.items()
    }
    return (
        pd.DataFrame(found)
        .T.astype({"n": int})
        .rename(columns={"p": "p of hz"})
        .rename_axis("set")
        .reset_index()
    )


def shape(
    points: Mapping[str, Tensor], *, seed: int, components: int = COMPONENTS
) -> "pd.DataFrame":
    """Curves that show how each set (N, d) departs from a Gaussian, thinned for drawing.

    Returns:
        Columns set, panel, x, y, low, high. In the panel "marginals", x is a quantile of N(0, 1), y
        the median over coordinates of their standardized quantile minus x, and low and high hold 90%
        of the coordinates. In "distances", x and y are squared Mahalanobis distances of Gaussian
        twins and of the set, in order. In "spectrum", y is the share of variance of the x leading
        components.
    """
    import pandas as pd

    rows: list[tuple[str, str, float, float, float, float]] = []
    levels = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    none = float("nan")
    for name, Z in points.items():
        Z = Z.double()
        at = torch.special.ndtri(levels)
        off = torch.quantile((Z - Z.mean(0)) / Z.std(0), levels, 0) - at[:, None]
        three = (off.quantile(q, 1) for q in (0.5, 0.05, 0.95))
        for x, y, low, high in zip(at, *three, strict=True):
            rows.append((name, "marginals", float(x), float(y), float(low), float(high)))
        generator = torch.Generator().manual_seed(seed)
        pairs = (diagnostics.gaussian_twin(Z, generator) for _ in range(20))
        null = torch.stack([_distances(twin, components) for twin in pairs]).mean(0)
        own = _distances(Z, components)
        for i in sorted({*np.linspace(0, len(Z) - 1, 80).round().astype(int)} | _last(len(Z), 20)):
            rows.append((name, "distances", float(null[i]), float(own[i]), none, none))
        variance = torch.linalg.svdvals(Z - Z.mean(0)).square()
        share = variance.cumsum(0) / variance.sum()
        for i in sorted({*np.geomspace(1, len(share), 60).round().astype(int)}):
            rows.append((name, "spectrum", float(i), float(share[i - 1]), none, none))
    return pd.DataFrame(rows, columns=["set", "panel", "x", "y", "low", "high"])


def _last(N: int, count: int) -> set[int]:
    return set(range(max(0, N - count), N))


def _distances(Z: Tensor, components: int) -> Tensor:
    """Squared Mahalanobis distances in the leading components, in order."""
    return diagnostics.whitened(Z, components).square().sum(1).sort().values


def noise_as_sampler(
    policy: "Policy",
    data: diagnostics.Prelogits,
    sigmas: Sequence[float],
    *,
    positions: int,
    draws: int,
    seed: int,
) -> "pd.DataFrame":
    """Greedy decoding of noisy pre-logits beside the softmax samples of the same entropy.

    Args:
        positions: of the pre-logits, chosen at random.
        draws: tokens per position.

    Returns:
        One row per sigma: the matched temperature and the one that the two-token formula predicts;
        entropy (nats); the shares of the top token and of tokens outside the 50 most likely, of both
        samplers; TV, their total variation, and TV floor, that of softmax and its own draws.
    """
    import pandas as pd

    generator = torch.Generator().manual_seed(seed)
    W = policy.model.get_output_embeddings().weight.float()
    pick = torch.randperm(int(data.valid.sum()), generator=generator)[:positions]
    logits = data.z[data.valid][pick] @ W.T  # (positions, vocabulary)
    noise = torch.randn(draws, policy.d, generator=generator) @ W.T
    likely = logits.topk(min(50, logits.shape[1])).indices
    gap = (W[likely[:, 0]] - W[likely[:, 1]]).norm(dim=1).mean().item()
    rows = []
    for sigma in sigmas:
        drawn = diagnostics.perturbed_argmax(logits, noise, sigma)
        entropy = diagnostics.empirical_entropy(drawn).mean().item()
        T = diagnostics.matching_temperature(logits, entropy, draws, seed)
        softmax = torch.softmax(logits / T, 1)
        own = diagnostics.softmax_tokens(logits, T, draws, seed + 1)
        top = drawn == logits.argmax(1, keepdim=True)
        tail = ~(drawn[..., None] == likely[:, None]).any(-1)
        rows.append(
            {
                "sigma": sigma,
                "T matched": T,
                "T predicted": sigma * gap / 1.702,
                "entropy": entropy,
                "top-1 noise": top.float().mean().item(),
                "top-1 softmax": softmax.max(1).values.mean().item(),
                "tail noise": tail.float().mean().item(),
                "tail softmax": (1 - softmax.gather(1, likely).sum(1)).mean().item(),
                "TV": diagnostics.total_variation(drawn, softmax).mean().item(),
                "TV floor": diagnostics.total_variation(own, softmax).mean().item(),
            }
        )
    return pd.DataFrame(rows)
