"""Training of the embedded preference head on human preference pairs.

`pair_features` computes the features of pairs, `select` chooses among features and fits w by logistic
regression (`train`), and `calibrate` finds the scale. `python -m aisp.training.preference_head PAIRS`
does all of it and writes data/reward_head/. `aisp.training.judge` trains the embedded judge with the
same functions.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.intervals import wilson
from aisp.policy import Policy, load_policy
from aisp.preference_data import Pair, hh_pairs
from aisp.prompts import load_prompts
from aisp.provenance import data_path
from aisp.rewards.head import POOLINGS, Head, features
from aisp.state import generator

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3)  # inverse regularization, to choose among


def pair_features(
    policy: Policy,
    pairs: Sequence[Pair],
    layers: Sequence[int],
    poolings: Sequence[str] = POOLINGS,
) -> Tensor:
    """Features of the chosen and the rejected responses, (2, N, layers, poolings, d)."""
    prompts = [p.messages for p in pairs] * 2
    responses = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    f = features(policy, prompts, responses, layers=layers, poolings=poolings, progress=True)
    return f.unflatten(0, (2, len(pairs)))


def train(
    chosen: Tensor, rejected: Tensor, *, folds: int = 5, seed: int = 0, cs: Sequence[float]
) -> tuple[Tensor, Tensor, float]:
    """Fit w by logistic regression on feature differences; its strength by cross-validation.

    Args:
        chosen, rejected: (N, d) features of the preferred and the other response.
        folds: of the cross-validation, over pairs.
        cs: inverse regularization strengths to choose among.

    Returns:
        w (d,); whether each held-out fold's pair was ordered correctly at the best strength, (N,)
        bool; and that strength.
    """
    import numpy as np
    from sklearn.model_selection import KFold

    D, _ = _standardized(chosen, rejected)
    correct = np.zeros((len(cs), len(D)), dtype=bool)
    for fitted, held in KFold(folds, shuffle=True, random_state=seed).split(D):
        for k, c in enumerate(cs):
            correct[k, held] = D[held] @ _logistic(D[fitted], c) > 0
    best = int(correct.mean(1).argmax())
    return fit(chosen, rejected, cs[best]), torch.from_numpy(correct[best]), cs[best]


def fit(chosen: Tensor, rejected: Tensor, c: float) -> Tensor:
    """w (d,) of the logistic regression on feature differences, at inverse regularization c."""
    D, spread = _standardized(chosen, rejected)
    return torch.from_numpy(_logistic(D, c)).float() / spread


def _standardized(chosen: Tensor, rejected: Tensor) -> tuple[Any, Tensor]:
    """Differences (N, d) in units of the features' spread, as a float64 array; and that spread (d,)."""
    spread = torch.cat([chosen, rejected]).std(0).clamp(min=1e-6)
    return ((chosen - rejected) / spread).double().numpy(), spread


def _logistic(D: Any, c: float) -> Any:
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    # Each pair enters in both orders: the label carries no information, only the sign does.
    X, y = np.concatenate([D, -D]), np.repeat([1, 0], len(D))
    return LogisticRegression(C=c, fit_intercept=False, max_iter=1000).fit(X, y).coef_[0]


