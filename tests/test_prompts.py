"""Prompt sets: the built-in file, each loader on small files of its format, every error."""

import gzip
import json
import os
import shutil
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

import aisp.prompts
import aisp.provenance
from aisp.pins import revision_of
from aisp.preference_data import hh_pairs
from aisp.prompts import Prompt, as_messages, load_prompts

USER = {"role": "user", "content": "Why?"}
REPLY = {"role": "assistant", "content": "Because."}
# Invented dialogues in the format of HH-RLHF.
ONE_TURN = "\n\nHuman: Is tea hot?\n\nAssistant: Usually."
TWO_TURNS = "\n\nHuman: Hi.\n\nAssistant:  Hello!\n\nHuman: Is tea hot?\n\nAssistant: Yes."


@pytest.fixture
def hub(monkeypatch):
    """Replaces the hub by in-memory datasets; `hub.calls` records what was asked for."""
    datasets = pytest.importorskip("datasets")

    class Hub:
        calls, rows, error = (), [], None

        def load(self, name, **options):
            self.calls += ((name, options["data_dir"], options["split"], options["revision"]),)
            if self.error:
                raise self.error
            rows = datasets.Dataset.from_list(self.rows)
            return rows.to_iterable_dataset() if options["streaming"] else rows

    hub = Hub()
    monkeypatch.setattr(datasets, "load_dataset", hub.load)
    return hub


def shared(name):
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("AISP_SHARED_DATA", default)) / name
    if not path.is_file():
        pytest.skip(f"no public preference data at {path}; set AISP_SHARED_DATA")
    return path


@pytest.fixture
def hh_file():
    return shared("hh_rlhf_harmless_base_test_0-1799.jsonl.gz")


@pytest.fixture
def shp_file():
    return shared("shp_test_prompts_0-599.jsonl.gz")


# The built-in set


def test_builtin_counts_splits_and_categories():
    prompts = load_prompts()
    dev, test = load_prompts(split="dev"), load_prompts(split="test")
    assert (len(prompts), len(dev), len(test)) == (64, 24, 40)
    assert {p.id for p in dev} | {p.id for p in test} == {p.id for p in prompts}
    assert {p.source for p in prompts} == {"builtin"}
    for part in (dev, test):
        categories = [p.category for p in part]
        assert set(categories) == {"helpful", "harmless"}
        assert categories.count("helpful") == len(part) / 2
        multi = sum(len(p.messages) > 1 for p in part) / len(part)
        assert 0.2 <= multi <= 0.35


