"""The main comparison: what is run, what is taken over, what is measured, and how it is worded."""

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from aisp import experiment
from aisp.experiment import identity, records
from aisp.experiment.report import measures
from aisp.experiment.studies import main_results
from aisp.methods import configure
from aisp.prompts import Prompt

BUDGET = {"n": 3, "kappa": 2, "max_new_tokens": 5}


@dataclass(frozen=True)
class FakePolicy:
    name: str = "embedded"
    template: str = "chat"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    tokenizer: object = None
    model: object = None
    eos_ids: tuple[int, ...] = (0,)
    engine: str = "aisp"


REWARD = SimpleNamespace(name="embedded")


def prompts(k=3):
    return [Prompt(f"p{i}", f"Question {i}?", "builtin") for i in range(k)]


def record(label, prompt, reward, method="aisp", **config):
    done = reward is not None
    return {
        "run": "r1",
        "label": label,
        "method": method,
        "config": configure(method, **{**BUDGET, **config}).describe(),
        "seed": 0,
        "prompt": prompt.id,
        "prompt_text": prompt.text,
        "reward": reward,
        "response": f"an answer to {prompt.id} of five words" if done else None,
        "samples": 6,
        "reward_calls": 6,
        "tokens": 30,
        "seconds": 1.0,
        "history": {},
        "interrupted": False,
        "error": None if done else "ValueError: no",
    }


def test_templates():
    assert main_results.template(None) is None and main_results.template("chat") == "chat"
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?"},
    ]
    expected = "User: Hi\n\nAssistant: Hello\n\nUser: Why?\n\nAssistant:"
    assert main_results.template("User")(messages) == expected
    human = FakePolicy(template=main_results.template("Human"))
    made = identity.made_with(human, REWARD, {"A": configure("best_of_n")})["A"]
    assert made["template"] == "Human" and len(made["template_sha256"]) == 64
    for wrong in ("User: ", "Continuation", "chatt", ""):
        with pytest.raises(ValueError, match="or the capitalized word that opens"):
            main_results.template(wrong)


def test_every_method_runs_on_the_embedded_policy_with_one_budget():
    methods, left_out = main_results.plan(None, FakePolicy(), REWARD, BUDGET, lam=2.0)
    assert left_out == {} and len(methods) == len(main_results.METHODS)
    for label, parameters in methods.items():
        config = configure(**parameters)
        samples = 1 if parameters["method"] == "args" else 6
        assert (config.n * config.kappa, config.max_new_tokens) == (samples, 5), label
    assert configure(**methods["AISP"]).lam == 2
    assert configure(**methods["noise only"]).adapt is False
    plain, nucleus = methods["best-of-n (T = 1)"], methods[main_results.BASELINE]
    assert (configure(**plain).top_p, configure(**nucleus).top_p) == (1.0, 0.9)


def test_what_has_no_trained_part_is_left_out_or_refused():
    other = FakePolicy("some/model", template="continuation")
    methods, left_out = main_results.plan(None, other, REWARD, BUDGET)
    assert set(left_out) == {"re_control", "ram", "kad", "best_of_n_bare"}
    assert len(methods) == 5
    given, _ = main_results.plan("ram", other, REWARD, BUDGET, aligner="folder")
    assert given["RAM"]["aligner"] == "folder"
    _, left_out = main_results.plan(None, FakePolicy(), SimpleNamespace(name="x"), BUDGET)
    assert list(left_out) == ["re_control"]  # its value function knows another reward
    with pytest.raises(ValueError, match="re_control cannot run: there is no value function"):
        main_results.plan("aisp, re_control", other, REWARD, BUDGET)
    with pytest.raises(ValueError, match="known: aisp, noise_only"):
        main_results.plan("aisp,dpo", other, REWARD, BUDGET)


def test_run_gives_kad_the_bare_policy_and_returns_its_own_records(tmp_path, monkeypatch):
    asked = prompts()
    labels = ["AISP", "best-of-n (no template)", "KAD"]
    stored = [record(x, p, 1.0) for x in (*labels, "other") for p in prompts(4)]
    stored.append({**stored[0], "seed": 1})
    calls = []

    def run(path, methods, prompts, policy, reward, *, seeds, **options):
        calls.append((list(methods), policy.template, seeds, options))
        return pd.DataFrame(stored)

    monkeypatch.setattr(records, "run", run)
    methods, _ = main_results.plan("aisp,best_of_n_bare,kad", FakePolicy(), REWARD, BUDGET)
    found = main_results.run(tmp_path / "x.jsonl", methods, asked, FakePolicy(), REWARD, batch=4)
    options = {"batch": 4}
    assert calls == [
        (["AISP"], "chat", [0], options),
        (labels[1:], "continuation", [0], options),
    ]
    assert sorted(set(found["label"])) == sorted(labels) and len(found) == 9
    assert set(found["seed"]) == {0}


