"""Answers are shown as they are, in the order of a rule, and escaped."""

import pandas as pd
import pytest

from aisp.experiment.__main__ import main
from aisp.experiment.report import answers

TEXTS = {
    "A": ["No.", "The sea is <b>wide</b> and old.", "I'm sorry, I can not say."],
    "B": ["“Sorry,” he said", "Nothing is as blue.", "Norway is north of Denmark."],
}
REWARDS = {"A": [2.0, 0.5, 1.0], "B": [1.0, 0.5, float("nan")]}


def records():
    rows = [
        {
            "label": label,
            "prompt": f"p{i}",
            "prompt_text": f"Question {i}?",
            "seed": 0,
            "response": text,
            "reward": REWARDS[label][i],
            "interrupted": False,
        }
        for label, texts in TEXTS.items()
        for i, text in enumerate(texts)
    ]
    return pd.DataFrame(rows)


def test_a_gallery_has_every_prompt_in_order_and_text_is_never_markup():
    shown = answers.gallery(records(), ["B", "A"]).data
    assert "&lt;b&gt;wide&lt;/b&gt;" in shown and "<b>wide" not in shown
    places = [shown.index(x) for x in ("Question 0?", "Question 1?", "Question 2?")]
    assert places == sorted(places) and shown.index(">B</th>") < shown.index(">A</th>")
    assert shown.count("(none)") == 1 and "<b>2.00</b>\nNo." in shown


def test_answers_on_paper_have_one_line_per_label():
    blocks = answers.as_text(records()).split("\n\n")
    assert blocks[0].splitlines() == [
        "prompt: Question 0?",
        "  A (2.00): No.",
        "  B (1.00): “Sorry,” he said",
    ]
    assert blocks[2].splitlines() == [
        "prompt: Question 2?",
        "  A (1.00): I'm sorry, I can not say.",
    ]


def test_prompts_that_may_not_be_shown_are_named_by_their_ids():
    hidden = records().assign(prompt_text=None)
    assert answers.as_text(hidden).startswith("prompt: p0\n")
    assert ">p0</td>" in answers.gallery(hidden).data


def test_places_and_refusals():
    found = answers.examined(records()).set_index(["label", "prompt"])
    assert found["refusal"].to_dict() == {
        ("A", "p0"): True,
        ("A", "p1"): False,
        ("A", "p2"): True,
        ("B", "p0"): True,
        ("B", "p1"): False,
    }
    assert found["place"].tolist() == [1, 1, 1, 2, 1]  # the two of p1 are equal
    assert found["answers"].tolist() == [2, 2, 1, 2, 2] and found["words"].iloc[0] == 1


def test_examples_are_the_first_by_a_rule_and_the_reward_decides_ties():
    found = answers.examined(records())
    shown = answers.examples(found.assign(words=3), ["words"], rows=2)
    assert shown["response"].tolist() == [TEXTS["A"][0], TEXTS["B"][0]]
    assert shown["place of its reward"].tolist() == ["1 of 2", "2 of 2"]
    assert answers.examples(found, ["words"])["words"].is_monotonic_increasing


def test_the_gap_of_two_kinds_counts_prompts_that_have_both():
    rows = [
        {"prompt": f"p{i}", "refusal": kind, "reward": i + 2.0 * kind}
        for i in range(6)
        for kind in (True, False)
        if kind or i  # p0 has one kind only
    ]
    found = answers.split_gap(pd.DataFrame(rows), "refusal", "refusals", "others")
    assert (found.prompts, found.difference, found.verdict) == (5, 2.0, "higher")
    only = pd.DataFrame(rows[:1])
    assert answers.split_gap(only, "refusal", "refusals", "others").prompts == 0


@pytest.mark.parametrize("extra", [[], ["--answers"]])
def test_the_command_prints_answers_where_asked(tmp_path, capsys, extra):
    whole = records().dropna().assign(samples=4, reward_calls=4, tokens=8, seconds=0.5)
    path = tmp_path / "mine.jsonl"
    path.write_text(whole.to_json(orient="records", lines=True))
    assert main(["show", str(path), *extra]) == 0
    printed = capsys.readouterr().out
    assert ("prompt: Question 0?\n  A (2.00): No." in printed) == bool(extra)
    assert "reward [95%]" in printed


def test_what_counts_is_bold_and_the_rest_escaped():
    shown = answers.marked({"a<b": "Sea & <i>sky</i>, so"}, r"\bs\w+").data
    assert shown == ("<p>a&lt;b:<br><b>Sea</b> &amp; &lt;i&gt;<b>sky</b>&lt;/i&gt;, <b>so</b></p>")


def with_histories(*best):
    rows = [
        {
            "label": "A",
            "prompt": f"p{i}",
            "reward": b[-1],
            "history": {"reward_best": b, "reward_mean": [0.0, 1.0, 2.0, 0.5 + i]},
        }
        for i, b in enumerate(best)
    ]
    return pd.DataFrame(rows)


def test_late_is_the_second_half_of_the_iterations():
    three = with_histories([1, 1, 1, 2], [1, 1, 2, 2], [1, 2, 2, 2])
    assert answers.found_late(three, "A").startswith("A: 2 of 3 answers were found in the second")
    assert answers.found_late(with_histories([1]), "A").startswith("A: 0 of 1 ")


def test_first_and_last_is_a_difference_over_prompts():
    change = answers.first_and_last(with_histories([1, 1, 1, 2], [1, 1, 2, 2]), "A")
    assert (change.prompts, change.difference) == (2, 1.0)
    assert change.sentence().startswith("**the last iteration** is above the first by 1.00")
