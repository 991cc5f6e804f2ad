"""The training of the second head: its pairs apart from the first one's, and the whole command."""

import json

import pytest
import torch

from aisp.provenance import data_path
from aisp.rewards.head import Head
from aisp.rewards.judge import EmbeddedJudge
from aisp.training.judge import main


def test_the_two_heads_share_no_pair_and_no_features():
    first = json.loads(data_path("reward_head/report.json").read_text())
    second = json.loads(data_path("judge/report.json").read_text())
    assert second["pairs_fitted"] == first["pairs_held_out"]
    assert second["pairs_held_out"] == first["pairs_fitted"]
    w = Head.load(data_path("judge/head.safetensors")).w
    assert w.shape != Head.load(data_path("reward_head/head.safetensors")).w.shape
    low, high = second["accuracy_held_out_95"]
    assert 0.5 < low < second["accuracy_held_out"] < high


@pytest.mark.slow
def test_the_whole_training_command_gives_the_stored_head(shared_data, tmp_path):
    main(
        [
            str(shared_data / "hh_rlhf_harmless_base_test_0-1799.jsonl.gz"),
            "--out",
            str(tmp_path),
        ]
    )
    again, stored = Head.load(tmp_path / "head.safetensors"), EmbeddedJudge.load().head
    assert again.layer == stored.layer
    assert torch.cosine_similarity(again.w, stored.w, 0) > 0.999
