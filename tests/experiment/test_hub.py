"""Ids of the hub in files of parameters, and their commits, with a hub that is made up."""

import json
import shutil
from datetime import date
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from aisp import pins
from aisp.experiment import hub
from aisp.provenance import data_path

PINNED, UNPINNED = "google/gemma-3-4b-it", "org/new"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def file(monkeypatch, tmp_path):
    """A copy of data/hub.json in which one more model has no commit; the real one is not written."""
    content = json.loads(data_path("hub.json").read_text(encoding="utf-8"))
    content["model"][UNPINNED] = {"revision": None, "found": "nowhere"}
    path = tmp_path / "hub.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(pins, "data_path", lambda name: tmp_path / name)
    pins.pins.cache_clear()
    yield path
    pins.pins.cache_clear()


@pytest.fixture
def newest(monkeypatch):
    """A hub on which every id has one commit; `asked` records what it was asked."""
    asked = []

    def newest(kind, id, revision=None):
        asked.append((kind, id, revision))
        return revision or COMMIT

    monkeypatch.setattr(hub, "newest", newest)
    return asked


def answered(kind):
    """An error that the hub's client makes of an answer."""
    return kind("no", response=SimpleNamespace(headers={}, request=None))


def test_a_new_file_of_parameters_is_checked_by_itself(tmp_path):
    source = hub.provenance.checkout() / "notebooks/params/cpu.yaml"
    shutil.copy(source, tmp_path / "a.yaml")
    assert hub.uses(tmp_path) == ([], [])
    (tmp_path / "b.yaml").write_text(
        "policy: org/new\ntemplate: User\nuse_safetensors: false\nreward: org/reward\n"
        f"judge: {tmp_path}\nengine: vllm\n"
    )
    (tmp_path / "c.yaml").write_text("policy: org/new\njudge: org/judge\n")
    policies, rewards = hub.uses(tmp_path)
    assert set(policies) == {("org/new", "User", False, "vllm"), ("org/new", None, True, "aisp")}
    assert rewards == ["org/judge", "org/reward"]
    found = hub.ids(tmp_path)
    assert [id for kind, id in found if kind == "model"] == ["org/judge", "org/new", "org/reward"]
    assert ("dataset", "stanfordnlp/SHP") in found


def test_every_id_that_is_used_has_its_place_in_the_file():
    for kind, id in hub.ids():
        assert id in pins.pins()[kind], (
            f"add {id} to data/hub.json: python -m aisp.experiment.hub pin"
        )


def test_the_state_of_a_pin_is_said(file, newest, monkeypatch):
    hub.check_pin("model", PINNED)
    assert newest == [("model", PINNED, pins.revision_of(PINNED))]
    told = f"{UNPINNED} is not pinned: newest is {COMMIT}; `python -m aisp.experiment.hub pin {UNPINNED}`"
    with pytest.raises(ValueError, match=told):
        hub.check_pin("model", UNPINNED)
    monkeypatch.setattr(hub, "newest", lambda kind, id, revision=None: COMMIT)
    with pytest.raises(ValueError, match=f"no full commit: it is {COMMIT}"):
        hub.check_pin("model", PINNED)

    def gone(kind, id, revision=None):
        raise answered(RepositoryNotFoundError)

    monkeypatch.setattr(hub, "newest", gone)
    with pytest.raises(ValueError, match=rf"{PINNED} cannot be had at its pin .* pin {PINNED}`"):
        hub.check_pin("model", PINNED)


def test_pin_fills_in_what_is_missing_and_moves_what_is_named(file, newest):
    before = json.loads(file.read_text())
    missing = [i for kind in pins.KINDS for i, p in before[kind].items() if p["revision"] is None]
    assert UNPINNED in missing
    assert sorted(hub.pin()) == sorted(f"{id}: not pinned -> {COMMIT}" for id in missing)
    after = json.loads(file.read_text())
    assert after["model"].pop(UNPINNED) == {"revision": COMMIT, "found": f"the hub, {date.today()}"}
    assert after["model"][PINNED] == before["model"][PINNED]
    assert pins.revision_of(UNPINNED) == COMMIT  # at once
    assert hub.pin() == []
    old = before["model"][PINNED]["revision"]
    assert hub.pin([PINNED]) == [f"{PINNED}: {old} -> {COMMIT}"]
    with pytest.raises(ValueError, match=r"org/none is used by no file in notebooks/params; known"):
        hub.pin(["org/none"])


def test_the_command_writes_or_says_why_not(file, newest, monkeypatch, capsys):
    hub.main(["pin", UNPINNED])
    assert capsys.readouterr().out == f"{UNPINNED}: not pinned -> {COMMIT}\n"
    with pytest.raises(SystemExit, match="error: org/none is used by no file"):
        hub.main(["pin", "org/none"])
    monkeypatch.setattr(hub, "unreachable", lambda: "no network")
    content = file.read_bytes()
    with pytest.raises(SystemExit, match="error: the Hugging Face hub is out of reach: no network"):
        hub.main(["pin"])
    assert file.read_bytes() == content


def test_what_counts_as_out_of_reach(monkeypatch):
    assert "offline mode is enabled" in hub.unreachable()  # tests are

    def answer(error):
        def newest(kind, id, revision=None):
            raise error

        monkeypatch.setattr(hub, "newest", newest)
        return hub.unreachable()

    assert answer(OSError("no such host.")) == "no such host"
    assert answer(answered(RepositoryNotFoundError)) is None


def test_a_gated_repository_says_what_opens_it(monkeypatch):
    from huggingface_hub import HfApi

    def refuse(self, id, repo_type):
        if id == PINNED:
            raise answered(GatedRepoError)

    monkeypatch.setattr(HfApi, "auth_check", refuse)
    assert hub.closed("model", "org/open") is None
    assert "accept its license" in hub.closed("model", PINNED)
    assert PINNED in hub.closed("model", PINNED) and "HF_TOKEN" in hub.closed("model", PINNED)
