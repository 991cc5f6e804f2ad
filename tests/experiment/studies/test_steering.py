"""How far AISP and MISVO move the model: the KL against another way to it, trials and the choice."""

import pandas as pd
import pytest
import torch
from tiny import reward

import aisp
from aisp import metrics
from aisp.engine.decoding import Decoding
from aisp.engine.rollout import rollout
from aisp.experiment.studies import steering
from aisp.prompts import load_prompts
from aisp.rewards import CallableReward

BUDGET = {"n": 3, "kappa": 2, "max_new_tokens": 4}


@pytest.mark.parametrize("name", ["llama", "gemma3"])  # gemma3 caps its logits
def test_the_kl_is_that_of_the_metrics_on_the_reference_responses(tiny, name):
    policy, n, T = tiny(name), 3, 5
    g = torch.Generator().manual_seed(0)
    U = 0.5 * torch.randn(2, T - 1, policy.d, generator=g)
    texts = ["Hi", "Name a river."]
    own = dict(decoding=Decoding(1.0), keep_prelogits=True)
    sources = [torch.Generator().manual_seed(s) for s in (1, 2)]
    out = rollout(policy, [policy.prefix(x) for x in texts], n, T, generators=sources, **own)
    got = steering.steered_kl(policy, out, U)
    for row, text in enumerate(texts):
        tokens = [y[:k].tolist() for y, k in zip(out.tokens[row], out.lengths[row], strict=True)]
        exact = metrics.kl_to_base(policy, [text] * n, tokens, U=U[row])
        assert got[row].item() == pytest.approx(exact.mean().item(), rel=1e-4)
        assert exact.mean() > 0.1
    assert not steering.steered_kl(policy, out, torch.zeros_like(U)).any()


TRIED = pd.DataFrame(
    [
        {"label": x, "prompt": p, "reward": 2.0 if x == "MISVO, step 1" else 1.0}
        | {"u": 2000.0 if x == "MISVO, step 5" else 1.0, "kl": 7.0}
        | {"last": 3.0 if x == "MISVO, no penalty, step 5" else 0.5}
        for x in steering.trials(BUDGET)
        for p in "ab"
    ]
)


def fake(**values):
    """One row per label and prompt; each number is a mean, with prompts a little around it."""
    rows = []
    for label in steering.settings(BUDGET, 1.0):
        own = dict(u=1.0, kl=2.0, gaussian=float("nan"), reward=3.0, last=0.5, seconds=4.0)
        own |= values.get(label.replace(" ", "_").replace(",", ""), {})
        for p, off in enumerate((-0.01, 0, 0.01)):
            rows.append({"label": label, "prompt": f"p{p}"} | {k: v + off for k, v in own.items()})
    return pd.DataFrame(rows)


def test_the_claim_in_sentences():
    found = fake(AISP=dict(u=30.0, kl=60.0, gaussian=900.0, reward=2.0, last=0.5), MISVO={})
    said = [x if isinstance(x, str) else x.sentence() for x in steering.sentences(found)]
    assert "**AISP** ends with a U 30 times [29.7, 30.3] as long as that of MISVO" in said[0]
    assert "prefixes 30 times [29.9, 30.1] as large" in said[0]
    assert "**AISP** is below MISVO by 1.00" in said[1]
    assert "In the mean of the last samples, **AISP** is not distinguishable" in said[2]
    assert said[-2] == "Of the claim: AISP as published steers farther, and finds less, here."
    assert "MISVO takes 1.00 times the processor time of AISP" in said[-1]
    for best, finds in ((4.0, "finds more, not less"), (3.0, "is not shown to find less")):
        other = steering.sentences(fake(AISP=dict(reward=best)))[-2]
        assert (
            other
            == f"Of the claim: AISP as published is not shown to steer farther, and {finds}, here."
        )
    shown = steering.table(found)
    assert shown.loc["AISP", "KL of the Gaussian (nats)"] == "900 [900, 900]"
    assert shown.loc["MISVO", "KL of the Gaussian (nats)"] == ""
    assert shown.loc["AISP", "length of U"] == "30.0 [30.0, 30.0]"


def test_the_step_is_that_of_the_highest_mean():
    planned = steering.trials(BUDGET)
    assert len(planned) == 9 and planned["MISVO, step 5"]["step_size"] == 5
    assert planned["MISVO, KL penalty, step 1"]["regularization"] == "kl"
    assert steering.chosen_steps(TRIED)["MISVO"] == 1
    assert list(steering.chosen_steps(TRIED.assign(reward=0.0)).values()) == [0.1] * 3  # the first
    assert steering.settings(BUDGET, 5.0)["MISVO"]["step_size"] == 5
    one, two, three = steering.trial_sentences(TRIED)
    assert one.startswith("Steps chosen, of 0.1, 1, 5: 1 for MISVO, 0.1 for MISVO, KL penalty,")
    assert "3.00 at a KL of 7.0 for MISVO, no penalty, step 5." in two and two.count(";") == 2
    assert three == "u grows to a length over 1,000 in: MISVO, step 5."
    assert len(steering.trial_sentences(TRIED.assign(u=1.0))) == 2


def test_what_is_measured_is_where_the_run_ended(tiny, monkeypatch, tmp_path):
    """Both tables at toy size, read again the second time; and one row by hand."""
    places = lambda name, profile: tmp_path / "new" / f"{name}.jsonl"  # noqa: E731
    monkeypatch.setattr(steering, "records_path", places)
    scorer = CallableReward(reward, name="tiny reward")
    tried, found = steering.kept("smoke", tiny(), scorer, BUDGET)
    assert len(tried) == 9 and len(found) == 2
    assert set(tried["prompt"]).isdisjoint(found["prompt"])
    prompt = load_prompts("builtin", split="dev", limit=1)[0]
    methods = steering.settings(BUDGET, steering.chosen_steps(tried)["MISVO"])
    for row in found.itertuples():
        own = methods[row.label]
        out = aisp.align(prompt, tiny(), scorer, seed=0, progress=False, **own)
        assert row.reward == pytest.approx(out.reward, abs=1e-4)
        assert row.last == pytest.approx(out.history["reward_mean"].iloc[-1], abs=1e-4)
        length = out.U.norm().item()
        assert row.u == pytest.approx(length, abs=1e-3) and row.u > 0 and row.kl > 0
        if "sigma" in own:
            assert row.gaussian == pytest.approx(length**2 / (2 * own["sigma"] ** 2), rel=1e-3)
    assert found["gaussian"].notna().sum() == 1
    monkeypatch.setattr(steering, "measured", None)  # not called again
    for again, first in zip(
        steering.kept("smoke", tiny(), scorer, BUDGET), (tried, found), strict=True
    ):
        pd.testing.assert_frame_equal(again, first)
