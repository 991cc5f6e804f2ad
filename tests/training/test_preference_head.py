"""The training of the embedded preference head: fit, interval, scale, and the whole command."""

import json

import pytest
import torch

import aisp
from aisp.preference_data import hh_pairs
from aisp.provenance import data_path
from aisp.rewards.head import POOLINGS, EmbeddedReward, Head
from aisp.training.preference_head import (
    calibrate,
    main,
    pair_features,
    row_of,
    select,
    train,
)


def test_training_recovers_a_known_preference():
    """Labels drawn from a Bradley-Terry model with known w: the fit points the same way."""
    g = torch.Generator().manual_seed(0)
    N, d = 3000, 10
    true = torch.randn(d, generator=g)
    a, b = torch.randn(2, N, d, generator=g)
    wins = torch.rand(N, generator=g) < torch.sigmoid((a - b) @ true)
    chosen, rejected = torch.where(wins[:, None], a, b), torch.where(wins[:, None], b, a)
    w, correct, strength = train(chosen, rejected, cs=(1e-6, 1e-1))
    assert torch.cosine_similarity(w, true, 0) > 0.98
    assert strength == 1e-1
    best = (((chosen - rejected) @ true) > 0).float().mean()
    assert abs(correct.float().mean() - best) < 0.03 and correct.shape == (N,)
    # Swapping the labels turns the reward around: the order in a pair carries no information.
    back, _, _ = train(rejected, chosen, cs=(1e-1,))
    assert torch.cosine_similarity(back, -true, 0) > 0.98


def test_noise_is_at_chance_in_cross_validation():
    a, b = torch.randn(2, 1000, 20, generator=torch.Generator().manual_seed(1))
    _, correct, _ = train(a, b, cs=(1e-3,))
    assert abs(correct.float().mean() - 0.5) < 4 * 0.5 / 1000**0.5


def test_the_cheapest_of_what_cannot_be_told_from_the_best_is_taken_and_tested_on_other_pairs():
    g = torch.Generator().manual_seed(2)
    better, *noise = torch.randn(5, 600, 6, generator=g)
    pairs = torch.stack([better.abs(), -better.abs()])  # every coordinate tells
    f = torch.stack([torch.stack(noise[:2]), pairs, pairs], 2)  # (2, N, 3 candidates, d)
    fitted = torch.arange(600) >= 200
    k, w, report = select(f, fitted, [(1,), (3,), (2,)])
    assert k == 2  # 0 is cheaper and knows nothing, 1 knows as much and costs more
    assert (report["pairs_fitted"], report["pairs_held_out"]) == (400, 200)
    assert report["accuracy_held_out"] == 1 and (w > 0).all()
    assert [row[0] for row in report["candidates"]] == [1, 3, 2]


def test_the_scale_is_one_within_a_prompt(embedded):
    """On a few development prompts; the card's statement is over all of them."""
    head = Head.load(data_path("reward_head/head.safetensors"))
    prompts = aisp.load_prompts("builtin", split="dev", limit=6)
    _, scale = calibrate(embedded, EmbeddedReward(embedded, head).score, prompts, seed=1, n=6)
    assert 0.6 < scale < 1.5


def held_out(shared_data):
    """The pairs of the card that the fit never saw, shortest first."""
    pairs = hh_pairs(shared_data / "hh_rlhf_harmless_base_test_0-1799.jsonl.gz")
    held = [p for p in pairs if row_of(p) >= 1400]

    def size(pair):  # the conversation is read with each of the two responses
        talk = sum(len(m["content"]) for m in pair.messages)
        return 2 * talk + len(pair.chosen) + len(pair.rejected)

    return sorted(held, key=size)


def accuracy(policy, pairs):
    head = Head.load(data_path("reward_head/head.safetensors"))
    f = pair_features(policy, pairs, [head.layer])[:, :, 0, POOLINGS.index(head.pooling)]
    return ((f[0] - f[1]) @ head.w > 0).float().mean().item()


def test_it_beats_chance_on_held_out_real_pairs(shared_data, embedded):
    """On the shortest ones. Chance would reach the bound, 2.8 standard errors off, 3 times in 1000."""
    held = held_out(shared_data)[:100]
    assert len(held) == 100 and accuracy(embedded, held) >= 0.64


@pytest.mark.slow
def test_the_accuracy_on_all_held_out_pairs_is_that_of_the_card(shared_data, embedded):
    """The card's is of bfloat16, which may decide a few close pairs otherwise."""
    report = json.loads(data_path("reward_head/report.json").read_text())
    held = held_out(shared_data)
    assert len(held) == report["pairs_held_out"]
    assert abs(accuracy(embedded, held) - report["accuracy_held_out"]) < 0.02


@pytest.mark.slow
def test_the_whole_training_command(shared_data, tmp_path):
    """As the card documents it, on fewer rows and layers."""
    import gzip

    name = "hh_rlhf_harmless_base_test_0-1799.jsonl.gz"
    with gzip.open(shared_data / name) as lines, gzip.open(tmp_path / "few.jsonl.gz", "w") as few:
        few.writelines(line for line, _ in zip(lines, range(120), strict=False))
    main(
        [
            str(tmp_path / "few.jsonl.gz"),
            "--held-out-from",
            "90",
            "--layers",
            "10",
            "--out",
            str(tmp_path / "head"),
        ]
    )
    assert Head.load(tmp_path / "head" / "head.safetensors").layer == 10
    assert json.loads((tmp_path / "head" / "report.json").read_text())["pairs_held_out"] > 20
