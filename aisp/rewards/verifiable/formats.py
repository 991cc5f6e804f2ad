"""Instructions about the form of a response: Markdown, JSON, case, punctuation, start and end.

As in `instructions`, ids, arguments and rules are those of IFEval (arXiv:2311.07911), but for what
the docstrings say.
"""

import json
import re

from aisp.rewards.verifiable.registry import compared, count, instruction, phrase, relation
from aisp.rewards.verifiable.text import capital_words

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

# -- format ---------------------------------------------------------------------------------------


@instruction("detectable_format:number_bullet_lists", num_bullets=count)
def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Exactly so many bullets: lines that begin with "-", or with one "*" that more follows."""
    starred = re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE)
    dashed = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(starred) + len(dashed) == num_bullets


@instruction("detectable_format:constrained_response")
def constrained_response(text: str) -> bool:
    """One of OPTIONS occurs, exactly as it is written; more may stand around it."""
    return any(option in text for option in OPTIONS)


@instruction("detectable_format:number_highlighted_sections", num_highlights=count)
def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """At least so many *parts* or **parts** of one line between asterisks, which are not blank."""
    single = [x.strip("*") for x in re.findall(r"\*[^\n*]*\*", text)]
    double = [x[2:-2] for x in re.findall(r"\*\*[^\n*]*\*\*", text)]
    return sum(bool(x.strip()) for x in single + double) >= num_highlights


@instruction("detectable_format:multiple_sections", section_spliter=phrase, num_sections=count)
def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """The word for a section, in its case, with a number after it, at least so many times."""
    return len(re.findall(re.escape(section_spliter) + r"\s?\d+", text)) >= num_sections


@instruction("detectable_format:json_format")
def json_format(text: str) -> bool:
    """All of it is JSON, be it within ``` or ```json ... ```."""
    text = text.strip()
    for opening in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(opening)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):  # the latter by thousands of brackets, one in another
        return False
    return True


@instruction("detectable_format:title")
def title(text: str) -> bool:
    """A title within one line, <<such as this>>, that is not blank."""
    found = re.findall(r"<<[^\n]+>>", text)
    return any(x.lstrip("<").rstrip(">").strip() for x in found)


# -- combination ----------------------------------------------------------------------------------


@instruction("combination:two_responses")
def two_responses(text: str) -> bool:
    """Two different texts with "******" between them; blank ones may stand before and after."""
    parts = [part.strip() for part in text.split("******")]
    if not all(parts[1:-1]):
        return False
    filled = [part for part in parts if part]
    return len(filled) == 2 and filled[0] != filled[1]


@instruction("combination:repeat_prompt", prompt_to_repeat=phrase)
def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """It begins with the request, word for word; case does not count."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


# -- start and end --------------------------------------------------------------------------------


@instruction("startend:end_checker", end_phrase=phrase)
def end_checker(text: str, *, end_phrase: str) -> bool:
    """It ends with the phrase; case, white space and double quotes around all do not count."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@instruction("startend:quotation")
def quotation(text: str) -> bool:
    """The first and the last character are double quotes, and not the same one."""
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


# -- case and punctuation -------------------------------------------------------------------------


@instruction(
    "change_case:capital_word_frequency", capital_frequency=count, capital_relation=relation
)
def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """Less than, or at least, so many words in capitals, by the rule of `text.capital_words`.

    IFEval splits words by nltk, which makes two of "DON'T" and of "I'M".
    """
    return compared(len(capital_words(text)), capital_relation, capital_frequency)


@instruction("change_case:english_capital")
def english_capital(text: str) -> bool:
    """Letters are capitals, and there are some.

    IFEval also asks langdetect whether it is English. langdetect reads no word in capitals beyond
    its first letter, so that it tells little here; and nothing else needs that package.
    """
    return text.isupper()


@instruction("change_case:english_lowercase")
def english_lowercase(text: str) -> bool:
    """Letters are small, and there are some; as in `english_capital`, of whatever language."""
    return text.islower()


@instruction("punctuation:no_comma")
def no_comma(text: str) -> bool:
    """No comma occurs."""
    return "," not in text
