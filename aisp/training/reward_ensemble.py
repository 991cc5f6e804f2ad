"""Bootstrap refits of the embedded preference head, for pessimism about its reward.

`python -m aisp.training.reward_ensemble PAIRS` fits K heads, each on a bootstrap sample of the pairs
that the embedded reward was fitted on (Efron, 1979), with its features and its strength of
regularization, and writes data/reward_head/ensemble.safetensors and ensemble.json. Conversations are
drawn, not pairs: pairs that continue one conversation share its text.
"""

import argparse
import json
from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from aisp.assets import trained_part
from aisp.checks import whole
from aisp.policy import load_policy
from aisp.preference_data import Pair, hh_pairs
from aisp.prompts import load_prompts
from aisp.provenance import data_path, replacing
from aisp.rewards.ensemble import Ensemble
from aisp.rewards.head import EmbeddedReward, Head
from aisp.training.preference_head import fit, pair_features, row_of, samples


def resampled(groups: Sequence[Hashable], generator: torch.Generator) -> Tensor:
    """Rows of a bootstrap sample of groups: as many groups as there are, drawn with replacement.

    Args:
        groups: (N,) the group of each row; a group that is drawn brings all its rows.

    Returns:
        Row numbers, a row as often as its group was drawn.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    rows = list(members.values())
    drawn = torch.randint(len(rows), (len(rows),), generator=generator).tolist()
    return torch.tensor([row for k in drawn for row in rows[k]])


def refits(
    chosen: Tensor, rejected: Tensor, groups: Sequence[Hashable], *, k: int, c: float, seed: int
) -> tuple[Tensor, Tensor]:
    """The regression of the preference head on k bootstrap samples.

    Args:
        chosen, rejected: (N, d) features of the preferred and the other response.
        groups: (N,) see `resampled`.
        c: inverse regularization, see `preference_head.fit`.

    Returns:
        w (k, d) float32; and whether each row was left out of each sample, (k, N) bool.
    """
    generator = torch.Generator().manual_seed(whole("seed", seed, least=0))
    ws, left_out = [], torch.ones(whole("k", k, least=2), len(chosen), dtype=torch.bool)
    for unused in left_out:
        rows = resampled(groups, generator)
        ws.append(fit(chosen[rows], rejected[rows], c))
        unused[rows] = False
    return torch.stack(ws), left_out


def accuracies(differences: Tensor, w: Tensor) -> list[float]:
    """The share of pairs that each of K heads orders as people did, from (N, d) and (K, d)."""
    return (differences @ w.T > 0).float().mean(0).tolist()


def conversation(pair: Pair) -> str:
    """What pairs that continue the same conversation share: its first message."""
    return pair.messages[0]["content"]


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, center on the samples that the head was scaled on, test on held-out pairs, write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("pairs", help="HH-RLHF style JSONL (.gz): chosen, rejected")
    parser.add_argument("--held-out-from", type=int, default=1400, help="first held-out row")
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--out", type=Path, default=data_path("reward_head"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    path = trained_part("preference head")
    head, c = Head.load(path), json.loads(path.with_name("report.json").read_text())["C"]
    policy, pairs = load_policy("embedded"), hh_pairs(args.pairs)
    f = pair_features(policy, pairs, [head.layer], poolings=[head.pooling])[:, :, 0, 0]
    fitted = torch.tensor([row_of(p) < args.held_out_from for p in pairs])
    groups = [conversation(p) for p, used in zip(pairs, fitted.tolist(), strict=True) if used]
    ours, held = f[:, fitted], f[:, ~fitted]
    w, left_out = refits(ours[0], ours[1], groups, k=args.members, c=c, seed=args.seed)

    drawn = samples(policy, load_prompts("builtin", split="dev"), args.seed)
    sampled = EmbeddedReward(policy, head).features(*drawn)
    centers = (sampled.double() @ w.double().T).mean(0)
    ensemble = Ensemble(w, centers, head.scale, head.layer, head.pooling)

    ours, held = ours[0] - ours[1], held[0] - held[1]
    spread = ensemble.rewards(sampled).std(1)
    report = {
        "members": len(w),
        "C": c,
        "seed": args.seed,
        "pairs_fitted": int(fitted.sum()),
        "conversations": len(set(groups)),
        "pairs_held_out": len(held),
        "accuracy_held_out": accuracies(held, w),
        "accuracy_held_out_of_mean": accuracies(held, w.mean(0, keepdim=True))[0],
        "accuracy_held_out_of_head": accuracies(held, head.w[None])[0],
        "accuracy_left_out": [
            accuracies(ours[out], one[None])[0] for out, one in zip(left_out, w, strict=True)
        ],
        "spread_of_members": spread.square().mean().sqrt().item(),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    with replacing(args.out / "ensemble.safetensors") as new:
        ensemble.save(new)
    with replacing(args.out / "ensemble.json") as new:
        new.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