def test_an_interrupt_stops_the_methods_of_both_policies(tmp_path, monkeypatch):
    calls = []

    def run(path, methods, *args, **more):
        calls.append(list(methods))
        return pd.DataFrame([record("AISP", p, 1.0) | {"interrupted": True} for p in prompts()])

    monkeypatch.setattr(records, "run", run)
    methods, _ = main_results.plan("aisp,kad", FakePolicy(), REWARD, BUDGET)
    found = main_results.run(tmp_path / "x.jsonl", methods, prompts(), FakePolicy(), REWARD)
    assert calls == [["AISP"]] and len(found) == 3


def test_methods_have_one_order_whatever_was_written_first():
    methods, _ = main_results.plan(None, FakePolicy(), REWARD, BUDGET)
    written = [
        {"label": label, "prompt": p.id, **one, "config": configure(**one).describe()}
        for p in prompts()
        for label, one in reversed(methods.items())
    ]
    found = main_results.in_order(pd.DataFrame(written))
    assert list(found["label"].unique()) == list(methods)
    strange = record("mine", prompts()[0], 1.0) | {"method": "mine"}
    found = main_results.in_order(pd.DataFrame([strange, *written]))
    assert list(found["label"].unique()) == [*methods, "mine"]
    assert [list(of["prompt"]) for _, of in found[:-1].groupby("label")] == [["p0", "p1", "p2"]] * 9


def test_taken_over_are_records_that_agree_in_everything(tmp_path, byte_tokenizer):
    asked = prompts()
    run = {"policy": "embedded", "template": "chat", "dtype": "float32", "device": "cpu"}
    runs = {"r1": {**run, "reward": "embedded"}, "r2": {**run, "reward": "another"}}
    (tmp_path / "old.runs.json").write_text(json.dumps(runs))
    good = record("AISP", asked[0], 1.0)
    bad = [
        {**record("AISP", asked[1], 1.0), "run": "r2"},
        record("AISP", asked[2], None),
        record("noise only", asked[0], 1.0, adapt=True),
        {**record("best-of-n (T = 1)", asked[0], 1.0, "best_of_n", top_p=1.0), "seed": 1},
        {**record("AISP", replace(asked[1], id="p9"), 1.0)},
        {**record("noise only", asked[1], 1.0, adapt=False), "prompt_text": "Another question?"},
        {**record("noise only", asked[2], 1.0, adapt=False), "prompt_text": None},
    ]
    lines = "".join(json.dumps(one) + "\n" for one in [*bad, good])
    (tmp_path / "old.jsonl").write_text(lines)
    methods, _ = main_results.plan(None, FakePolicy(), REWARD, BUDGET)
    path = tmp_path / "new.jsonl"
    given = (methods, asked, FakePolicy(tokenizer=byte_tokenizer), REWARD)
    assert experiment.take_over(path, None, *given) == {} and not path.exists()
    assert experiment.take_over(path, "none,old", *given) == {"AISP": 1}
    assert [json.loads(line) for line in path.read_text().splitlines()] == [good]
    noted = json.loads((tmp_path / "new.runs.json").read_text())
    assert noted == {"r1": {**runs["r1"], "taken_over_from": "old.jsonl"}}
    before = path.read_bytes()
    assert experiment.take_over(path, "old", *given) == {} and path.read_bytes() == before


@pytest.fixture
def measured(monkeypatch):
    asked = prompts()
    rewards = {"AISP": [3, 2, None], main_results.BASELINE: [1, 2, 1]}
    rows = [record(x, p, r) for x, rs in rewards.items() for p, r in zip(asked, rs, strict=True)]
    seen = []

    def fake(*args, **kwargs):
        texts = args[-1]
        seen.append([p.id for p in args[-2]] if len(args) > 1 else None)
        return torch.arange(len(texts), dtype=torch.float64)

    monkeypatch.setattr(measures.metrics, "coherence", fake)
    monkeypatch.setattr(measures.metrics, "surprisal", fake)
    policy = FakePolicy(tokenizer=lambda text, **_: {"input_ids": text.split()})
    judge = SimpleNamespace(name="judge", score=lambda asked, texts: -torch.arange(len(texts)))
    out = measures.measure(pd.DataFrame(rows), asked, policy, judge=judge)
    assert seen == [["p0", "p1", "p0", "p1", "p2"]] * 2
    return out


def test_measures_stand_in_their_rows_and_failed_records_have_none(measured):
    assert measured["surprisal"].dropna().tolist() == [0, 1, 2, 3, 4]
    failed = measured[measured["error"].notna()]
    assert len(failed) == 1 and failed[["coherence", "judged", "length"]].isna().all(None)
    assert measured["length"].dropna().eq(7).all() and measured["diversity"].dropna().eq(1).all()


