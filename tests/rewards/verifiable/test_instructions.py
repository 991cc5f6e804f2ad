"""Each instruction from both sides of its rule, and what is refused before anything is scored."""

import pytest

from aisp.rewards.verifiable.contradictions import check_together
from aisp.rewards.verifiable.kinds import compiled, loose_variants
from aisp.rewards.verifiable.language import detector
from aisp.rewards.verifiable.registry import INSTRUCTIONS, checked_arguments, checker

LEAST, LESS = "at least", "less than"
# id, arguments, texts that follow, texts that do not
RULES = [
    ("keywords:existence", {"keywords": ["cat", "a.b"]}, ["Category A.B"], ["cat axb", "ca a.b"]),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": LEAST},
        ["Cat, concat"],
        ["cat"],
    ),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": LESS},
        ["cat"],
        ["catcat"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["cat", "c++"]},
        ["cats, cat_"],
        ["CAT", "c++."],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "A", "let_frequency": 2, "let_relation": LEAST},
        ["aA"],
        ["a b"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": LESS},
        ["#a"],
        ["#a #b"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": LEAST},
        ["Yes. No"],
        ["Dr. No."],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": LESS}, ["a b"], ["a b-c"]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***a***b***"],
        ["a\n\nb", "a***b***c", "a *** *** b"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Mill"},
        ["a\n\nmill, b", "a\n\n\"Mill's c\n\n "],
        ["mill\n\na", "a\n\nmills", "a\n\n\n\nmill", "a\n\nmill\n\nb"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[a] [b]", "[[a]] []"],
        ["[a] [b", "[a\nb] [c]"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["a\nP. s. b"], ["PS", "P.S"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["p.p. s"], ["P.S."]),
    ("detectable_content:postscript", {"postscript_marker": "Note:"}, ["a note: b"], ["note b"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n- b", "*a*\n  * b"],
        ["* a\n** b", "* a\n- b\n- c", "1. a\n2. b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["Well. My answer is no. Yes."],
        ["My answer is No."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* *b*", "*a* **b**"],
        ["*a*", "*a* * *", "*a\nb* *c*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Day", "num_sections": 2},
        ["Day 1\na\nDay2"],
        ["day 1 Day 2", "Day one Day 2"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', "```json\n[1]\n```", " ```7```", '"a"'],
        ["{'a': 1}", "{} ok", "[" * 100_000],
    ),
    ("detectable_format:title", {}, ["<<a>>", "x <<<b>>> y"], ["<a>", "<< >>", "<<a\n>>"]),
    (
        "combination:two_responses",
        {},
        ["a******b", "******a\n******\nb\n"],
        ["a", "a******a ", "a****** ******b", "a******b******c"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say it. "},
        [" say IT.\nIt."],
        ["Sure. Say it.", "Say"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "The end."},
        ['a the End." \n'],
        ["the end. a", "the end"],
    ),
    ("startend:quotation", {}, [' "a" ', '"" ""'], ['"', '"a', "“a”", '"a".']),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LEAST},
        ["I DON'T know"],
        ["I Don't", "DON'T 12"],
    ),
    ("change_case:english_capital", {}, ["A 1, É!"], ["Aa", "12"]),
    ("change_case:english_lowercase", {}, ["a 1, é!"], ["aA", "12"]),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b", ","]),
]


@pytest.mark.parametrize(("id", "arguments", "good", "bad"), RULES)
def test_each_instruction_from_both_sides(id, arguments, good, bad):
    holds = checker(id, checked_arguments(id, arguments))
    assert [holds(text) for text in good] == [True] * len(good)
    assert [holds(text) for text in bad] == [False] * len(bad)


def test_all_25_instructions_have_rules_here_and_docstrings():
    assert {id for id, *_ in RULES} | {"language:response_language"} == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 25 and all(one.holds.__doc__ for one in INSTRUCTIONS.values())


def test_without_langdetect_a_language_is_refused_with_what_to_do():
    try:
        detector()
    except ImportError:
        with pytest.raises(ImportError, match="pip install langdetect"):
            compiled(checks("language:response_language", language="de"))
    else:
        _, (part,) = compiled(checks("language:response_language", language="de"))
        assert part.holds("Der Fluss ist kalt, und abends geht man gerne an ihm entlang.")
        assert not part.holds("The river is cold, and people like to walk there in the evening.")


def checks(id, **arguments):
    return {"instruction_id_list": [id], "kwargs": [arguments]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            checks("punctuation:no_coma"),
            r"the instruction is 'punctuation:no_coma'; known: .*no_comma",
        ),
        (checks("punctuation:no_comma", x=1), r"kwargs of punctuation:no_comma are .*takes none"),
        (checks("keywords:existence"), r"kwargs of keywords:existence are {}; it takes keywords"),
        (checks("keywords:existence", keywords=[]), "must be a list of at least one text"),
        (checks("keywords:existence", keywords="cat"), "'cat'; it must be a list"),
        (checks("keywords:existence", keywords=["a", " "]), r"keywords of .*\[1\] is ' '"),
        (checks("detectable_format:number_bullet_lists", num_bullets=0), "whole number >= 1"),
        (checks("detectable_format:number_bullet_lists", num_bullets="3"), "num_bullets .* is '3'"),
        (checks("detectable_format:number_bullet_lists", num_bullets=3.5), "num_bullets .* is 3.5"),
        (
            checks("length_constraints:number_words", num_words=3, relation="at most"),
            "relation of .* is 'at most'; known: less than, at least",
        ),
        (
            checks("keywords:letter_frequency", letter="ab", let_frequency=1, let_relation=LESS),
            "letter of .* is 'ab'; it must be one character",
        ),
        (
            checks(
                "length_constraints:nth_paragraph_first_word",
                num_paragraphs=1,
                nth_paragraph=1,
                first_word="two words",
            ),
            "must be one word",
        ),
        (checks("language:response_language", language="xx"), "language .* is 'xx'; known: af, ar"),
        ({"instruction_id_list": [], "kwargs": []}, "at least one id"),
        ({"instruction_id_list": ["punctuation:no_comma"]}, "kwargs is None; .* each of the 1"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}, {}]}, "each of the 1"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [7]}, "kwargs of .* are 7"),
        (checks("punctuation:no_comma") | {"id": 1}, "beside .* there is id"),
        ({}, "it has none; give it checks of one kind: instruction_id_list"),
        ({"tests": 1}, "it has tests; give it checks of one kind"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_and_value(given, message):
    with pytest.raises(ValueError, match=message):
        compiled(given)


def test_names_without_a_value_do_not_count():
    kind, (part,) = compiled(checks("punctuation:no_comma", keywords=None, num_words=None))
    assert part.holds("a b") and kind.variants is loose_variants


CAPITAL, SMALL = ("change_case:english_capital", {}), ("change_case:english_lowercase", {})
NO_COMMA = ("punctuation:no_comma", {})


def words(relation, bound):
    return "length_constraints:number_words", {"relation": relation, "num_words": bound}


def keyword(word, relation=LEAST, bound=1):
    own = {"keyword": word, "relation": relation, "frequency": bound}
    return "keywords:frequency", own


def capitals(relation, bound=1):
    own = {"capital_relation": relation, "capital_frequency": bound}
    return "change_case:capital_word_frequency", own


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        ([CAPITAL, SMALL], "only capitals, and only small letters"),
        ([SMALL, capitals(LEAST)], "only small letters, and words in capitals"),
        ([CAPITAL, ("detectable_format:constrained_response", {})], "both capitals and small"),
        ([words(LEAST, 5), words(LESS, 5)], "less than 5, and at least 5"),
        ([keyword("Cat", LEAST, 2), keyword("cat", LESS, 1)], "less than 1, and at least 2"),
        (
            [("keywords:existence", {"keywords": ["Cat"]}), ("keywords:forbidden_words", {"forbidden_words": ["cat"]})],
            "'Cat' is forbidden and asked for",
        ),
        ([NO_COMMA, ("startend:end_checker", {"end_phrase": "a, b"})], "no commas, and 'a, b'"),
        (
            [("detectable_format:number_bullet_lists", {"num_bullets": n}) for n in (2, 3)],
            "num_bullets is [23] and [23]",
        ),
    ],
)  # fmt: skip
def test_instructions_that_no_text_can_follow_together_are_refused(pair, why):
    for given in (pair, pair[::-1]):
        with pytest.raises(ValueError, match=f"contradict each other: .*{why}") as caught:
            check_together(given)
        assert all(id in str(caught.value) for id, _ in pair)


def test_pairs_that_a_text_can_follow_are_taken():
    for given in (
        [words(LEAST, 5), words(LESS, 6)],
        [keyword("cat", LEAST, 2), keyword("dog", LESS, 1)],
        [SMALL, capitals(LESS)],
        [CAPITAL, capitals(LEAST)],
        [("startend:quotation", {}), ("startend:quotation", {})],  # as IFEval's own file has it
        [NO_COMMA, ("combination:repeat_prompt", {"prompt_to_repeat": "a, b"})],  # this, too
    ):
        check_together(given)


def test_a_paragraph_beyond_the_last_is_refused():
    own = {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"}
    with pytest.raises(ValueError, match="paragraph 3 of 2; lower nth_paragraph"):
        compiled(checks("length_constraints:nth_paragraph_first_word", **own))


def test_the_loose_variants_are_ifevals_eight():
    assert loose_variants("a *b*\nc \n*d*") == [
        *("a *b*\nc \n*d*", "c \n*d*", "a *b*\nc", "c"),
        *("a b\nc \nd", "c \nd", "a b\nc"),  # and "c" again
    ]
    assert loose_variants("one line") == ["one line", ""]
