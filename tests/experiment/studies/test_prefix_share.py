"""Where in time the signal is: the estimate against a known answer, and what its pairs share."""

import numpy as np
import pandas as pd
import pytest
import torch

from aisp.engine.rollout import rollout
from aisp.experiment.studies import prefix_share
from aisp.prompts import Prompt
from aisp.rewards import CallableReward
from aisp.state import generator

PROMPTS = [
    Prompt(f"p{i}", [{"role": "user", "content": text}], "builtin")
    for i, text in enumerate(["Hi", "Name a river."])
]


def table_of(function, *, prompts=4, groups=4000, T=8, steps=(1, 2, 4), seed=0):
    """What `shared_noise` would give for a reward of the noise itself, one number per step."""
    rng = np.random.default_rng(seed)
    parts = []
    for p in range(prompts):
        base = rng.normal(size=(groups, T))
        rows = {"prompt": f"p{p}", "group": range(groups)}
        for t in steps:
            rows[str(t)] = function(np.c_[base[:, :t], rng.normal(size=(groups, T - t))]) + p
        parts.append(pd.DataFrame(rows | {str(T): function(base) + p}))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("kind", ["linear", "interaction"])
def test_shares_are_those_of_a_known_reward(kind):
    """r = sum_t a_t v_t: sum_{s<=t} a_s^2 / sum a^2. r = v_1 v_2 + v_8: nothing before step 2."""
    a = np.array([3.0, 0, 1, 0, 0, 2, 0, 1])
    functions = {"linear": lambda v: v @ a, "interaction": lambda v: v[:, 0] * v[:, 1] + v[:, 7]}
    exact = {"linear": [0, 9 / 15, 9 / 15, 10 / 15, 1], "interaction": [0, 0, 0.5, 0.5, 1]}
    table = table_of(functions[kind])
    found = prefix_share.explained(table)
    assert found["t"].tolist() == [0, 1, 2, 4, 8]
    # A correlation over 16,000 groups has an error of 1/126 at most, for one pair of members.
    assert (found["share"] - exact[kind]).abs().max() < 4 / 126
    assert (found["low"] <= found["share"]).all() and (found["share"] <= found["high"]).all()
    np.testing.assert_allclose((found["per_step"] * found["t"].diff())[1:].sum(), 1)
    one, two = prefix_share.sentences(found, table)
    assert "by step 4, of 8 steps (4 prompts, 16000 groups of 4 responses" in one
    assert "steps 5 to 8" in two and "12.5% would be an equal part" in two


def test_few_groups_are_as_right_on_average_as_many():
    """Unbiased: the mean over 150 tables of 4 groups, within 5 standard errors."""
    a = np.array([3.0, 0, 1, 0, 0, 2, 0, 1])
    found = []
    for seed in range(150):
        table = table_of(lambda v: v @ a, prompts=1, groups=4, seed=seed)
        columns = ["1", "2", "4", "8"]
        covariance = np.cov(table[columns].T)
        shares = prefix_share.explained(table, draws=10).set_index("t")["share"]
        found.append(shares[[1, 4]] * covariance.diagonal().mean())  # the covariances themselves
    found = np.array(found)
    error = (found.mean(0) - [9, 10]) / (found.std(0) / 150**0.5)
    assert np.abs(error).max() < 5


