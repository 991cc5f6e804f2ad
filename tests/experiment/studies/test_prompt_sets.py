"""Several sets of prompts, read together."""

import json

import pytest

from aisp.experiment.studies import prompt_sets
from aisp.experiment.studies.main_results import BASELINE


def write(folder, name, shift, judged):
    rows, measures = [], ["label,prompt,seed,reward,judged"]
    for label, add, method in ((BASELINE, 0.0, "best_of_n"), ("AISP", shift, "aisp")):
        for i in range(6):
            about = {"label": label, "prompt": f"{name}-{i}", "seed": 0, "reward": i + add}
            counts = {"samples": 1, "tokens": 1, "seconds": 1.0, "method": method}
            config = {"adapt": True, "top_p": 0.9}
            rows.append(json.dumps(about | counts | {"config": config}) + "\n")
            measures.append(f"{label},{name}-{i},0,{i + add},{-add}")
    (folder / f"{name}.jsonl").write_text("".join(rows))
    if judged:
        (folder / f"{name}.measures.csv").write_text("\n".join(measures) + "\n")


def test_sets_are_read_with_their_measures_and_together(tmp_path):
    assert prompt_sets.stored_sets(tmp_path) == {}
    write(tmp_path, "main_results", 1.0, judged=True)
    write(tmp_path, "main_results_hh", 3.0, judged=False)
    found = prompt_sets.stored_sets(tmp_path)
    assert list(found) == ["built-in", "HH-RLHF", prompt_sets.TOGETHER]
    assert [len(of) for of in found.values()] == [12, 12, 24]
    assert list(found["built-in"]["label"].unique()) == ["AISP", BASELINE]  # in order
    gains = prompt_sets.by_set(found, "AISP", BASELINE)
    assert [c.difference for c in gains.values()] == pytest.approx([1, 3, 2])
    judged = prompt_sets.by_set(found, "AISP", BASELINE, "judged")
    assert {name: (c.prompts, c.difference) for name, c in judged.items()} == {
        "built-in": (6, -1.0),
        prompt_sets.TOGETHER: (6, -1.0),
    }
    assert prompt_sets.by_set(found, "AISP", "KAD") == {}


def test_differences_stand_by_pair_and_set_where_both_labels_are(tmp_path):
    write(tmp_path, "main_results", 1.0, judged=True)
    write(tmp_path, "main_results_hh", 3.0, judged=False)
    found = prompt_sets.stored_sets(tmp_path)
    pairs = [("AISP", BASELINE), ("AISP", "KAD")]
    table = prompt_sets.differences(found, pairs)
    assert list(table.index) == [f"AISP minus {BASELINE}"]  # no set has KAD
    assert table.iloc[0].tolist()[:2] == ["+1.00 [+1.00, +1.00]", "+3.00 [+3.00, +3.00]"]
    judged = prompt_sets.differences(found, pairs, "judged")
    assert judged["HH-RLHF"].tolist() == [""] and judged["built-in"].iloc[0].startswith("-1.00")
    one = prompt_sets.by_pair(found["built-in"], pairs)
    assert {name: c.difference for name, c in one.items()} == {f"AISP minus {BASELINE}": 1.0}
    assert prompt_sets.by_pair(found["HH-RLHF"], pairs, "judged") == {}
    assert prompt_sets.differences({}, pairs).empty
