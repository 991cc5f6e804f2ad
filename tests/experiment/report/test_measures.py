"""Tables that are computed once, and what decides that they would be the same."""

import pandas as pd

from aisp.experiment.report.measures import computed_once, kept


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


def test_kept_measures_are_read_without_a_model_and_none_where_there_are_none(tmp_path):
    records = pd.DataFrame([{"label": "A", "prompt": "p", "seed": 0, "reward": 1.0}])
    path = tmp_path / "mine.jsonl"
    assert kept(records, path) is None
    beside = "label,prompt,seed,reward,coherence\nA,p,0,1.0,0.25\nB,p,0,1.0,0.5\n"
    path.with_suffix(".measures.csv").write_text(beside)
    found = kept(records, path)
    assert found["coherence"].tolist() == [0.25] and list(found["reward"]) == [1.0]
