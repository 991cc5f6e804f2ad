"""Curves of rules over pools: against enumeration, in order and in any order; and their table."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from aisp.experiment.studies import pool, selection
from aisp.intervals import nested_bootstrap

FEW = {
    selection.BEST: selection.Rule(),
    "soft": selection.Rule(lam=0.5),
    "pessimism": selection.Rule(beta=0.2),
    "ensemble": selection.Rule(k=2.0),
    "Poisson": selection.Rule(poisson=True),
}


def candidates(label="A", prompt="p0", seed=0, S=6, K=3, n=2):
    rng = np.random.default_rng([seed, len(label), int(prompt[1:])])
    reward = rng.normal(size=S)
    return pool.Candidates(
        label,
        prompt,
        seed,
        iteration=np.arange(S) // n,
        reward=reward,
        judged=-reward + rng.normal(size=S),
        tokens=np.arange(S) + 3,
        characters=np.arange(S) + 10,
        members=reward[:, None] + rng.normal(size=(S, K)),
    )


def returned(name, run, subset, seen):
    """Expected reward and judge's score of one rule on some candidates; `seen` center the ensemble's members."""
    r = run.reward[list(subset)]
    if name == "soft":
        p = np.exp(r / 0.5) / np.exp(r / 0.5).sum()
    elif name == "pessimism":
        low, high = r.min() - 0.2, r.max()
        for _ in range(200):
            c = (low + high) / 2
            low, high = (c, high) if (np.maximum(0, r - c) / 0.2).mean() > 1 else (low, c)
        p = np.maximum(0, r - c) / 0.2 / len(r)
    else:
        members = run.members - run.members[list(seen)].mean(0)
        members = members[list(subset)]
        score = members.mean(1) - 2 * members.std(1, ddof=1) if name == "ensemble" else r
        p = (score == score.max()) / (score == score.max()).sum()
    return p @ r, p @ run.judged[list(subset)]


@pytest.mark.parametrize("any_order", [True, False])
def test_curves_are_means_over_subsets_or_the_first_n(any_order):
    """Best-of-n and the ensemble exactly; others within the noise of 16 permutations."""
    run = candidates()
    found = selection.curves([run], {"A": any_order}, FEW).set_index(["rule", "samples"])
    assert set(found.index.get_level_values("samples")) == {1, 2, 4, 6}
    for name in ("best-of-n", "soft", "pessimism", "ensemble"):
        for n in (1, 2, 4, 6):
            subsets = list(combinations(range(6), n)) if any_order else [range(n)]
            seen = range(6) if any_order else range(n)
            of_subsets = [returned(name, run, s, seen) for s in subsets]
            exact, values = np.mean(of_subsets, axis=0), np.std(of_subsets, axis=0)
            sampled = any_order and name in ("soft", "pessimism") and n not in (1, 6)
            bound = 4 * values / 16**0.5 if sampled else np.full(2, 1e-9)
            row = found.loc[(name, n)]
            assert (abs(np.array([row["reward"], row["judged"]]) - exact) < bound).all(), (name, n)
    assert ("Poisson", 4) not in found.index  # n would often exceed 6
    assert (("Poisson", 1) in found.index) == any_order
    assert (found["label"] == "A").all() and (found["prompt"] == "p0").all()


def test_best_of_poisson_stays_within_the_pool():
    run = candidates(S=64)
    found = selection.curves([run], {"A": True}, FEW).set_index(["rule", "samples"])
    there = {n for rule, n in found.index if rule == "Poisson"}
    assert there == {1, 2, 4, 8, 16, 32}
    rewards = found["reward"]
    assert rewards["Poisson", 1] == pytest.approx(run.reward.mean())
    assert rewards["best-of-n", 4] < rewards["Poisson", 8] < rewards["best-of-n", 16]


def test_budgets_can_be_named_and_larger_ones_than_the_pool_are_left_out():
    found = selection.curves([candidates()], {"A": True}, FEW, budgets=[3, 6, 128])
    assert sorted(found["samples"].unique()) == [3, 6]


def test_means_weigh_prompts_equally_whatever_their_seeds():
    runs = [candidates(prompt="p0"), candidates(prompt="p0", seed=1), candidates(prompt="p1")]
    rows = selection.curves(runs, {"A": True}, FEW, budgets=[6])
    mean = selection.means(rows).set_index("rule").loc["best-of-n"]
    best = [run.reward.max() for run in runs]
    assert mean["reward"] == pytest.approx(((best[0] + best[1]) / 2 + best[2]) / 2)


def test_the_table_has_nested_intervals_and_differences_within_a_run():
    runs = [candidates(prompt=f"p{i}", seed=s) for i in range(5) for s in (0, 1)]
    rows = selection.curves(runs, {"A": False}, FEW)
    table = selection.table(rows, "A", 6)
    assert list(table.index) == ["best-of-n", "soft", "pessimism", "ensemble"]
    assert list(table) == ["reward", "judge", "reward minus best-of-n", "judge minus best-of-n"]
    own = rows[rows["samples"] == 6].pivot_table(
        index=["prompt", "seed"], columns="rule", values="judged"
    )
    gap = own["soft"] - own["best-of-n"]
    exact = nested_bootstrap([x.tolist() for _, x in gap.groupby(level="prompt")])
    cell = f"{exact.mean:+.2f} [{exact.low:+.2f}, {exact.high:+.2f}]"
    assert table["judge minus best-of-n"]["soft"] == cell
    assert table["reward"]["best-of-n"].startswith(
        f"{np.mean([run.reward.max() for run in runs]):.2f} ["
    )
    assert table["judge minus best-of-n"]["best-of-n"] == ""
    with pytest.raises(
        ValueError,
        match=r"no rows of 'A' at 5 samples; there are labels A, and of this one \[1, 2, 4, 6\]",
    ):
        selection.table(rows, "A", 5)


def test_sentences_say_what_the_intervals_of_the_table_support():
    runs = [candidates(prompt=f"p{i}") for i in range(5)]
    rows = selection.curves(runs, {"A": False}, FEW)
    rows.loc[rows["rule"] == "soft", "judged"] += 50
    table = selection.table(rows, "A", 6)
    by_reward, by_judge = selection.sentences(rows, "A", 6)
    assert f"above 0 for soft ({table['judge minus best-of-n']['soft']})" in by_judge
    assert f"ensemble ({table['reward minus best-of-n']['ensemble']})" in by_reward
    assert by_judge.startswith("By the judge, on the candidates of A, **another rule minus")


def test_curves_are_stored_beside_their_pool_and_read_again(tmp_path, monkeypatch):
    path = tmp_path / "pool.npz"
    with pytest.raises(
        FileNotFoundError, match=r"no pool at .*python -m aisp\.experiment\.studies\.pool"
    ):
        selection.stored_curves(path)
    pool.write(path, [candidates(), candidates("AISP")])
    note = {"labels": {"A": {"exchangeable": True}, "AISP": {"exchangeable": False}}}
    (tmp_path / "pool.npz.json").write_text(json.dumps(note))
    first = selection.stored_curves(path, FEW)
    expected = selection.curves(pool.read(path), {"A": True, "AISP": False}, FEW)
    pd.testing.assert_frame_equal(first, expected, check_exact=True)
    monkeypatch.setattr(selection, "curves", lambda *given: pytest.fail("computed again"))
    pd.testing.assert_frame_equal(selection.stored_curves(path, FEW), first)


def test_every_rule_of_the_notebook_is_one_rule():
    run = candidates(S=32, K=4)
    for rule in selection.RULES.values():
        assert sum(x not in (None, False) for x in rule) <= 1
        reward, members = (torch.from_numpy(x) for x in (run.reward, run.members))
        p = selection.probabilities(rule, reward, members, 8, any_order=True)
        assert p.shape == (32,) and abs(p.sum() - 1) < 1e-9
