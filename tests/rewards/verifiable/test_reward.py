"""The reward: shares, strict and loose, its table of parts, threads, and every method with it."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import aisp
from aisp import experiment
from aisp.methods import available
from aisp.prompts import Prompt, load_prompts
from aisp.rewards import Reward, RewardError, VerifiableReward, load_reward, score
from aisp.rewards.verifiable import kinds

NO_COMMA, LOWER = "punctuation:no_comma", "change_case:english_lowercase"
SMALL = dict(n=4, kappa=3, max_new_tokens=6)


def prompt(*ids, name="p1", text="Hi", kwargs=None, **more):
    checks = {"instruction_id_list": list(ids), "kwargs": kwargs or [{} for _ in ids]}
    return Prompt(name, text, "set", checks=checks, **more)


BOTH = prompt(NO_COMMA, LOWER)
BULLETS = prompt(
    "detectable_format:number_bullet_lists", name="p2", kwargs=[{"num_bullets": 1}], text="List"
)


def test_the_share_of_instructions_that_hold():
    reward = load_reward("verifiable")
    assert isinstance(reward, VerifiableReward) and not reward.scores_prefixes
    texts = ["a b", "A b", "A, b", " ", "* a"]
    values = reward.score([BOTH] * 4 + [BULLETS], texts)
    assert values.dtype == torch.float64 and values.tolist() == [1.0, 0.5, 0.0, 0.0, 1.0]


def test_loose_takes_any_variant_for_each_instruction():
    strict, loose = load_reward("verifiable"), load_reward("verifiable-loose")
    assert (strict.name, loose.name) == ("verifiable", "verifiable-loose")
    text = "Sure, here it is\nall small\nBye"
    assert strict.score([BOTH], [text]).item() == 0 and loose.score([BOTH], [text]).item() == 1
    assert loose.score([BOTH], ["Sure, no"]).item() == loose.score([BOTH], ["\n \n"]).item() == 0


def test_the_parts_are_columns_and_missing_where_there_are_fewer():
    table = VerifiableReward().parts([BOTH, BULLETS], ["Sure,\na b", "* a\n* b"])
    assert list(table) == [
        *("strict", "loose", "part_1", "strict_1", "loose_1", "part_2", "strict_2", "loose_2")
    ]
    first, second = table.iloc[0], table.iloc[1]
    assert not first["strict"] and first["loose"] and first["part_2"] == LOWER
    assert (first["strict_1"], first["loose_1"]) == (False, True)
    assert (second["strict"], second["loose"], second["loose_1"]) == (False, True, True)
    assert table["strict_2"].isna().tolist() == [False, True]
    assert table["strict"].mean() == 0 and table["loose"].mean() == 1


def test_another_kind_of_checks_is_one_entry(monkeypatch):
    def share(checks, response):
        return 0.5 * response.count(checks["answer"])

    def ready(checks):
        if not checks["answer"]:
            raise ValueError("answer is empty")

    monkeypatch.setitem(kinds.KINDS, "answer", kinds.graded("answer", share, ready, at_once=3))
    reward, ask = (
        VerifiableReward(loose=True),
        Prompt("q", "6 x 7?", "set", checks={"answer": "42"}),
    )
    texts = ["42", "", "42 and 42", "42"]
    assert reward.score([ask, ask, ask, BOTH], texts).tolist() == [0.5, 0.0, 1.0, 0.5]
    assert reward.parts([ask] * 4, texts)["strict"].tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match="prompt 'q': answer is empty"):
        reward.check([Prompt("q", "Why?", "set", checks={"answer": ""})])
    with pytest.raises(ValueError, match="give it checks of one kind"):
        reward.check([Prompt("q", "Why?", "set", checks={**BOTH.checks, "answer": "1"})])


def test_many_threads_get_what_one_gets():
    from instruction_texts import cases

    pairs = [
        (prompt(id, kwargs=[own]), text)
        for id in ("keywords:forbidden_words", "length_constraints:number_sentences")
        for own, text in cases(id, 100)
    ]
    prompts, texts = zip(*pairs, strict=True)
    reward = VerifiableReward(loose=True)
    expected = reward.score(prompts, texts).tolist()
    assert 0 < sum(expected) < len(expected)
    with ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(reward.score, prompts, texts) for _ in range(16)]
        assert all(run.result().tolist() == expected for run in runs)


def test_prompts_that_cannot_be_scored_are_refused_by_name():
    reward = VerifiableReward()
    reward.check([BOTH, copy.deepcopy(BULLETS)])
    with pytest.raises(ValueError, match=r"the prompt 'Hi' has no checks; .*instruction_id_list"):
        reward.check([BOTH, "Hi"])
    with pytest.raises(ValueError, match="checks of prompt 'p3': it has none"):
        reward.check([BOTH, Prompt("p3", "Hi", "set")])
    with pytest.raises(ValueError, match=r"'p1' \(my.jsonl, line 3\): .*'punctuation:x'; known"):
        reward.check([prompt("punctuation:x", where="my.jsonl, line 3")])
    with pytest.raises(RewardError, match="raised ValueError: the checks of prompt 'p3'"):
        score(reward, [Prompt("p3", "Hi", "set")], [["a"]])


def test_a_file_says_where_its_bad_line_is(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"prompt": "A?", "instruction_id_list": [id], "kwargs": [{}]} for id in (NO_COMMA, "x")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = load_prompts(path)
    with pytest.raises(ValueError, match=r"'own-1' \(.*own.jsonl, line 2\): .* is 'x'; known"):
        VerifiableReward().check(prompts)


class Refuses(Reward):
    name = "refuses"

    def score(self, prompts, responses):
        raise AssertionError("something was decoded")

    def check(self, prompts):
        raise ValueError(f"no reward for {len(prompts)} prompts")


def test_nothing_is_decoded_for_prompts_that_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="no reward for 1 prompts"):
        aisp.align("Hi", tiny(), Refuses(), progress=False, **SMALL)
    path, methods = tmp_path / "e.jsonl", {"A": {"method": "best_of_n", **SMALL}}
    with pytest.raises(ValueError, match="no reward for 2 prompts"):
        experiment.run(path, methods, [BOTH, BULLETS], tiny(), Refuses(), progress=False)
    with pytest.raises(ValueError, match="prompt 'p3': it has none"):
        bare = [BOTH, Prompt("p3", "Hi", "set")]
        experiment.run(path, methods, bare, tiny(), "verifiable", progress=False)
    assert not path.exists()


# The others need a trained part, a second model, or a reward that reads beginnings.
METHODS = sorted(set(available()) - {"args", "re_control", "ram", "kad", "speculative_rejection"})


@pytest.mark.parametrize("method", METHODS)
def test_a_reward_that_is_equal_for_all_breaks_no_method(tiny, method):
    """The tiny model writes no bullets, so that all rewards of the second prompt are 0."""
    outs = aisp.align([BOTH, BULLETS], tiny(), "verifiable", method, progress=False, **SMALL)
    assert outs[1].reward == 0 and set(outs[1].candidates["reward"]) == {0.0}
    assert outs[0].reward in (0, 0.5, 1)
    for out in outs:
        weights = torch.tensor(out.candidates["log_weight"].tolist())
        assert out.response == out.response and not torch.isposinf(weights).any()
        if out.U is not None:
            assert torch.isfinite(out.U).all()


@pytest.mark.parametrize(
    "option", [dict(ess=0.5, alpha=1), dict(kl_bound=0.5, alpha=1), dict(lam=1e-3)]
)
def test_a_temperature_that_is_sought_survives_equal_rewards(tiny, option):
    out = aisp.align(BULLETS, tiny(), "verifiable", "aisp", progress=False, **SMALL, **option)
    assert out.reward == 0 and torch.isfinite(out.U).all()
    assert (out.history["ess"] >= 1).all()


def test_a_run_resumes_and_notices_another_check(tiny, tmp_path):
    path, methods = tmp_path / "e.jsonl", {"A": {"method": "best_of_n", **SMALL}}

    def go(one, reward="verifiable"):
        return experiment.run(path, methods, [one], tiny(), reward, progress=False)

    assert len(go(BOTH)) == 1
    content = path.read_bytes()
    assert "checks_sha256" in json.loads(content)
    go(BOTH)
    assert path.read_bytes() == content
    changed = prompt(NO_COMMA, LOWER, "startend:quotation")
    with pytest.raises(ValueError, match=r"checks_sha256 is '\w+' there and '\w+' here"):
        go(changed)
    with pytest.raises(ValueError, match=r"checks_sha256 is '\w+' there and 'no checks' here"):
        experiment.run(path, methods, [Prompt("p1", "Hi", "set")], tiny(), Words(), progress=False)
    with pytest.raises(
        ValueError, match="reward is 'verifiable' there and 'verifiable-loose' here"
    ):
        go(BOTH, "verifiable-loose")
    assert path.read_bytes() == content


class Words(Reward):
    name = "words"

    def score(self, prompts, responses):
        return torch.tensor([float(len(x.split())) for x in responses], dtype=torch.float64)


def test_records_of_prompts_without_checks_are_as_they_were_and_take_checks_later(tiny, tmp_path):
    path, methods = tmp_path / "e.jsonl", {"A": {"method": "best_of_n", **SMALL}}
    experiment.run(path, methods, [Prompt("p1", "Hi", "set")], tiny(), Words(), progress=False)
    content = path.read_bytes()
    assert "checks_sha256" not in json.loads(content)
    experiment.run(path, methods, [BOTH], tiny(), Words(), progress=False)
    assert path.read_bytes() == content
