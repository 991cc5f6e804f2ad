"""data/verifiable.jsonl: what is asked is what is checked, and dev and test are made alike."""

import json
import re
from collections import Counter
from itertools import chain

import pytest

from aisp.provenance import data_path
from aisp.rewards.verifiable import answers, kinds

ROWS = [
    json.loads(line)
    for line in data_path("verifiable.jsonl").read_text(encoding="utf-8").splitlines()
]
WITH_INSTRUCTIONS = [row for row in ROWS if row["category"] == "instructions"]
ARITHMETIC = [row for row in ROWS if row["category"] == "arithmetic"]
DEV, TEST = ([row for row in ROWS if row["split"] == split] for split in ("dev", "test"))
NUMBERS = {1: "one|first", 2: "two|second", 3: "three|third", 4: "four", 6: "six"}
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
# What the prompt says of an instruction without arguments.
SAID = {
    "punctuation:no_comma": r"commas",
    "detectable_format:json_format": r"JSON",
    "detectable_format:title": r"title.*<<.+>>",
    "combination:two_responses": r"different.*\*{6}",
    "startend:quotation": r"double (quotes|quotation marks)",
    "change_case:english_capital": r"(?i)capital letters",
    "change_case:english_lowercase": r"(?i)lowercase letters",
    "detectable_format:constrained_response": ".*".join(map(re.escape, OPTIONS)),
    "combination:repeat_prompt": r"repeat",
    "length_constraints:number_paragraphs": r"divider \*\*\*",
    "length_constraints:nth_paragraph_first_word": r"(blank line|1 paragraph)",
    "detectable_content:number_placeholders": r"square brackets such as \[",
    "detectable_content:postscript": r"postscript",
    "detectable_format:number_bullet_lists": r"exactly \d bullet points.*\*",
    "detectable_format:number_highlighted_sections": r"at least \d .*asterisks",
    "detectable_format:multiple_sections": r"sections",
    "startend:end_checker": r"(End|last words)",
    "change_case:capital_word_frequency": r"in all capital letters",
}


def by_id(row):
    return row["id"]


def siblings():
    """(dev, test) rows of one number."""
    tests = {row["id"].replace("-test-", "-dev-"): row for row in TEST}
    return [(row, tests[row["id"]]) for row in DEV]


def test_numbers_and_fields():
    assert 150 <= len(WITH_INSTRUCTIONS) <= 170
    assert len(ARITHMETIC) == 100
    assert len(ROWS) == len(WITH_INSTRUCTIONS) + len(ARITHMETIC)
    common = {"id", "split", "category", "grade", "prompt"}
    for row in WITH_INSTRUCTIONS:
        assert set(row) == common | {"instruction_id_list", "kwargs"}
    for row in ARITHMETIC:
        assert set(row) == common | {"answer"}


def test_ids_and_prompts_are_unique():
    for field in ("id", "prompt"):
        assert max(Counter(row[field] for row in ROWS).values()) == 1
    for row in ROWS:
        assert row["split"] in row["id"].split("-")
        assert row["prompt"] == row["prompt"].strip()
        assert len(row["prompt"].split()) < 60


def test_dev_and_test_are_siblings():
    """What is learned on dev about a pair carries over: same instructions, grade and numbers."""
    assert len(DEV) == len(TEST) == len(siblings())
    for dev, test in siblings():
        assert dev["grade"] == test["grade"] and dev["category"] == test["category"]
        assert dev.get("instruction_id_list") == test.get("instruction_id_list")
        for one, other in zip(dev.get("kwargs", []), test.get("kwargs", []), strict=True):
            assert set(one) == set(other)
            for name in one:
                if isinstance(one[name], int) or "relation" in name:
                    assert one[name] == other[name]


def test_grades():
    assert set(Counter(row["grade"] for row in ROWS)) == {"easy", "middle", "hard"}
    for row in WITH_INSTRUCTIONS:
        assert 1 <= len(row["instruction_id_list"]) <= 3
        assert (len(row["instruction_id_list"]) == 3) == (row["grade"] == "hard")


def test_every_kind_of_instruction_occurs():
    found = Counter(chain.from_iterable(row["instruction_id_list"] for row in WITH_INSTRUCTIONS))
    assert len(found) >= 20 and min(found.values()) >= 4
    assert "language:response_language" not in found


@pytest.mark.parametrize("row", WITH_INSTRUCTIONS, ids=by_id)
def test_the_prompt_says_what_is_checked(row):
    ids, kwargs, prompt = row["instruction_id_list"], row["kwargs"], row["prompt"]
    assert len(ids) == len(kwargs) == len(set(ids))
    assert set(ids) & set(SAID) or any(kwargs)
    for id, given in zip(ids, kwargs, strict=True):
        assert re.search(SAID.get(id, ""), prompt, re.DOTALL), f"{id} is not in the prompt"
        for name, value in given.items():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, int):
                    pattern = rf"\b({one}|{NUMBERS.get(one, one)})\b"
                else:
                    pattern = rf"(?<!\w){re.escape(one)}(?!\w)"
                assert re.search(pattern, prompt), f"{name} = {one!r} of {id} is not in the prompt"


def test_what_is_to_be_repeated_is_the_request():
    for row in WITH_INSTRUCTIONS:
        for id, given in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            if id == "combination:repeat_prompt":
                assert row["prompt"].startswith(given["prompt_to_repeat"] + " ")


def test_instructions_load():
    for row in WITH_INSTRUCTIONS:
        checks = {name: row[name] for name in ("instruction_id_list", "kwargs")}
        assert len(kinds.compiled(checks)[1]) == len(row["kwargs"])


@pytest.mark.parametrize("row", ARITHMETIC, ids=by_id)
def test_arithmetic(row):
    """The truth is a whole number that the question does not have, so that repeating it fails."""
    assert answers.truth(row) == int(row["answer"]) > 0
    assert answers.share(row, f"The answer is {row['answer']}.") == 1
    assert answers.share(row, f"The answer is {int(row['answer']) + 1}.") == 0
    assert answers.share(row, row["prompt"]) == 0
    assert row["answer"] not in re.findall(r"\d+", row["prompt"])