def test_builtin_is_clean():
    prompts = load_prompts()
    assert len({p.id for p in prompts}) == len(prompts)
    assert len({p.text for p in prompts}) == len(prompts)
    for p in prompts:
        category, number = p.id.split("-")
        assert category == p.category and len(number) == 3
        roles = [m["role"] for m in p.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert 5 <= sum(len(m["content"].split()) for m in p.messages) <= 80
        for m in p.messages:
            assert m["content"] == m["content"].strip() and m["content"].isascii()


def test_builtin_starts_with_varied_test_prompts():
    first = load_prompts(split="test", limit=3)
    assert {p.category for p in first} == {"helpful", "harmless"}
    assert {len(p.messages) > 1 for p in first} == {True, False}


def test_builtin_is_found_inside_the_package_first(tmp_path, monkeypatch):
    package = tmp_path / "aisp"
    (package / "data").mkdir(parents=True)
    (package / "data" / "prompts.jsonl").write_text('{"id": "shipped", "prompt": "Here?"}\n')
    monkeypatch.setattr(aisp.provenance, "__file__", str(package / "provenance.py"))
    assert [p.id for p in load_prompts()] == ["shipped"]
    shutil.move(package / "data", tmp_path / "data")  # as in a checkout
    assert [p.id for p in load_prompts()] == ["shipped"]
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(FileNotFoundError, match=r"prompts\.jsonl"):
        load_prompts()


# Prompt and as_messages


def test_prompt_text_label_and_immutability():
    prompt = Prompt("a", [USER, REPLY, {"role": "user", "content": "Two\nlines " * 20}], "builtin")
    assert isinstance(prompt.messages, tuple) and len(prompt.messages) == 3
    assert prompt.text == "Two\nlines " * 20
    assert prompt.label.startswith("Two lines Two") and len(prompt.label) <= 60
    assert prompt.label.endswith("…") and Prompt("b", "Short?", "builtin").label == "Short?"
    with pytest.raises(FrozenInstanceError):
        prompt.id = "b"
    assert len({prompt, Prompt("a", prompt.messages, "builtin")}) == 1


def test_as_messages_accepts_every_form_and_copies():
    assert as_messages("Why?") == [USER]
    system = {"role": "system", "content": "Be brief."}
    given = [system, USER, REPLY, USER]
    for prompt in (given, tuple(given), Prompt("a", tuple(given), "builtin")):
        got = as_messages(prompt)
        assert got == given and isinstance(got, list)
        got[1]["content"] = "changed"
        assert USER["content"] == "Why?" and as_messages(prompt) == given


@pytest.mark.parametrize(
    ("prompt", "error", "says"),
    [
        ("", ValueError, "is ''; it must contain text"),
        (" \n", ValueError, "it must contain text"),
        ([], ValueError, "list of messages is empty"),
        (None, TypeError, "None, a NoneType; pass a string"),
        (3, TypeError, "3, a int; pass a string"),
        (USER, TypeError, "a dict; pass a string"),
        (["Why?", "How?"], TypeError, r"message 0 is 'Why\?', a str.*For several prompts"),
        ([{"role": "user"}], ValueError, r"message 0 has keys \['role'\]"),
        ([USER, {**USER, "name": "x"}], ValueError, "message 1 has keys .*'name'"),
        ([{"role": "human", "content": "Why?"}], ValueError, "'human'; allowed are system, user"),
        ([{"role": ["user"], "content": "Why?"}], ValueError, "allowed are"),
        ([{"role": "user", "content": 3}], TypeError, "content of message 0 is 3"),
        ([{"role": "user", "content": None}, USER], TypeError, "content of message 0 is None"),
        ([{"role": "user", "content": " "}], ValueError, "' '; it must contain text"),
        ([USER, REPLY], ValueError, "role 'assistant'; it must be 'user'"),
    ],
)
def test_as_messages_errors(prompt, error, says):
    with pytest.raises(error, match=says):
        as_messages(prompt)


def test_prompt_validates_its_messages():
    with pytest.raises(ValueError, match="it must be 'user'"):
        Prompt("a", (USER, REPLY), "builtin")


# Any JSONL file


def test_jsonl_of_prompts_and_messages(write):
    path = write(
        {"prompt": "Café?"}, "", {"messages": [USER, REPLY, USER], "id": 7, "category": "x"}
    )
    for source in (path, str(path)):
        first, second = load_prompts(source)
        assert (first.id, first.text, first.category) == ("set-0", "Café?", "")
        assert (second.id, second.category, len(second.messages)) == ("7", "x", 3)
        assert first.source == path.name


def test_jsonl_limit_offset_and_split(write):
    path = write(*({"prompt": f"Q{i}?", "split": "ab"[i % 2]} for i in range(6)))
    texts = lambda **options: [p.text for p in load_prompts(path, **options)]  # noqa: E731
    assert texts(limit=2) == ["Q0?", "Q1?"]
    assert texts(offset=4) == ["Q4?", "Q5?"]
    assert texts(offset=1, limit=2) == ["Q1?", "Q2?"]
    assert texts(split="b", offset=1) == ["Q3?", "Q5?"]
    assert texts(limit=6) == texts()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{not json}", "expected a JSON object: Expecting"),
        ("[1]", "expected a JSON object: found a list"),
        ({"text": "Why?"}, r"fields are \['text'\]; give either `prompt` or `messages`"),
        ({"prompt": "Why?", "messages": [USER]}, "give either"),
        ({"prompt": ["Why?"]}, r"field `prompt` is \['Why\?'\], not a string"),
        ({"prompt": " "}, "must contain text"),
        ({"messages": [USER, REPLY]}, "must be 'user'"),
        ({"messages": {"role": "user"}}, "a dict; pass a string"),
        ({"prompt": "Why?", "id": "set-0"}, "'set-0' is already used at .*line 1"),
    ],
)
def test_jsonl_bad_line_names_file_and_line(write, line, says):
    path = write({"prompt": "Fine?"}, "", line)
    with pytest.raises(ValueError, match=rf"{path.name}, line 3: .*{says}"):
        load_prompts(path)


