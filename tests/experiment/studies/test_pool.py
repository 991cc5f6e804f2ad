"""Pools: what is stored of every candidate, runs that resume, and what they refuse to mix."""

import json

import numpy as np
import pytest
import torch

import aisp
from aisp.experiment.studies import pool
from aisp.methods import configure
from aisp.prompts import Prompt
from aisp.rewards import CallableReward
from aisp.rewards.ensemble import EmbeddedEnsemble, Ensemble
from aisp.rewards.head import EmbeddedReward, Head

PROMPTS = [Prompt(f"p{i}", text, "builtin") for i, text in enumerate(["Hi", "Why?", "A river."])]
METHODS = {
    "best": {"method": "best_of_n", "n": 3, "kappa": 2, "max_new_tokens": 5},
    "AISP": {"method": "aisp", "n": 3, "kappa": 2, "max_new_tokens": 5},
}
JUDGE = CallableReward(lambda prompt, text: float(len(set(text))), name="letters")


@pytest.fixture
def scorer(tiny):
    """A reward on the first layers of a small model, with two refits."""
    policy, g = tiny(), torch.Generator().manual_seed(0)
    w, *refits = torch.randn(3, policy.d, generator=g)
    reward = EmbeddedReward(policy, Head(w, 0.0, 1.0, 2, "mean"))
    centers = torch.tensor([0.1, -0.2], dtype=torch.float64)
    return EmbeddedEnsemble(reward, Ensemble(torch.stack(refits), centers, 1.0, 2, "mean"))


def computed(path, scorer, methods=METHODS, prompts=PROMPTS, judge=JUDGE, **more):
    return pool.run(path, methods, prompts, scorer, judge, progress=False, batch=2, **more)


def test_every_candidate_is_stored_and_nothing_of_its_text(scorer, tmp_path):
    path = tmp_path / "sub" / "pool.npz"
    runs = computed(path, scorer, seeds=[3])
    assert {run.key for run in runs} == {(x, p.id, 3) for x in METHODS for p in PROMPTS}
    for run in runs:
        prompt = next(p for p in PROMPTS if p.id == run.prompt)
        out = aisp.align(
            prompt, scorer.policy, scorer.reward, seed=3, progress=False, **METHODS[run.label]
        )
        texts = out.candidates["response"].tolist()
        np.testing.assert_array_equal(run.iteration, [0, 0, 0, 1, 1, 1])
        np.testing.assert_allclose(run.reward, out.candidates["reward"], rtol=1e-3, atol=1e-3)
        scores = scorer.score([prompt] * 6, texts)
        np.testing.assert_allclose(run.members, scores[:, 1:], rtol=2e-3, atol=2e-3)
        assert run.judged.tolist() == [len(set(text)) for text in texts]
        assert run.characters.tolist() == [len(text) for text in texts]
        tokens = scorer.policy.tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert run.tokens.tolist() == [len(x) for x in tokens]
        with np.load(path) as stored:
            texts_stored = [stored[name] for name in stored if stored[name].dtype.kind == "U"]
        assert {*np.concatenate(texts_stored)} == {*METHODS, *(p.id for p in PROMPTS)}
    note = json.loads((tmp_path / "sub" / "pool.npz.json").read_text())
    assert note["labels"]["best"]["exchangeable"] and not note["labels"]["AISP"]["exchangeable"]
    assert (
        note["labels"]["best"]["config"]["n"] == 3 and note["labels"]["best"]["judge"] == "letters"
    )
    assert set(note["prompts"]) == {p.id for p in PROMPTS} and len(note["runs"]) == 1


def test_a_run_that_was_stopped_goes_on_and_repeats_nothing(scorer, tmp_path, monkeypatch):
    path, whole = tmp_path / "pool.npz", tmp_path / "whole.npz"
    computed(whole, scorer)
    calls, write = [], pool.write

    def stopping(*args):
        write(*args)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pool, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        computed(path, scorer)
    assert len(pool.read(path)) == 3  # a batch of 2 and one of 1
    monkeypatch.setattr(pool, "write", write)
    computed(path, scorer)
    assert path.read_bytes() == whole.read_bytes()
    assert len(json.loads(path.with_name("pool.npz.json").read_text())["runs"]) == 2
    monkeypatch.setattr(pool, "align", None)
    assert len(computed(path, scorer)) == 6  # all is there
    assert len(json.loads(path.with_name("pool.npz.json").read_text())["runs"]) == 2


