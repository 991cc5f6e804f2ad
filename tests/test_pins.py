"""Commits of the hub: which are known, and that whatever loads an id asks for its commit."""

import re
from types import SimpleNamespace

import fake_vllm
import pytest
import torch
from tiny import tiny_model

import aisp
from aisp import pins
from aisp.loading import load_pretrained
from aisp.pins import revision_of, with_revision
from aisp.rewards.hub import load_reward_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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


def test_a_run_names_the_commit_that_was_loaded():
    from aisp.experiment.identity.weights import weight_files

    model = SimpleNamespace(config=SimpleNamespace(_commit_hash=COMMIT))
    assert weight_files(SimpleNamespace(name="org/model", model=model)) == {"revision": COMMIT}
