"""Records on disk: complete, resumable, and summarized correctly."""

import json

import numpy as np
import pytest

import aisp
from aisp import experiment

SMALL = dict(n=3, kappa=2, max_new_tokens=5)
METHODS = {
    "best-of-n": {"method": "best_of_n", **SMALL},
    "AISP": {"method": "aisp", "sigma": 1.0, **SMALL},
}


def reward(prompt, response):
    return float(len(set(response)))


def go(path, policy, limit=3, methods=METHODS, reward=reward, **more):
    prompts = aisp.load_prompts("builtin", split="test", limit=limit)
    return experiment.run(path, methods, prompts, policy, reward, progress=False, batch=2, **more)


def test_records_hold_what_align_returns(tiny, tmp_path):
    path = tmp_path / "deep" / "e.jsonl"
    table = go(path, tiny(), command="make it")
    assert len(table) == 6 and len(path.read_text().splitlines()) == 6
    prompts = aisp.load_prompts("builtin", split="test", limit=3)
    out = aisp.align(prompts[1], tiny(), reward, sigma=1.0, progress=False, **SMALL)
    row = table[(table["label"] == "AISP") & (table["prompt"] == prompts[1].id)].iloc[0]
    assert (row.reward, row.response, row.samples) == (out.reward, out.response, 6)
    assert row.prompt_text == prompts[1].text and row.config["sigma"] == 1.0
    assert row.history["reward_best"] == out.history["reward_best"].tolist()
    assert row.tokens == out.history["tokens"].sum() and not row.interrupted
    runs = json.loads((tmp_path / "deep" / "e.runs.json").read_text())
    assert runs[row.run]["command"] == "make it" and runs[row.run]["packages"]["torch"]


def test_text_of_other_prompt_sets_is_not_kept(tiny, tmp_path):
    prompt = aisp.prompts.Prompt("shp-1", "A private question", "shp")
    experiment.run(tmp_path / "e.jsonl", METHODS, [prompt], tiny(), reward, progress=False)
    assert "private" not in (tmp_path / "e.jsonl").read_text()


def test_a_second_run_computes_only_what_is_missing(tiny, tmp_path):
    path = tmp_path / "e.jsonl"
    go(path, tiny(), limit=2)
    first = path.read_text()

    calls = []
    table = go(path, tiny(), limit=3, reward=lambda p, r: calls.append(1) or reward(p, r))
    assert path.read_text().startswith(first) and len(table) == 6
    assert len(calls) == 2 * 6
    calls.clear()
    go(path, tiny(), limit=3, reward=lambda p, r: calls.append(1) or reward(p, r))
    assert calls == []


def test_another_configuration_under_the_same_label_is_refused(tiny, tmp_path):
    path = tmp_path / "e.jsonl"
    go(path, tiny(), limit=1)
    changed = {"AISP": {**METHODS["AISP"], "sigma": 2.0}}
    with pytest.raises(ValueError, match=r"holds 'AISP' under another configuration"):
        go(path, tiny(), limit=1, methods=changed)


def test_an_interrupt_keeps_what_there_is_and_the_next_run_finishes(tiny, tmp_path):
    path, calls = tmp_path / "e.jsonl", []

    def impatient(prompt, response):
        calls.append(1)
        if len(calls) == 17:  # second iteration of the first batch of two prompts is 7 to 12
            raise KeyboardInterrupt
        return reward(prompt, response)

    partial = go(path, tiny(), reward=impatient, methods={"AISP": {**METHODS["AISP"], "kappa": 4}})
    assert len(partial) == 2 and partial["interrupted"].all()
    assert (partial["samples"] == 6).all()
    whole = go(path, tiny(), methods={"AISP": {**METHODS["AISP"], "kappa": 4}})
    assert len(whole) == 3 and not whole["interrupted"].any() and (whole["samples"] == 12).all()


def test_a_failure_keeps_the_records_before_it(tiny, tmp_path):
    path, calls = tmp_path / "e.jsonl", []

    def failing(prompt, response):
        calls.append(1)
        if len(calls) > 12:  # the second batch
            raise RuntimeError("no more")
        return reward(prompt, response)

    with pytest.raises(aisp.RewardError, match="no more"):
        go(path, tiny(), reward=failing)
    assert len(experiment.load(path)) == 2


def test_a_torn_line_names_file_and_line(tiny, tmp_path):
    path = tmp_path / "e.jsonl"
    go(path, tiny(), limit=1)
    with open(path, "a") as file:
        file.write('{"label": "AI')
    with pytest.raises(ValueError, match=r"e\.jsonl, line 3 is not JSON"):
        experiment.load(path)


def table(rewards):
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "label": label,
                "prompt": f"p{i}",
                "seed": seed,
                "reward": float(r),
                "samples": 4,
                "tokens": 8,
                "seconds": 1.0,
                "prompt_text": "x",
            }
            for label, by_seed in rewards.items()
            for seed, values in enumerate(by_seed)
            for i, r in enumerate(values)
        ]
    )


def test_summary_is_the_mean_over_prompts_with_its_interval():
    values = np.random.default_rng(0).normal(1.0, 2.0, 100)
    out = experiment.summary(table({"A": [values, values + 2], "B": [values * 0]}))
    assert out.loc["A", "prompts"] == 100  # two seeds do not make 200
    np.testing.assert_allclose(out.loc["A", "reward"], values.mean() + 1)
    half = 1.96 * values.std(ddof=1) / 10
    np.testing.assert_allclose(out.loc["A", "high"] - out.loc["A", "low"], 2 * half, rtol=0.06)
    assert out.loc["B", ["reward", "low", "high"]].tolist() == [0, 0, 0]


def test_paired_differences_and_wins():
    out = experiment.paired(table({"A": [[3, 1, 2, 5]], "B": [[1, 1, 3, 1]]}), "A", "B")
    assert out["difference"] == pytest.approx(5 / 4) and out["prompts"] == 4
    assert out["wins"] == pytest.approx((2 + 0.5) / 4)
    assert out["low"] < 5 / 4 < out["high"]


def test_profiles_and_their_overrides():
    assert experiment.settings("smoke")["n"] == 4
    assert experiment.settings("smoke", n=9, kappa=None)["n"] == 9
    assert experiment.settings("smoke", kappa=None) == experiment.settings("smoke")
    with pytest.raises(ValueError, match="unknown profile 'huge'; known: smoke, cpu, gpu, paper"):
        experiment.settings("huge")
    with pytest.raises(ValueError, match=r"no setting \['m'\]; known: n_prompts"):
        experiment.settings("smoke", m=1)


def test_show_prints_the_tables(tiny, tmp_path, capsys):
    go(tmp_path / "e.jsonl", tiny(), limit=2)
    experiment.main(["show", str(tmp_path / "e.jsonl")])
    printed = capsys.readouterr().out
    assert "best-of-n" in printed and "AISP" in printed and "seconds" in printed
    with pytest.raises(SystemExit):
        experiment.main(["show", str(tmp_path / "none.jsonl")])