def test_an_interrupt_within_a_run_leaves_no_part_of_it(scorer, tmp_path, monkeypatch):
    """`align` itself returns what it has found after an interrupt."""
    path, calls, score = tmp_path / "pool.npz", [], scorer.score

    def impatient(*args):
        calls.append(1)
        if len(calls) == 4:  # the second iteration of the second batch
            raise KeyboardInterrupt
        return score(*args)

    monkeypatch.setattr(scorer, "score", impatient)
    methods = {"AISP": METHODS["AISP"]}
    with pytest.raises(KeyboardInterrupt):
        computed(path, scorer, methods)
    runs = pool.read(path)
    assert len(runs) == 2 and all(len(run.reward) == 6 for run in runs)
    assert len(computed(path, scorer, methods)) == 3


def test_what_was_made_otherwise_is_not_mixed(scorer, tmp_path):
    path = tmp_path / "pool.npz"
    methods = {"best": METHODS["best"]}
    computed(path, scorer, methods, PROMPTS[:1])
    hotter = {"best": METHODS["best"] | {"temperature": 0.5}}
    with pytest.raises(ValueError, match="candidates of best made with another config"):
        computed(path, scorer, hotter, PROMPTS)
    other = CallableReward(lambda prompt, text: 0.0, name="nothing")
    with pytest.raises(ValueError, match=r"made with another judge: .'letters'., not .'nothing'."):
        computed(path, scorer, methods, PROMPTS, judge=other)
    changed = [Prompt("p0", "another question", "builtin")]
    with pytest.raises(ValueError, match="candidates of the prompts made with another p0"):
        computed(path, scorer, methods, changed)
    path.with_name("pool.npz.json").unlink()
    with pytest.raises(ValueError, match=r"pool\.npz\.json is missing"):
        computed(path, scorer, methods, PROMPTS)


def test_a_file_that_is_no_pool_is_named(tmp_path):
    path = tmp_path / "pool.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"pool\.npz holds no pool"):
        pool.read(path)
    np.savez(path, label=np.array(["a"]))
    with pytest.raises(ValueError, match=r"pool\.npz holds no pool"):
        pool.read(path)


def test_which_candidates_may_be_taken_in_any_order():
    orders = {
        ("best_of_n", ()): True,
        ("aisp", ()): False,
        ("aisp", (("adapt", False),)): True,
        ("misvo", ()): False,
    }
    for (name, more), order in orders.items():
        assert pool.exchangeable(configure(name, **dict(more))) is order


def test_a_pool_of_the_notebook_is_small(tmp_path):
    """32 prompts, two methods, 512 candidates each, in random numbers, which compress worst."""
    rng, runs = np.random.default_rng(0), []
    for label in pool.LABELS:
        for i in range(32):
            reward, judged, *members = rng.normal(size=(12, 512))
            counts = rng.integers(1, 48, size=512)
            members = np.stack(members, 1)
            runs.append(
                pool.Candidates(
                    label,
                    f"p{i}",
                    0,
                    np.arange(512) // 16,
                    reward,
                    judged,
                    counts,
                    5 * counts,
                    members,
                )
            )
    pool.write(tmp_path / "pool.npz", runs)
    assert (tmp_path / "pool.npz").stat().st_size < 3_000_000
    again = pool.read(tmp_path / "pool.npz")[40]
    assert again.key == runs[40].key and again.members.shape == (512, 10)
    assert (again.members.dtype, again.reward.dtype) == (np.float16, np.float32)
    np.testing.assert_allclose(again.members, runs[40].members, atol=2e-3)
    np.testing.assert_allclose(again.reward, runs[40].reward, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--seeds", "0,0"], "seeds is '0,0'"),
        (["--rows", "KAD"], "a row is 'KAD'"),
        (["--limit", "0"], "limit is 0"),
    ],
)
def test_the_command_says_what_is_wrong(given, message, capsys):
    with pytest.raises(SystemExit):
        pool.main(given)
    assert message in capsys.readouterr().err