def test_one_text_that_cannot_be_judged_costs_no_other():
    def score(asked, texts):
        if "long" in texts:
            raise ValueError("too long")
        return torch.arange(float(len(texts))) + 1

    asked = prompts()
    with pytest.warns(UserWarning, match="judge: 1 of 3 responses .* to p1: ValueError: too long"):
        values = measures.measure_or_nan("judge", score, asked, ["a", "long", "b"])
    assert values[[0, 2]].tolist() == [1, 1] and values[1].isnan()
    assert measures.measure_or_nan("judge", score, asked, ["a", "c", "b"]).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="too long"):
        measures.measure_or_nan("judge", score, asked[:2], ["long", "long"])


def test_texts_that_no_model_wrote_are_not_measured(monkeypatch):
    for name in ("coherence", "surprisal"):
        monkeypatch.setattr(measures.metrics, name, lambda *args, **_: torch.ones(len(args[-1])))
    policy = FakePolicy(tokenizer=lambda text, **_: {"input_ids": text.split()})
    asked = [Prompt("shp-1", "Why?", "shp"), Prompt("q1", "Why?", "builtin")]
    rows = [record("AISP", p, 1.0) | {"response": "… it says"} for p in asked]
    rows.append(record("noise only", asked[1], 1.0) | {"interrupted": True})
    out = measures.measure(pd.DataFrame(rows), asked, policy)
    assert out["length"].isna().tolist() == [True, False, True] and out["reward"].notna().all()


def test_the_table_says_who_judged(measured):
    own = main_results.results(measured, main_results.BASELINE)
    heading = f"wins against {main_results.BASELINE}, by the optimized reward [95%]"
    assert own.loc["AISP", heading].startswith("75% [")  # 3 > 1, and a tie
    assert own.loc[main_results.BASELINE, heading] == ""
    assert own.loc["AISP", "coherence [95%]"] == "0.500 [0.000, 1.000]"
    assert own["failed or interrupted"].tolist() == ["1", "0"]
    judged = main_results.results(measured, main_results.BASELINE, "some/judge")
    heading = f"wins against {main_results.BASELINE}, by some/judge [95%]"
    assert judged.loc["AISP", heading].startswith("100% [")


def test_differences_are_worded_by_their_intervals():
    asked = prompts(8)
    values = {"A": lambda i: 3 + i % 2, "B": lambda i: 1, "C": lambda i: 5, "D": lambda i: 3.5}
    rows = [record(x, p, float(f(i))) for x, f in values.items() for i, p in enumerate(asked)]
    out = main_results.differences(pd.DataFrame(rows), "A")
    assert out["verdict"].tolist() == ["higher", "lower", "undecided"]
    assert out.index.tolist() == ["A minus B", "A minus C", "A minus D"]


def test_the_records_of_a_file_of_parameters(tmp_path):
    params = tmp_path / "p.yaml"
    params.write_text("profile: cpu\nname: x\n")
    assert main_results.records_of(params) == experiment.records_path("x", "cpu")
    params.write_text("methods: aisp, xx\n")  # said before a kernel starts
    with pytest.raises(ValueError, match="methods has 'xx'; known: aisp, noise_only, best_of_n"):
        main_results.records_of(params)
    params.write_text("# nothing\n")
    assert main_results.records_of(params) == experiment.records_path("main_results", "cpu")


def test_methods_may_be_a_list_as_yaml_has_them():
    text, _ = main_results.plan("aisp, kad", FakePolicy(), REWARD, BUDGET)
    for names in (["aisp", "kad"], ("aisp", " kad ")):
        assert main_results.plan(names, FakePolicy(), REWARD, BUDGET)[0] == text
    with pytest.raises(ValueError, match="ram cannot run: there is no aligner"):
        main_results.plan(["ram"], FakePolicy("some/model"), REWARD, BUDGET)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (3, "methods is 3; it must be a list of names, or a text that separates them by commas"),
        ({"aisp": 1}, "methods is {'aisp': 1}; it must be a list"),
        (["aisp", 1], "methods has 1, which is no name"),
        ([["aisp"]], r"methods has \['aisp'\], which is no name"),
        ([], "methods is empty; known: aisp, noise_only"),
        (" , ", "methods is empty; known: aisp, noise_only"),
        (["aisp", "dpo"], "methods has 'dpo'; known: aisp, noise_only"),
    ],
)
def test_methods_of_another_kind_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        main_results.plan(names, FakePolicy(), REWARD, BUDGET)


def test_a_number_that_arrives_as_text_is_named():
    with pytest.raises(ValueError, match=r"w is '1'; it must be a finite number.*without quotes"):
        main_results.plan("aisp", FakePolicy(), REWARD, BUDGET, w="1")