def select(
    f: Tensor, fitted: Tensor, names: Sequence[tuple[Any, ...]], *, seed: int = 0
) -> tuple[int, Tensor, dict[str, Any]]:
    """Choose features by cross-validation, fit on them, and test on the pairs that are left.

    The one-standard-error rule: among the candidates whose accuracy is within one standard error of
    the best, the one with the fewest layers.

    Args:
        f: (2, N, K, d) features of the chosen and the rejected responses, K candidates.
        fitted: (N,) bool, the pairs to choose and fit on.
        names: of the K candidates, each a tuple that begins with its number of layers.

    Returns:
        Which candidate; its w (d,); and the report, in which `candidates` has the name, C and
        cross-validated accuracy of each.
    """
    rows = []
    for k in range(f.shape[2]):
        w, correct, c = train(*f[:, fitted, k], seed=seed, cs=STRENGTHS)
        rows.append((correct.float().mean().item(), w, c))
    best = max(row[0] for row in rows)
    error = (best * (1 - best) / int(fitted.sum())) ** 0.5
    chosen = min(
        (k for k, row in enumerate(rows) if row[0] >= best - error),
        key=lambda k: (names[k][0], -rows[k][0]),
    )
    accuracy, w, c = rows[chosen]
    held = (f[0, ~fitted, chosen] - f[1, ~fitted, chosen]) @ w > 0
    report = {
        "C": c,
        "pairs_fitted": int(fitted.sum()),
        "accuracy_cross_validated": accuracy,
        "pairs_held_out": len(held),
        "accuracy_held_out": held.float().mean().item(),
        "accuracy_held_out_95": wilson(int(held.sum()), len(held)),
        "candidates": [
            [*name, c, round(accuracy, 4)]
            for name, (accuracy, _, c) in zip(names, rows, strict=True)
        ],
    }
    return chosen, w, report


def calibrate(
    policy: Policy,
    values: Callable[[list[Any], list[str]], Tensor],
    prompts: Sequence[Any],
    seed: int,
    n: int = 16,
) -> tuple[float, float]:
    """Center and scale: mean, and root mean square deviation within a prompt, of a score over the
    `samples` of the policy.

    Args:
        values: from N prompts and responses to their scores, (N,).
    """
    found = values(*samples(policy, prompts, seed, n)).double().view(len(prompts), n)
    return found.mean().item(), found.var(1, correction=1).mean().sqrt().item()


def samples(
    policy: Policy, prompts: Sequence[Any], seed: int, n: int = 16
) -> tuple[list[Any], list[str]]:
    """n responses of the policy (temperature 1, 48 tokens) to each prompt, and n times each prompt."""
    prefixes = [policy.prefix(p) for p in prompts]
    sources = [generator(seed, p, 0, policy.head_device) for p in prompts]
    out = rollout(policy, prefixes, n, 48, decoding=Decoding(1.0), generators=sources)
    return [p for p in prompts for _ in range(n)], [t for row in out.texts for t in row]


def write(folder: Path, head: Head, report: dict[str, Any]) -> None:
    """Write head.safetensors and report.json; print the report without its candidates."""
    folder.mkdir(parents=True, exist_ok=True)
    head.save(folder / "head.safetensors")
    report = {"layer": head.layer, "pooling": head.pooling, **report}
    report |= {"scale": head.scale, "center": head.center}
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "candidates"}, indent=1))


def row_of(pair: Pair) -> int:
    """The row of its file that a pair came from, from 0."""
    return int(pair.id.rsplit("-", 1)[1])


def main(argv: Sequence[str] | None = None) -> None:
    """Choose features by cross-validation, fit, test on held-out pairs, scale, write, and report."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("pairs", help="HH-RLHF style JSONL (.gz): chosen, rejected")
    parser.add_argument("--held-out-from", type=int, default=1400, help="first held-out row")
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 15, 18, 20, 22, 24, 26, 28])
    parser.add_argument("--out", type=Path, default=data_path("reward_head"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    policy = load_policy("embedded")
    pairs = hh_pairs(args.pairs)
    f = pair_features(policy, pairs, args.layers).flatten(2, 3)
    fitted = torch.tensor([row_of(p) < args.held_out_from for p in pairs])
    names = [(layer, pooling) for layer in args.layers for pooling in POOLINGS]
    k, w, report = select(f, fitted, names, seed=args.seed)
    layer, pooling = names[k]

    def values(prompts, responses):
        f = features(policy, prompts, responses, layers=[layer], poolings=[pooling])
        return f[:, 0, 0].double() @ w.double()

    center, scale = calibrate(policy, values, load_prompts("builtin", split="dev"), args.seed)
    report |= {"dtype": str(policy.dtype).removeprefix("torch."), "seed": args.seed}
    write(args.out, Head(w, center, scale, layer, pooling), report)


if __name__ == "__main__":
    main()
