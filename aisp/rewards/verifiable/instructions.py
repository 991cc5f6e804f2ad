"""Instructions about what a response says and how long it is.

Ids, arguments and rules are those of IFEval (Zhou et al., arXiv:2311.07911); `formats` has those
about form. Where a rule is another one than in IFEval's published code, its docstring says so.
"""

import re

from aisp.checks import choice
from aisp.rewards.verifiable.language import LANGUAGES, detected, detector
from aisp.rewards.verifiable.registry import (
    compared,
    count,
    instruction,
    letter,
    phrase,
    phrases,
    relation,
    word,
)
from aisp.rewards.verifiable.text import divided, paragraphs, sentences, words

# -- keywords -------------------------------------------------------------------------------------


@instruction("keywords:existence", keywords=phrases)
def existence(text: str, *, keywords: list[str]) -> bool:
    """Every keyword occurs, be it within a word; case does not count.

    IFEval reads a keyword as a regular expression, so that "a.b" also finds "axb"; here it is text.
    """
    return all(re.search(re.escape(keyword), text, re.IGNORECASE) for keyword in keywords)


@instruction("keywords:frequency", keyword=phrase, frequency=count, relation=relation)
def frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """The keyword occurs less than, or at least, so many times; as in `existence`, anywhere."""
    found = len(re.findall(re.escape(keyword), text, re.IGNORECASE))
    return compared(found, relation, frequency)


@instruction("keywords:forbidden_words", forbidden_words=phrases)
def forbidden_words(text: str, *, forbidden_words: list[str]) -> bool:
    r"""None of the words occurs as a whole word; case does not count.

    Whole: no letter, digit or underscore stands beside it. IFEval asks for `\b` on both sides, by
    which a forbidden "#" or "c++" between spaces is never found.
    """
    whole = (rf"(?<!\w){re.escape(x)}(?!\w)" for x in forbidden_words)
    return not any(re.search(pattern, text, re.IGNORECASE) for pattern in whole)


@instruction("keywords:letter_frequency", letter=letter, let_frequency=count, let_relation=relation)
def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """The character occurs less than, or at least, so many times; case does not count.

    IFEval's code takes a to z only, and a random letter in the place of any other character, such
    as the "#" and "!" of its own file.
    """
    return compared(text.lower().count(letter.lower()), let_relation, let_frequency)


# -- language -------------------------------------------------------------------------------------


def language(name: str, value: object) -> str:
    """One of LANGUAGES."""
    return choice(name, value, LANGUAGES)


@instruction("language:response_language", ready=detector, language=language)
def response_language(text: str, *, language: str) -> bool:
    """The language that langdetect finds is this one; a text without one passes, as in IFEval.

    IFEval's code does not seed langdetect, whose answers on short texts change from call to call.
    """
    return detected(text) in (language, None)


# -- length ---------------------------------------------------------------------------------------


@instruction("length_constraints:number_sentences", num_sentences=count, relation=relation)
def number_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    """Less than, or at least, so many sentences, by the rule of `text`; IFEval's is nltk's Punkt."""
    return compared(len(sentences(text)), relation, num_sentences)


@instruction("length_constraints:number_paragraphs", num_paragraphs=count)
def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Exactly so many parts between dividers "***", and no blank one but before or after all."""
    parts = divided(text)
    inner = parts[1:-1]
    outer = [parts[0], parts[-1]] if len(parts) > 1 else parts
    if not all(part.strip() for part in inner):
        return False
    return len(inner) + sum(bool(part.strip()) for part in outer) == num_paragraphs


@instruction("length_constraints:number_words", num_words=count, relation=relation)
def number_words(text: str, *, num_words: int, relation: str) -> bool:
    r"""Less than, or at least, so many words, which are runs of `\w`."""
    return compared(len(words(text)), relation, num_words)


@instruction(
    "length_constraints:nth_paragraph_first_word",
    num_paragraphs=count,
    nth_paragraph=count,
    first_word=word,
)
def nth_paragraph_first_word(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    r"""Exactly so many paragraphs between double line breaks, and the n-th begins with the word.

    Blank paragraphs are not counted, but have a number, as in IFEval: four line breaks in a row move
    what follows. Of the first word, quotes before it and all from the first of . , ? ! ' " on do not
    count, nor does case.
    """
    parts = paragraphs(text)
    if sum(bool(part.strip()) for part in parts) != num_paragraphs:
        return False
    if nth_paragraph > num_paragraphs or not parts[nth_paragraph - 1].strip():
        return False
    first = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", first, maxsplit=1)[0].lower() == first_word.lower()


# -- content --------------------------------------------------------------------------------------


@instruction("detectable_content:number_placeholders", num_placeholders=count)
def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many pairs of square brackets, each within one line, such as [address]."""
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


@instruction("detectable_content:postscript", postscript_marker=phrase)
def postscript(text: str, *, postscript_marker: str) -> bool:
    """The marker occurs; case does not count. "P.S." and "P.P.S" may have spaces between letters.

    As in IFEval, nothing asks for its being at the end.
    """
    spaced = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    pattern = spaced.get(postscript_marker, re.escape(postscript_marker.lower()))
    return re.search(pattern, text.lower()) is not None