def test_jsonl_not_utf8_or_damaged(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "Café?"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.jsonl, line 1: .*utf-8"):
        load_prompts(tmp_path / "latin.jsonl")
    (tmp_path / "plain.jsonl.gz").write_text('{"prompt": "Why?"}\n')
    with pytest.raises(ValueError, match=r"plain\.jsonl\.gz: damaged or not gzip"):
        load_prompts(tmp_path / "plain.jsonl.gz")
    whole = gzip.compress(b'{"post_id": "a", "history": "Why?"}\n' * 50)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(ValueError, match=r"cut\.jsonl\.gz: damaged"):
        load_prompts("shp:" + str(tmp_path / "cut.jsonl.gz"))


def test_jsonl_split_errors(write):
    path = write({"prompt": "A?", "split": "dev"}, {"prompt": "B?"})
    with pytest.raises(ValueError, match="line 2: field `split` is None"):
        load_prompts(path, split="dev")
    with pytest.raises(ValueError, match=r"split is 'train'; 'builtin' has \['dev', 'test'\]"):
        load_prompts(split="train")


def test_source_limit_and_offset_errors(tmp_path):
    with pytest.raises(ValueError, match=r"'imdb': .*\"builtin\", \"shp\", \"hh\", \"shp:PATH\""):
        load_prompts("imdb")
    with pytest.raises(ValueError, match="no such file"):
        load_prompts(tmp_path / "missing.jsonl")
    with pytest.raises(TypeError):
        load_prompts(3)
    for source in ("shp:", "hh:"):
        with pytest.raises(FileNotFoundError, match=r"missing\.jsonl"):
            load_prompts(source + str(tmp_path / "missing.jsonl"))
    for limit in (0, -1, 2.0, "2"):
        with pytest.raises(ValueError, match=r"limit is .*>= 1"):
            load_prompts(limit=limit)
    with pytest.raises(ValueError, match=r"offset is -1; .*>= 0"):
        load_prompts(offset=-1)


def test_fewer_prompts_than_asked_for(write):
    with pytest.raises(ValueError, match=r"split 'dev'\) has 24 prompts; asked for 25"):
        load_prompts(split="dev", limit=25)
    with pytest.raises(ValueError, match="has 64 prompts; asked for 60 from offset 10"):
        load_prompts(limit=60, offset=10)
    with pytest.raises(ValueError, match="has 64 prompts; asked for all from offset 64"):
        load_prompts(offset=64)
    with pytest.raises(ValueError, match="has 0 prompts"):
        load_prompts(write())


# SHP and HH-RLHF from local files


def test_shp_file_keeps_the_first_row_of_a_post(write):
    rows = [{"post_id": i, "history": f"Post {i}?", "prefer": "x"} for i in ("a", "b", "a", "c")]
    prompts = load_prompts(f"shp:{write(*rows)}")
    assert [p.id for p in prompts] == ["shp-a", "shp-b", "shp-c"]
    assert prompts[1].messages == ({"role": "user", "content": "Post b?"},)
    assert {p.source for p in prompts} == {"shp"}


@pytest.mark.parametrize(
    ("source", "line", "says"),
    [
        ("shp", {"history": "Why?"}, "field `post_id` is None"),
        ("shp", {"post_id": "a", "history": 3}, "field `history` is 3, not a string"),
        ("shp", {"post_id": "a", "history": ""}, "must contain text"),
        ("hh", {"rejected": ONE_TURN}, "field `chosen` is None"),
        ("hh", {"chosen": "Is tea hot?"}, "begins 'Is tea hot"),
        ("hh", {"chosen": ONE_TURN + "\n\nHuman: Thanks."}, "ends with a human turn"),
        ("hh", {"chosen": "\n\nHuman: \n\nAssistant: Hm?"}, "must contain text"),
    ],
)
def test_dataset_file_bad_line(write, source, line, says):
    good = {"post_id": "z", "history": "Fine?", "chosen": ONE_TURN}
    path = write(good, line)
    with pytest.raises(ValueError, match=rf"{path.name}, line 2: .*{says}"):
        load_prompts(f"{source}:{path}")
    assert len(load_prompts(f"{source}:{path}", limit=1)) == 1  # later lines are not read


def test_local_dataset_file_has_no_split(write):
    path = write({"chosen": ONE_TURN})
    with pytest.raises(ValueError, match="split is 'test', but a local hh file has no splits"):
        load_prompts(f"hh:{path}", split="test")


def test_hh_file_drops_the_last_reply(write):
    path = write({"chosen": ONE_TURN}, {"chosen": TWO_TURNS}, {"chosen": TWO_TURNS[:-5]})
    first, second, empty_reply = load_prompts(f"hh:{path}")
    assert [first.id, second.id, empty_reply.id] == ["hh-0", "hh-1", "hh-2"]
    assert first.messages == ({"role": "user", "content": "Is tea hot?"},)
    assert [m["content"] for m in second.messages] == ["Hi.", "Hello!", "Is tea hot?"]
    assert empty_reply.messages == second.messages and second.source == "hh"


def test_hh_prompt_of_a_split_reply_ends_with_the_user(write):
    path = write({"chosen": ONE_TURN + "  Human: Why?\n\nAssistant: It is brewed so."})
    assert load_prompts(f"hh:{path}")[0].messages == ({"role": "user", "content": "Is tea hot?"},)


# The hub


def test_shp_from_the_hub(hub):
    hub.rows = [{"post_id": i, "history": f"Post {i}?", "labels": 1} for i in "aab"]
    assert [p.id for p in load_prompts("shp")] == ["shp-a", "shp-b"]
    load_prompts("shp", split="validation", limit=1)
    assert hub.calls == (
        ("stanfordnlp/SHP", None, "test", revision_of("stanfordnlp/SHP", "dataset")),
        ("stanfordnlp/SHP", None, "validation", revision_of("stanfordnlp/SHP", "dataset")),
    )


def test_hh_from_the_hub(hub):
    hub.rows = [{"chosen": ONE_TURN, "rejected": "x"}, {"chosen": TWO_TURNS, "rejected": "y"}]
    (prompt,) = load_prompts("hh", offset=1)
    assert (prompt.id, prompt.source, len(prompt.messages)) == ("hh-1", "hh", 3)
    pin = revision_of("Anthropic/hh-rlhf", "dataset")
    assert hub.calls == (("Anthropic/hh-rlhf", "harmless-base", "test", pin),) and len(pin) == 40


def test_hub_bad_row_names_dataset_and_row(hub):
    hub.rows = [{"chosen": ONE_TURN}, {"chosen": "x"}]
    with pytest.raises(ValueError, match="Anthropic/hh-rlhf, test row 1: the dialogue begins 'x'"):
        load_prompts("hh")


@pytest.mark.parametrize(
    ("source", "name"), [("shp", "stanfordnlp/SHP"), ("hh", "Anthropic/hh-rlhf")]
)
def test_hub_out_of_reach(hub, source, name):
    hub.error = ConnectionError("offline")
    with pytest.raises(RuntimeError, match=rf'{name}.*offline.*"{source}:PATH"') as caught:
        load_prompts(source)
    assert caught.value.__cause__ is hub.error


def test_hub_unknown_split_is_refused_before_any_download(hub):
    with pytest.raises(ValueError, match=r"split is 'dev'; Anthropic/hh-rlhf has train, test"):
        load_prompts("hh", split="dev")
    assert hub.calls == ()


def test_datasets_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'stanfordnlp/SHP needs .*"shp:PATH"'):
        load_prompts("shp")
    assert len(load_prompts()) == 64  # the built-in set does without


