"""Instructions of one prompt that no response can follow together.

IFEval's published table of conflicts says which kinds were not drawn together when its prompts were
made: each with itself, `constrained_response` with all, and so on. Its own file has many of those
pairs (sentences "at least 5" and "less than 7", a request to repeat with words to avoid), and must
load. So a pair is refused only where no text can follow both, by the rules of the checkers or by
what they are for.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

from aisp.rewards.verifiable.formats import OPTIONS

Given = tuple[str, dict[str, Any]]  # id and checked arguments of an instruction
CASES = ("change_case:english_capital", "change_case:english_lowercase")
# id -> names of its relation, of its bound, and of what is counted.
COUNTED = {
    "keywords:frequency": ("relation", "frequency", "keyword"),
    "keywords:letter_frequency": ("let_relation", "let_frequency", "letter"),
    "length_constraints:number_sentences": ("relation", "num_sentences", None),
    "length_constraints:number_words": ("relation", "num_words", None),
    "change_case:capital_word_frequency": ("capital_relation", "capital_frequency", None),
}
# Instructions whose arguments are the only ones, by the argument that cannot have two values.
SINGLE = {
    "language:response_language": "language",
    "length_constraints:number_paragraphs": "num_paragraphs",
    "length_constraints:nth_paragraph_first_word": "num_paragraphs",
    "detectable_format:number_bullet_lists": "num_bullets",
}


def check_together(given: Sequence[Given]) -> None:
    """Refuse instructions that contradict each other, or one that contradicts itself.

    Raises:
        ValueError: it names them, and says why.
    """
    for id, arguments in given:
        if arguments.get("nth_paragraph", 0) > arguments.get("num_paragraphs", 0):
            raise ValueError(
                f"{id} asks for the first word of paragraph {arguments['nth_paragraph']} of "
                f"{arguments['num_paragraphs']}; lower nth_paragraph"
            )
    for one, other in combinations(given, 2):
        for first, second in ((one, other), (other, one)):
            for rule in _RULES:
                for why in rule(first, second):
                    raise ValueError(
                        f"{one[0]} and {other[0]} contradict each other: {why}. Change or remove one"
                    )


def _counts(one: Given, other: Given) -> Iterator[str]:
    """Less than a, and at least b >= a, of the same thing."""
    if one[0] != other[0] or one[0] not in COUNTED:
        return
    relation, bound, what = COUNTED[one[0]]
    same = what is None or one[1][what].lower() == other[1][what].lower()
    less, least = one[1][bound], other[1][bound]
    relations = one[1][relation], other[1][relation]
    if same and relations == ("less than", "at least") and less <= least:
        yield f"less than {less}, and at least {least}"


def _values(one: Given, other: Given) -> Iterator[str]:
    """Two values of what can only have one."""
    name = SINGLE.get(one[0])
    if one[0] == other[0] and name and one[1][name] != other[1][name]:
        yield f"{name} is {one[1][name]!r} and {other[1][name]!r}"


def _cases(one: Given, other: Given) -> Iterator[str]:
    """Only capitals or only small letters, with what needs the others."""
    if one[0] not in CASES:
        return
    if other[0] in CASES and other[0] != one[0]:
        yield "only capitals, and only small letters"
    if other[0] == "detectable_format:constrained_response":
        yield f"the options, such as {OPTIONS[0]!r}, have both capitals and small letters"
    if one[0] == CASES[1] and other[1].get("capital_relation") == "at least":
        yield "only small letters, and words in capitals"


def _forbidden(one: Given, other: Given) -> Iterator[str]:
    """A word that is forbidden and asked for."""
    forbidden = {word.lower() for word in one[1].get("forbidden_words", ())}
    for word in _wanted(other):
        if word.lower() in forbidden:
            yield f"{word!r} is forbidden and asked for"


def _commas(one: Given, other: Given) -> Iterator[str]:
    """No commas, and text with one."""
    if one[0] == "punctuation:no_comma":
        ends = (other[1][x] for x in ("end_phrase", "postscript_marker") if x in other[1])
        for text in [*_wanted(other), *ends]:
            if "," in text:
                yield f"no commas, and {text!r}"


def _wanted(one: Given) -> list[str]:
    """The words and letters that an instruction asks for by name."""
    id, arguments = one
    wanted = list(arguments.get("keywords", ()))
    wanted += [arguments[name] for name in ("first_word",) if name in arguments]
    if id in COUNTED and (what := COUNTED[id][2]) and arguments[COUNTED[id][0]] == "at least":
        wanted.append(arguments[what])
    return wanted


_RULES: tuple[Callable[[Given, Given], Iterator[str]], ...] = (
    _counts,
    _values,
    _cases,
    _forbidden,
    _commas,
)
