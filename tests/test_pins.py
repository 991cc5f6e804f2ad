"""Commits of the hub: which are known, and that whatever loads an id asks for its commit."""

import re

import fake_vllm
import pytest
import torch
from tiny import tiny_model

import aisp
from aisp import pins
from aisp.experiment import identity
from aisp.experiment.identity.weights import weight_files
from aisp.loading import load_pretrained
from aisp.methods import configure
from aisp.pins import revision_of, with_revision
from aisp.rewards.hub import load_reward_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEWEST = COMMIT[::-1]


@pytest.fixture
def pin(monkeypatch):
    """Pins one model, by an id or by a folder, and nothing else."""
    return lambda name: monkeypatch.setattr(
        pins, "pins", lambda: {"model": {str(name): {"revision": COMMIT}}, "dataset": {}}
    )


def test_a_pin_is_a_full_commit_or_none_and_says_where_it_is_from():
    assert set(pins.pins()) == set(pins.KINDS)
    for ids in pins.pins().values():
        assert list(ids) == sorted(ids)
        for id, entry in ids.items():
            assert set(entry) == {"revision", "found"} and entry["found"], id
            revision = entry["revision"]
            assert revision is None or re.fullmatch(r"[0-9a-f]{40}", revision), id


def test_a_revision_that_is_given_goes_before_the_pin(pin):
    pin("org/model")
    assert revision_of("org/model") == COMMIT and revision_of("org/model", "dataset") is None
    assert with_revision("org/model", {"a": 1}) == {"a": 1, "revision": COMMIT}
    assert with_revision("org/model", {"revision": None}) == {"revision": COMMIT}
    assert with_revision("org/model", {"revision": "main"}) == {"revision": "main"}
    assert with_revision("org/other", {}) == {}


@pytest.mark.parametrize("given", [{}, {"revision": "main"}])
def test_model_and_tokenizer_are_asked_for_at_the_pin(pin, tmp_path, byte_tokenizer, given):
    pin(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    asked = []

    class Auto:
        @staticmethod
        def from_pretrained(source, output_loading_info, **options):
            asked.append(options)
            return tiny_model("llama"), {"missing_keys": [], "mismatched_keys": []}

    load_pretrained(Auto, tmp_path, device=torch.device("cpu"), **given)
    assert asked == [{"revision": given.get("revision", COMMIT)}]


@pytest.mark.parametrize(
    "load",
    [
        aisp.load_policy,
        aisp.load_reward,
        lambda name: load_reward_model(name, device=torch.device("cpu"), dtype=torch.float32),
        lambda name: aisp.rewards.load_encoder(name, pooling="mean"),
    ],
    ids=["policy", "reward", "reward model", "encoder"],
)
def test_policies_rewards_and_encoders_say_at_which_commit_an_id_cannot_be_had(pin, load):
    pin("org/no-such-model")
    told = rf"cannot load 'org/no-such-model' \(\w+, revision {COMMIT} \(revision='main' is the"
    with pytest.raises(ValueError, match=told):
        load("org/no-such-model")


def test_vllm_is_given_the_pin_and_records_are_told_apart_as_before(
    pin, tmp_path, byte_tokenizer, monkeypatch
):
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    fake_vllm.install(monkeypatch)
    load = {"engine": "vllm", "device": "cpu", "dtype": "float32"}
    before = aisp.load_policy(tmp_path, **load).model
    pin(tmp_path)
    after = aisp.load_policy(tmp_path, **load).model
    assert after.llm.seen["revision"] == COMMIT and "revision" not in before.llm.seen
    assert after.settings == before.settings
    given = aisp.load_policy(tmp_path, revision="main", **load).model
    assert given.llm.seen["revision"] == given.settings["revision"] == "main"


@pytest.fixture
def two_commits(pin, hub_cache, byte_tokenizer):
    """org/model, whose newest commit has other weights than the one that it is pinned to."""
    for seed, commit in enumerate([COMMIT, NEWEST]):
        folder = hub_cache("org/model", commit, newest=commit == NEWEST)
        tiny_model("llama", seed=seed).save_pretrained(folder)
        byte_tokenizer.save_pretrained(folder)
    pin("org/model")
    return "org/model"


@pytest.mark.parametrize(
    ("given", "seed", "commit"), [({}, 0, COMMIT), ({"revision": "main"}, 1, NEWEST)]
)
def test_the_pinned_weights_are_loaded_and_runs_name_their_commit(two_commits, given, seed, commit):
    policy = aisp.load_policy(two_commits, device="cpu", dtype="float32", **given)
    expected = tiny_model("llama", seed=seed).lm_head.weight
    assert torch.equal(policy.model.lm_head.weight, expected)
    assert weight_files(policy) == {"revision": commit}


def test_records_of_vllm_are_told_apart_by_the_commit(two_commits, monkeypatch):
    fake_vllm.install(monkeypatch)
    load = {"engine": "vllm", "device": "cpu", "dtype": "float32"}
    pinned, newest = (
        aisp.load_policy(two_commits, **load, **given) for given in ({}, {"revision": NEWEST})
    )
    assert pinned.model.config._commit_hash == COMMIT
    assert newest.model.config._commit_hash == NEWEST
    ours, others = (
        identity.made_with(p, None, {"x": configure("best_of_n")}) for p in (pinned, newest)
    )
    assert ours["x"]["policy_sha256"] != others["x"]["policy_sha256"]