def test_members_share_the_perturbations_of_their_first_steps(tiny, monkeypatch):
    """Greedy texts that share the first t perturbations begin with the same t tokens."""
    policy, seen = tiny(), []

    def watched(*args, **options):
        out = rollout(*args, **options)
        seen.append((out.tokens[0], options["V"][0]))
        return out

    monkeypatch.setattr(prefix_share, "rollout", watched)
    own = dict(steps=(1, 3), groups=6, max_new_tokens=5, sigma=1.0)
    reward = CallableReward(lambda prompt, text: float(len(set(text))))
    table = prefix_share.shared_noise(policy, reward, PROMPTS, **own, rows=4)
    assert table.columns.tolist() == ["prompt", "group", "1", "3", "5"] and len(table) == 12
    assert max(len(tokens) for tokens, _ in seen) == 4
    for p in range(2):
        half = seen[p * len(seen) // 2 : (p + 1) * len(seen) // 2]
        tokens, V = (torch.cat(x).unflatten(0, (3, 6)) for x in zip(*half, strict=True))
        for k, t in enumerate((1, 3)):
            assert torch.equal(tokens[k, :, :t], tokens[2, :, :t])
            assert not torch.equal(tokens[k], tokens[2])
            assert torch.equal(V[k, :, :t], V[2, :, :t])
            rest = torch.corrcoef(torch.stack([V[k, :, t:].flatten(), V[2, :, t:].flatten()]))
            assert rest[0, 1].abs() < 4 / V[k, :, t:].numel() ** 0.5  # drawn anew
        texts = policy.decode([y.tolist() for y in tokens.flatten(0, 1)])
        rewards = torch.tensor([float(len(set(x))) for x in texts]).view(3, 6)
        np.testing.assert_allclose(table[table["prompt"] == f"p{p}"][["1", "3", "5"]], rewards.T)
    again = prefix_share.shared_noise(policy, reward, PROMPTS, **own)
    pd.testing.assert_frame_equal(again, table)


def test_rewards_of_prefixes_are_those_of_their_texts(tiny):
    policy, T = tiny(), 5
    reward = CallableReward(lambda prompt, text: float(len(set(text))) + len(text) / 8)
    table = prefix_share.prefix_rewards(
        policy, reward, PROMPTS, steps=(1, 3), samples=4, max_new_tokens=T, sigma=1.0, seed=3
    )
    assert table.columns.tolist() == ["prompt", "group", "1", "3", "5"] and len(table) == 8
    for prompt in PROMPTS:
        g = generator(3, prompt, 0, torch.device("cpu"))
        V = torch.randn(1, 4, T, policy.d, generator=g)
        out = rollout(policy, [policy.prefix(prompt)], 4, T, V=V)
        rows = table[table["prompt"] == prompt.id].reset_index()
        for i, (y, end) in enumerate(zip(out.tokens[0], out.lengths[0], strict=True)):
            for t in (1, 3, 5):
                (text,) = policy.decode([y[: min(t, int(end))].tolist()])
                assert rows[str(t)][i] == len(set(text)) + len(text) / 8


def test_what_credit_does_to_the_spread():
    """r = 2 a + b + e, known after two steps as 3 a, then as 2 a + b; prompts differ in their mean."""
    rng, parts = np.random.default_rng(0), []
    for p in range(3):
        a, b, e = rng.normal(size=(3, 200_000))
        rows = {"prompt": f"p{p}", "group": range(len(a)), "2": 3 * a, "4": 2 * a + b + 5 * p}
        parts.append(pd.DataFrame(rows | {"8": 2 * a + b + e - 7 * p}))
    found = prefix_share.credit(pd.concat(parts))
    assert found.index.tolist() == [3, 5]
    np.testing.assert_allclose(found["credit"], [3 / 6, 1 / 6], atol=0.005)
    np.testing.assert_allclose(found["best c"], [2 / 3, 1], atol=0.005)
    np.testing.assert_allclose(found["with c"], [2 / 6, 1 / 6], atol=0.005)
    said = prefix_share.credit_sentence(found)
    assert (
        "0.50 at step 3, 0.17 at step 5. It is larger than without credit at 0 of 2 steps" in said
    )
    found["credit"] += 0.6
    assert "at 1 of 2 steps measured, up to step 3. With a" in prefix_share.credit_sentence(found)


def test_the_tables_are_computed_once(tiny, monkeypatch, tmp_path):
    places = lambda name, profile: tmp_path / "new" / f"{name}.csv"  # noqa: E731
    monkeypatch.setattr(prefix_share, "path_of", places)
    reward = CallableReward(lambda prompt, text: float(len(text)), name="length")
    first = prefix_share.kept("smoke", tiny(), reward, max_new_tokens=3)
    assert [list(x.columns) for x in first] == [["prompt", "group", "1", "2", "3"]] * 2
    assert [len(x) for x in first] == [4, 4]
    monkeypatch.setattr(prefix_share, "rollout", None)  # not called again
    second = prefix_share.kept("smoke", tiny(), reward, max_new_tokens=3)
    for one, again in zip(first, second, strict=True):
        pd.testing.assert_frame_equal(one, again)
