"""Quotations of prompts: the same are found as by comparing everything with everything, and soon."""

import random
import time
from difflib import SequenceMatcher

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aisp.experiment.store.quotations import unquoted, without
from aisp.prompts import Prompt


def slowly(text, source, least):
    """What records did before: the longest match first, found in quadratic time."""
    while (m := SequenceMatcher(None, text, source, False).find_longest_match()).size >= least:
        text = text[: m.a] + "…" + text[m.a + m.size :]
    return text


def texts(alphabet):
    return st.text(alphabet, max_size=40)


@given(texts("ab"), texts("ab"), st.integers(2, 6))
@settings(deadline=None, max_examples=500)
def test_the_same_quotations_go_as_in_the_quadratic_search(text, source, least):
    assert without(text, source, least) == slowly(text, source, least)


@given(texts("abc…"), texts("ab…"), st.integers(2, 6))
@settings(deadline=None, max_examples=300)
def test_nothing_that_counts_as_a_quotation_is_left_even_of_texts_with_ellipses(
    text, source, least
):
    left = without(text, source, least)
    assert not any(left[i : i + least] in source for i in range(len(left) - least + 1))


def test_longest_first_and_as_a_python_literal():
    secret = 'My neighbour\'s "old"\ndog barks all night'
    prompt = Prompt("shp-1", secret, "shp")
    text = f"no: {secret!r}, {secret[:30]}!"
    expected = slowly(slowly(text, secret, 12), repr(secret)[1:-1], 12)
    assert unquoted(text, prompt) == expected == "no: '…\\'s \"old\"\\n…', …!"
    assert unquoted("barks all day", prompt) == "barks all day"


WORDS = ["the", "garden", "why", "of", "it's", '"paint"', "\n"]


@pytest.mark.parametrize(
    "source",
    [
        " ".join(random.Random(0).choices(WORDS, k=20_000)),
        "".join(chr(random.Random(i).randint(97, 122)) for i in range(100_000)),
        "ab" * 50_000,
    ],
    ids=["words", "letters", "repeated"],
)
def test_a_hundred_thousand_characters_take_about_a_second(source):
    began = time.perf_counter()
    left = unquoted(f"TypeError: {source!r} is no text", Prompt("shp-1", source, "shp"), 40)
    assert len(left) < len(source) / 20
    assert time.perf_counter() - began < 20  # 1 s on a quiet machine; quadratic, minutes
