"""Tables that are computed once, and what decides that they would be the same."""

import pandas as pd
import pytest
import torch

from aisp.experiment.report.measures import at_length, computed_once, kept
from aisp.prompts import Prompt
from aisp.rewards import Reward


def test_a_table_is_computed_again_only_where_it_could_differ(tmp_path):
    source, path, calls = tmp_path / "a.jsonl", tmp_path / "a.measures.csv", []
    source.write_text("one")

    def compute():
        calls.append(1)
        return pd.DataFrame({"x": [0.1 + 0.2, float("nan")], "name": ["a", "b"]})

    first = computed_once(path, [source], compute, judge="j")
    before = path.read_bytes()
    again = computed_once(path, [source], compute, judge="j")
    assert len(calls) == 1 and path.read_bytes() == before
    pd.testing.assert_frame_equal(first, again)
    assert again["x"][0] == 0.1 + 0.2  # to the last bit
    computed_once(path, [source], compute, judge="k")
    source.write_text("two")
    computed_once(path, [source], compute, judge="k")
    assert len(calls) == 3
    path.unlink()
    computed_once(path, [source], compute, judge="k")
    assert len(calls) == 4 and sorted(p.name for p in tmp_path.iterdir()) == [
        "a.jsonl",
        "a.measures.csv",
        "a.measures.csv.json",
    ]


def test_at_equal_length_a_judge_of_length_prefers_nothing():
    class Short(Reward):
        name = "short"

        def score(self, prompts, responses):
            return torch.tensor([-len(x.split()) + 0.1 * x.count("good") for x in responses])

    prompts = [Prompt(f"p{i}", "question", "set") for i in range(4)]
    prompts[3] = Prompt("p3", "question", "shp")  # may not be published: "…" hides a quotation
    base = ["one two good three", "one two", "good", "one … two"]
    texts = {"base": base, "row": ["good good", "one two three good", "", "one"]}
    rows = [
        {"label": label, "prompt": f"p{i}", "seed": 0, "response": text}
        | {"reward": 0.0, "interrupted": False}
        for label, of in texts.items()
        for i, text in enumerate(of)
    ]
    found = at_length(pd.DataFrame(rows), "base", prompts, Short())
    table = found.set_index(["label", "prompt"])["at_length"]
    assert table["row"].to_dict() == pytest.approx({"p0": 0.2, "p1": 0.0})  # no word, no value
    assert set(table["base"].index) == {"p0", "p1", "p2"} and not table["base"].any()
    silent = pd.DataFrame(rows).assign(response="")
    assert at_length(silent, "base", prompts, Short()).empty


def test_kept_measures_are_read_without_a_model_and_none_where_there_are_none(tmp_path):
    records = pd.DataFrame([{"label": "A", "prompt": "p", "seed": 0, "reward": 1.0}])
    path = tmp_path / "mine.jsonl"
    assert kept(records, path) is None
    beside = "label,prompt,seed,reward,coherence\nA,p,0,1.0,0.25\nB,p,0,1.0,0.5\n"
    path.with_suffix(".measures.csv").write_text(beside)
    found = kept(records, path)
    assert found["coherence"].tolist() == [0.25] and list(found["reward"]) == [1.0]
