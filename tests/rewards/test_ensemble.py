"""Refits of the embedded reward: what is stored, and that all are scored in one pass."""

import json

import pytest
import torch

import aisp
from aisp.provenance import data_path
from aisp.rewards.ensemble import EmbeddedEnsemble, Ensemble
from aisp.rewards.head import EmbeddedReward, Head, features

PROMPTS = ["Hi", "How do I learn to cook?"]
REPLIES = ["Hello there, how can I help?", "Buy a pan."]


def random_ensemble(d, seed=0, **changes):
    g = torch.Generator().manual_seed(seed)
    w, centers = torch.randn(3, d, generator=g), torch.randn(3, generator=g).double()
    return Ensemble(w, centers, **{"scale": 2.0, "layer": 3, "pooling": "mean"} | changes)


def test_the_first_column_is_the_reward_and_the_others_are_the_refits(embedded, monkeypatch):
    trained, ensemble = aisp.load_reward("embedded", policy=embedded), random_ensemble(embedded.d)
    head = Head(trained.head.w, 0.5, 2.0, 3, "mean")
    passes = []
    monkeypatch.setattr(
        "aisp.rewards.head.features", lambda *a, **k: passes.append(1) or features(*a, **k)
    )
    found = EmbeddedEnsemble(EmbeddedReward(embedded, head), ensemble).score(PROMPTS, REPLIES)
    assert found.shape == (2, 4) and found.dtype == torch.float64 and len(passes) == 1
    f = features(embedded, PROMPTS, REPLIES, layers=[3], poolings=["mean"])[:, 0, 0].double()
    torch.testing.assert_close(found[:, 0], (f @ head.w.double() - 0.5) / 2)
    for k in range(3):
        exact = (f @ ensemble.w[k].double() - ensemble.centers[k]) / 2
        torch.testing.assert_close(found[:, 1 + k], exact)


def test_an_ensemble_survives_saving_and_must_fit_its_head(embedded, tmp_path):
    ensemble, path = random_ensemble(embedded.d), tmp_path / "ensemble.safetensors"
    ensemble.save(path)
    again = Ensemble.load(path)
    assert torch.equal(again.w, ensemble.w) and torch.equal(again.centers, ensemble.centers)
    assert (again.scale, again.layer, again.pooling) == (2.0, 3, "mean")
    head = Head(torch.zeros(embedded.d), 0.0, 1.0, 15, "mean")
    with pytest.raises(ValueError, match=r"reads layer 15 \(mean\) and the ensemble layer 3"):
        EmbeddedEnsemble(EmbeddedReward(embedded, head), again)
    head.save(path)
    with pytest.raises(ValueError, match="holds no reward ensemble"):
        Ensemble.load(path)


def test_the_shipped_ensemble_is_small_near_its_head_and_as_its_card_says(embedded):
    path = data_path("reward_head/ensemble.safetensors")
    assert path.stat().st_size < 50_000
    report = json.loads(path.with_suffix(".json").read_text())
    ours = EmbeddedEnsemble.load(embedded)
    head, ensemble = ours.reward.head, ours.ensemble
    assert [file.name for file in ours.files] == ["head.safetensors", "ensemble.safetensors"]
    assert ensemble.w.shape == (report["members"], embedded.d) and ensemble.scale == head.scale
    along = torch.nn.functional.cosine_similarity(ensemble.w, head.w[None])
    assert (along > 0.6).all() and (along < 0.999).all(), "refits: like the head, and not the head"
    card = data_path("reward_head/README.md").read_text()
    shown = [min(report["accuracy_held_out"]), max(report["accuracy_held_out"])]
    shown += [report["accuracy_held_out_of_mean"]]
    for number in shown:
        assert f"{number:.3f}" in card
    assert f"{report['spread_of_members']:.2f}" in card and str(report["conversations"]) in card
    found = ours.score(PROMPTS, REPLIES)
    reward = aisp.load_reward("embedded", policy=embedded)
    torch.testing.assert_close(found[:, 0], reward.score(PROMPTS, REPLIES))