# The real files, where they are


def test_real_shp(shp_file):
    prompts = load_prompts(f"shp:{shp_file}")
    assert len(prompts) == len({p.id for p in prompts}) == 600
    assert all(len(p.messages) == 1 for p in prompts)


def test_real_hh(hh_file):
    prompts = load_prompts(f"hh:{hh_file}")
    assert [p.id for p in prompts] == [f"hh-{row}" for row in range(1800)]
    for p in prompts:
        roles = [m["role"] for m in p.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"], p.id
        assert all(m["content"] for m in p.messages), p.id


def test_real_hh_pairs(hh_file):
    pairs = hh_pairs(hh_file)
    left_out = {f"hh-{row}" for row in range(1800)} - {p.id for p in pairs}
    empty, other_prompt = {86, 516, 925, 1103}, {1254, 1688}
    assert left_out == {f"hh-{row}" for row in empty | other_prompt}
    prompts = {p.id: p.messages for p in load_prompts(f"hh:{hh_file}")}
    assert all(prompts[p.id] == p.messages for p in pairs)


# what no tokenizer, file or terminal takes


@pytest.mark.parametrize(
    "make",
    [
        lambda bad: as_messages(f"Tea {bad}?"),
        lambda bad: as_messages([{"role": "system", "content": bad}, USER]),
        lambda bad: Prompt(f"id {bad}", [USER], "test"),
        lambda bad: Prompt("id", [USER], f"source {bad}"),
        lambda bad: Prompt("id", [USER], "test", f"category {bad}"),
    ],
)
def test_half_a_character_is_refused(make):
    make("\U0001f600")  # whole, it is fine
    with pytest.raises(
        ValueError, match=r"has the lone surrogate '\\ud83d' at character \d+, in '"
    ):
        make("\ud83d")


def test_half_a_character_in_a_file_names_the_line(write):
    path = write({"prompt": "Fine?"}, json.dumps({"prompt": "Cut \ud83d?"}))
    with pytest.raises(
        ValueError, match=r"line 2: the content of message 0 has the lone surrogate"
    ):
        load_prompts(path)


def test_half_a_character_is_refused_before_anything_is_decoded(tiny):
    with pytest.raises(ValueError, match="lone surrogate"):
        tiny().prefix("Tea \ud83d?")


def test_an_id_that_is_no_string():
    with pytest.raises(TypeError, match="the prompt's id is 3; make it a string"):
        Prompt(3, [USER], "test")


def test_labels_show_no_control_characters():
    text = "red \x1b[31m, \tnext\nline, \x9b, ñ, שלום, 👩‍👧"
    label = Prompt("id", text, "test").label
    assert label == r"red \x1b[31m, next line, \x9b, ñ, שלום, 👩‍👧"


def test_limit_and_offset_may_be_numbers_of_numpy():
    import numpy as np

    assert len(load_prompts(limit=np.int64(2), offset=np.int32(1))) == 2
    for wrong in (True, np.float32(2), np.bool_(True)):
        with pytest.raises(ValueError, match=r"limit is .*whole number >= 1"):
            load_prompts(limit=wrong)
        with pytest.raises(ValueError, match=r"offset is .*whole number >= 0"):
            load_prompts(offset=wrong)


# What a program checks

IFEVAL = {
    "key": 7,
    "prompt": "Name fruit.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"relation": "at least", "num_words": 3}],
}
# As the hub has it: every row with every name.
WITH_NULLS = IFEVAL | {
    "kwargs": [{"num_words": None, "relation": None}, {"relation": "at least", "num_words": 3}]
}
CHECKS = {name: IFEVAL[name] for name in ("instruction_id_list", "kwargs")}


def test_checks_are_a_copy_and_count_for_equality_only():
    given = {"kwargs": [{}], "instruction_id_list": ("punctuation:no_comma",)}
    prompt = Prompt("a", "Hi", "s", checks=given)
    given["kwargs"][0]["x"] = 1
    assert prompt.checks == {"kwargs": [{}], "instruction_id_list": ["punctuation:no_comma"]}
    plain, other = Prompt("a", "Hi", "s"), Prompt("a", "Hi", "s", where="f, line 3")
    assert plain == other and plain.checks == {} and hash(plain) == hash(prompt)
    assert plain != prompt and prompt == Prompt("a", "Hi", "s", checks=prompt.checks)
    for wrong in ({"a": {1, 2}}, {"a": float("nan")}):
        with pytest.raises(ValueError, match="which is no JSON"):
            Prompt("a", "Hi", "s", checks=wrong)
    with pytest.raises(TypeError, match="checks are 'x'"):
        Prompt("a", "Hi", "s", checks="x")


def test_ifeval_from_a_file_and_from_the_hub_are_the_same(write, hub):
    path = write(WITH_NULLS, IFEVAL | {"key": 9, "instruction_id_list": [], "kwargs": []})
    first, second = load_prompts(f"ifeval:{path}")
    assert (first.id, first.source, second.id) == ("ifeval-7", "ifeval", "ifeval-9")
    assert first.checks == CHECKS and first.where.endswith(", line 1")
    hub.rows = [WITH_NULLS]
    (same,) = load_prompts("ifeval")
    assert same == first and same.where == "google/IFEval, train row 0"
    assert hub.calls[-1] == (
        "google/IFEval",
        None,
        "train",
        revision_of("google/IFEval", "dataset"),
    )
    with pytest.raises(ValueError, match="split is 'test'; google/IFEval has train"):
        load_prompts("ifeval", split="test")
    with pytest.raises(
        ValueError, match=r"line 1: fields are \['prompt'\]; .* key, instruction_id"
    ):
        load_prompts(f"ifeval:{write({'prompt': 'Hi'})}")


def test_any_file_may_have_checks_beside_its_prompts(write):
    code = {"prompt": "def f():", "test": "assert f()", "entry_point": "f"}
    path = write(
        IFEVAL, {"prompt": "6 x 7?", "answer": "42"}, code, {"prompt": "Hi", "id": "x", "key": 3}
    )
    stem = Path(path).name.removesuffix(".gz").removesuffix(".jsonl")
    prompts = load_prompts(path)
    assert [p.id for p in prompts] == [f"{stem}-7", f"{stem}-1", f"{stem}-2", "x"]
    assert [dict(p.checks) for p in prompts] == [CHECKS, {"answer": "42"}, code, {}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction_id_list": "x"}, "line 1: instruction_id_list is 'x'; it must be a list"),
        ({"kwargs": None}, "line 1: kwargs is None; it must be a list with an object"),
        ({"kwargs": [{}]}, "line 1: instruction_id_list has 2 names, and kwargs 1 objects"),
        ({"kwargs": [{}, 3]}, r"line 1: kwargs is \[{}, 3\]"),
        (
            {"answer": "42"},
            "line 1: columns are answer, instruction_id_list; a prompt has one kind",
        ),
    ],
)
def test_checks_that_are_no_checks_name_the_line(write, row, message):
    path = write(IFEVAL | row)
    for source in (path, f"ifeval:{path}"):
        with pytest.raises(ValueError, match=message):
            load_prompts(source)
