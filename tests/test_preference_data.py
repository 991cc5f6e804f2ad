"""HH-RLHF: dialogues as messages, and what makes a preference pair."""

from dataclasses import FrozenInstanceError

import pytest

from aisp.preference_data import Pair, hh_messages, hh_pairs

# Invented dialogues in the format of HH-RLHF.
ONE_TURN = "\n\nHuman: Is tea hot?\n\nAssistant: Usually."
TWO_TURNS = "\n\nHuman: Hi.\n\nAssistant:  Hello!\n\nHuman: Is tea hot?\n\nAssistant: Yes."


def test_hh_messages_of_a_dialogue():
    user, assistant = {"role": "user"}, {"role": "assistant"}
    assert hh_messages(TWO_TURNS) == [
        {**user, "content": "Hi."},
        {**assistant, "content": "Hello!"},
        {**user, "content": "Is tea hot?"},
        {**assistant, "content": "Yes."},
    ]
    assert hh_messages(TWO_TURNS.strip()) == hh_messages(TWO_TURNS)
    assert hh_messages("\n\nHuman: Hi.\n\nAssistant:")[-1] == {**assistant, "content": ""}


def test_hh_messages_keeps_the_words_within_a_turn():
    said = 'Write "Human: hi" and "Assistant: hello".\nHuman: again\n\nThe Assistant: no'
    messages = hh_messages(f"\n\nHuman: {said}\n\nAssistant: Human: what?\n\nHumans: two")
    assert [m["role"] for m in messages] == ["user", "assistant"]
    assert messages[0]["content"] == said
    assert messages[1]["content"] == "Human: what?\n\nHumans: two"


def test_hh_messages_merges_repeated_roles():
    messages = hh_messages("\n\nHuman: A\n\nHuman: B\n\nAssistant:\n\nAssistant: C\n\nHuman: D")
    assert [(m["role"], m["content"]) for m in messages] == [
        ("user", "A\n\nB"),
        ("assistant", "C"),
        ("user", "D"),
    ]


@pytest.mark.parametrize(
    "dialogue", ["", "Hello", "\n\nAssistant: Hi.", "So: \n\nHuman: Hi.", "\n\nhuman: Hi."]
)
def test_hh_messages_errors(dialogue):
    with pytest.raises(ValueError, match="must begin with 'Human:'"):
        hh_messages(dialogue)


def test_hh_pairs_keeps_what_teaches_a_preference(write):
    two = TWO_TURNS.removesuffix(" Yes.")
    path = write(
        {"chosen": two + " Yes.", "rejected": two + " No."},
        {"chosen": two, "rejected": two + " No."},  # empty reply
        {"chosen": two + " Yes.", "rejected": two + "  "},
        {"chosen": two + " Yes.", "rejected": ONE_TURN},  # another prompt
        {"chosen": two + " Yes.", "rejected": two + "  Yes. "},  # the same reply
        {"chosen": two + " So.\n\nAssistant: A", "rejected": two + " So.\n\nAssistant: B"},
        {"chosen": ONE_TURN, "rejected": ONE_TURN + " Not iced."},
    )
    pairs = hh_pairs(path)
    assert [p.id for p in pairs] == ["hh-0", "hh-6"]
    assert pairs[0] == Pair("hh-0", tuple(hh_messages(TWO_TURNS)[:-1]), "Yes.", "No.")
    assert (pairs[1].chosen, pairs[1].rejected) == ("Usually.", "Usually. Not iced.")
    with pytest.raises(FrozenInstanceError):
        pairs[0].chosen = ""


def test_hh_pairs_errors(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        hh_pairs(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="line 1: field `rejected` is None"):
        hh_pairs(write({"chosen": ONE_TURN}, name="one"))
    with pytest.raises(ValueError, match=r"line 1: .*ends with a human turn"):
        hh_pairs(write({"chosen": ONE_TURN, "rejected": "\n\nHuman: Hi."}, name="human"))
    with pytest.raises(ValueError, match="no usable pair"):
        hh_pairs(write({"chosen": ONE_TURN, "rejected": ONE_TURN}, name="same"))
