"""The second head: its score by an independent computation, its pairs apart from the first one's."""

import torch

import aisp
from aisp import assets
from aisp.preference_data import hh_pairs
from aisp.rewards.judge import EmbeddedJudge

TEXTS = ["I cannot help with that.", "Sure! Here is how:\n1. Boil water.", "no"]


def test_scores_are_the_head_on_unit_features_of_the_layer():
    """Against hidden states of the whole model, read one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    judge = aisp.load_reward("embedded-judge", device="cpu")
    assert isinstance(judge, EmbeddedJudge) and judge.name == "embedded-judge"
    model = AutoModel.from_pretrained(assets.encoder_dir(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(assets.encoder_dir())
    head = judge.head
    with torch.no_grad():
        for text, score in zip(TEXTS, judge.score(["?"] * 3, TEXTS), strict=True):
            ids = tokenizer(text, return_tensors="pt")
            f = model(**ids, output_hidden_states=True).hidden_states[head.layer][0].mean(0)
            expected = ((f / f.norm()) @ head.w - head.center) / head.scale
            torch.testing.assert_close(score.float(), expected, rtol=1e-4, atol=1e-4)


def test_it_orders_real_pairs_that_it_never_saw(shared_data):
    """The first 300 usable pairs; the bound is two standard errors below the card's accuracy."""
    pairs = hh_pairs(shared_data / "hh_rlhf_harmless_base_test_0-1799.jsonl.gz")[:300]
    judge = aisp.load_reward("embedded-judge", device="cpu")
    better = judge.score(pairs, [p.chosen for p in pairs])
    worse = judge.score(pairs, [p.rejected for p in pairs])
    assert (better > worse).float().mean() > 0.626 - 2 * (0.626 * 0.374 / 300) ** 0.5
