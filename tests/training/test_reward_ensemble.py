"""Bootstrap refits of the preference head, on a synthetic preference and from the command."""

import json
from collections import Counter

import pytest
import torch

from aisp.preference_data import Pair
from aisp.rewards.ensemble import Ensemble
from aisp.training.preference_head import fit
from aisp.training.reward_ensemble import accuracies, conversation, main, refits, resampled


def preferences(N, d=6, seed=0):
    """Pairs from a Bradley-Terry model with known w: chosen, rejected, w."""
    g = torch.Generator().manual_seed(seed)
    true = torch.randn(d, generator=g)
    a, b = torch.randn(2, N, d, generator=g)
    wins = (torch.rand(N, generator=g) < torch.sigmoid((a - b) @ true))[:, None]
    return torch.where(wins, a, b), torch.where(wins, b, a), true


def test_groups_are_drawn_whole_and_with_replacement():
    groups = ["a", "b", "a", "c", "b", "a", "d"]
    generator, seen = torch.Generator().manual_seed(0), Counter()
    for _ in range(500):
        rows = Counter(resampled(groups, generator).tolist())
        of = {x: {rows[i] for i, g in enumerate(groups) if g == x} for x in "abcd"}
        assert all(len(counts) == 1 for counts in of.values()), "a part of a group was drawn"
        counts = {x: counts.pop() for x, counts in of.items()}
        assert sum(counts.values()) == 4  # as many groups as there are
        seen.update({(x, n): 1 for x, n in counts.items()})
    for x in "abcd":  # each is left out with probability (3/4)^4 = 0.316
        assert abs(seen[x, 0] / 500 - 0.75**4) < 5 * (0.316 * 0.684 / 500) ** 0.5
        assert seen[x, 2] > 0


def test_refits_spread_as_the_estimate_does():
    """Their spread is that of fits to new data: the bootstrap's promise, within a factor of 1.5."""
    chosen, rejected, true = preferences(400)
    w, left_out = refits(chosen, rejected, range(400), k=60, c=1.0, seed=0)
    again = torch.stack([fit(*preferences(400, seed=s)[:2], 1.0) for s in range(100, 130)])
    assert w.shape == (60, 6) and left_out.shape == (60, 400)
    # Of other seeds the true w differs: compare the spread around each one's own.
    own = torch.stack([preferences(1, seed=s)[2] for s in range(100, 130)])
    spread, promised = (again - own).square().mean().sqrt(), (w - w.mean(0)).std(0).mean()
    assert 1 / 1.5 < promised / spread < 1.5
    whole = fit(chosen, rejected, 1.0)
    assert (w.mean(0) - whole).abs().max() < 0.25 * whole.abs().max()
    assert torch.cosine_similarity(w, true[None]).min() > 0.9
    assert abs(left_out.float().mean() - 0.368) < 0.01  # (1 - 1/N)^N


def test_what_was_left_out_of_a_sample_did_not_decide_its_fit():
    chosen, rejected, _ = preferences(60)
    w, left_out = refits(chosen, rejected, range(60), k=3, c=1.0, seed=1)
    for i, out in enumerate(left_out):
        changed = torch.where(out[:, None], -9.0, chosen)
        moved, same = refits(changed, rejected, range(60), k=3, c=1.0, seed=1)
        assert torch.equal(same, left_out)
        assert [torch.equal(a, b) for a, b in zip(moved, w, strict=True)] == [
            i == j for j in range(3)
        ]


def test_accuracies_and_conversations():
    gaps = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [2.0, 1.0], [-1.0, -1.0]])
    found = accuracies(gaps, torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    assert found == [0.5, 0.5, 0.5]
    assert accuracies(gaps, torch.tensor([[1.0, 1.0]])) == [0.75]
    first, more = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}
    short, long = (Pair("hh-0", turns, "a", "b") for turns in ((first,), (first, more, first)))
    assert conversation(short) == conversation(long) == "Hi"


def test_one_refit_is_no_ensemble():
    with pytest.raises(ValueError, match="k is 1; it must be a whole number >= 2"):
        refits(*preferences(10)[:2], range(10), k=1, c=1.0, seed=0)


@pytest.mark.slow
def test_the_whole_command(shared_data, tmp_path):
    """As the card documents it, on fewer rows."""
    import gzip

    name = "hh_rlhf_harmless_base_test_0-1799.jsonl.gz"
    with gzip.open(shared_data / name) as lines, gzip.open(tmp_path / "few.jsonl.gz", "w") as few:
        few.writelines(line for line, _ in zip(lines, range(80), strict=False))
    given = [str(tmp_path / "few.jsonl.gz"), "--held-out-from", "60", "--members", "3"]
    main([*given, "--out", str(tmp_path / "new")])
    ensemble = Ensemble.load(tmp_path / "new" / "ensemble.safetensors")
    report = json.loads((tmp_path / "new" / "ensemble.json").read_text())
    assert len(ensemble.w) == 3 == len(report["accuracy_held_out"])
    assert report["pairs_held_out"] > 10 and report["conversations"] <= report["pairs_fitted"]
