"""Words, sentences and paragraphs: the rule that is written down, case by case."""

import pytest
from instruction_texts import SENTENCES

from aisp.rewards.verifiable.text import capital_words, divided, paragraphs, sentences, words


def test_words_are_runs_of_letters_digits_and_underscores():
    assert words("Don't walk 3.5 km, snake_case café!") == [
        *("Don", "t", "walk", "3", "5", "km", "snake_case", "café")
    ]
    assert words(" .,! ") == []


def test_capital_words_have_a_capital_and_no_small_letter():
    text = (
        "NASA, I saw X-RAY and DON'T of U.S.A. but not Nasa, 1984, iPHONE or MP3s; MP3 and A/B yes"
    )
    assert capital_words(text) == ["NASA", "I", "X-RAY", "DON'T", "U.S.A", "MP3", "A/B"]


@pytest.mark.parametrize(("text", "count"), SENTENCES)
@pytest.mark.parametrize("before", ["", "We ran. "])
def test_each_rule_of_sentences(before, text, count):
    assert len(sentences(before + text)) == count + bool(before)
    assert len(sentences(f"{before}{text} The end is near")) == count + bool(before) + 1


def test_sentences_keep_all_text_in_order():
    text = ' "Come in!" she said. ... It rained (a lot).  And\nthen? '
    assert sentences(text) == ['"Come in!"', "she said.", "... It rained (a lot).", "And\nthen?"]
    assert sentences("") == sentences(" ... !\n") == []
    assert sentences("no end at all") == ["no end at all"]


def test_paragraphs_and_dividers_keep_blank_parts():
    assert paragraphs("a\n\nb\n\n\n\nc\nd") == ["a", "b", "", "c\nd"]
    assert divided("a\n***\nb *** c******") == ["a", "b", "c", "", ""]
