"""Which rows can be advised, and what their responses are like."""

import pandas as pd
from fake_runs import measured

from aisp.experiment.studies import beyond, declared, places, standing
from aisp.experiment.studies.contenders import BEST, MISVO_FREE, NOISE, RAM, STEERED


def of_texts():
    records = measured({BEST: (0, 0), NOISE: (0, 0), STEERED: (1, 1), MISVO_FREE: (2, 2)})
    tokens = {BEST: 40.0, NOISE: 38.0, STEERED: 30.0, MISVO_FREE: 20.0}
    nats = {BEST: 1.0, NOISE: 1.9, STEERED: 1.5, MISVO_FREE: 2.1}
    label = records["label"]
    records = records.assign(length=label.map(tokens), per_token=label.map(nats), coherence=0.25)
    # A judge that gives 0.1 for each token that a response is shorter.
    return records.assign(at_length=records["judged"] - (40 - records["length"]) / 10)


def test_rows_that_need_training_or_leave_the_policy_cannot_be_advised():
    records = of_texts()
    assert standing.astray(records) == [MISVO_FREE]
    able = standing.advisable(records)
    assert MISVO_FREE not in able and RAM not in able and {BEST, NOISE, STEERED} <= set(able)
    assert standing.astray(records.drop(columns="per_token")) == []


def test_best_of_n_alone_stands_for_itself():
    alone = measured({BEST: (0, 0), MISVO_FREE: (2, 2)}).assign(per_token=1.0)
    found = standing.standing(alone, "reward", [BEST])
    assert (found.first, found.level, found.lead.difference) == (BEST, [], 0)


def test_the_judge_is_the_one_at_equal_length_where_it_is_stored():
    records = of_texts()
    assert list(standing.by_measure(records).values()) == ["reward", "at_length"]
    assert list(standing.by_measure(records.drop(columns="at_length")).values()) == [
        "reward",
        "judged",
    ]


def test_texts_are_shown_beside_those_of_best_of_n():
    records = of_texts()
    table = standing.texts(records)
    assert list(table.index) == [BEST, NOISE, STEERED, MISVO_FREE]
    assert table["tokens"].tolist() == [40, 38, 30, 20]
    assert table["nats per token"].tolist() == [1.0, 1.9, 1.5, 2.1]
    gap = declared.nested(records, STEERED, BEST, "at_length").contrast.signed
    assert table.loc[STEERED, "judge at equal length"] == gap and table.loc[BEST, "judge"] == ""


def test_what_length_gives_is_told_apart_from_what_the_judge_prefers():
    records = of_texts()
    by_judge, moved, left = standing.text_findings(records)
    gaps = {
        x: declared.nested(records, x, BEST, "at_length").contrast
        for x in (NOISE, STEERED, MISVO_FREE)
    }
    # 2 less 20 tokens of 0.1 each is 0; 1 less 10 tokens too.
    for label in (STEERED, MISVO_FREE):
        assert gaps[label].verdict == "undecided" and f"{label} ({gaps[label].signed})" in by_judge
    assert "above best-of-n: none" in by_judge
    assert f"below it: {NOISE} ({gaps[NOISE].signed})" in by_judge
    assert "moves the judge by +2.00 [+2.00, +2.00] in favor of best-of-n" in moved
    assert f"against {MISVO_FREE}, the row of the shortest" in moved
    assert left == f"Over 2 times best-of-n's surprisal per token (1.0 nats): {MISVO_FREE} (2.1)."
    for missing in ("at_length", "judged"):  # no judge was asked for, or none at equal length
        assert standing.text_findings(records.drop(columns=missing)) == [left]


def test_what_is_stored_at_equal_length_joins_the_records(tmp_path, monkeypatch):
    rows = ("best-of-n", "noise only", "AISP", "control variate", "control variate, first steps")
    records = measured({x: (0, 0) for x in rows}).assign(surprisal=60.0, length=40.0)
    path = beyond.paths("builtin", 128, folder=tmp_path)["first"]
    path.touch()
    monkeypatch.setattr(places, "load", lambda path: records)
    monkeypatch.setattr(places.measures, "kept", lambda records, path: records)
    found = places.stored(tmp_path)["builtin", 128]
    assert (found["per_token"] == 1.5).all() and "at_length" not in found
    keys = records[["label", "prompt", "seed"]]
    table = pd.DataFrame(keys.assign(at_length=range(len(keys)))).iloc[1:]
    table.to_csv(beyond.length_path(path), index=False)
    found = places.stored(tmp_path)["builtin", 128]
    joined = keys.merge(found, on=["label", "prompt", "seed"])["at_length"]
    assert joined.isna().sum() == 1 and joined.iloc[1:].tolist() == list(range(1, len(keys)))
