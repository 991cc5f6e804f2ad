"""A text that is built to follow an instruction does, and with one small change it does not."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aisp.rewards.verifiable.registry import INSTRUCTIONS, checked_arguments, checker

WORD = st.text("bdfghjklmnoprstuvwy", min_size=1, max_size=7)  # no z, which all keywords have


def words(draw, low=1, high=8):
    return draw(st.lists(WORD, min_size=low, max_size=high))


def line(draw, low=1, high=6):
    return " ".join(words(draw, low, high))


def among(draw, pieces):
    """The pieces among other words."""
    return " ".join(draw(st.permutations([*pieces, *words(draw)])))


def bounded(draw, build, bound="frequency", relation="relation"):
    """Of n, "at least n" or "less than n + 1", and of one fewer or one more: arguments and texts."""
    n, least = draw(st.integers(2, 6)), draw(st.booleans())
    own = {bound: n if least else n + 1, relation: "at least" if least else "less than"}
    return own, build(n), build(n - 1 if least else n + 1)


def exactly(draw, name, build):
    n = draw(st.integers(2, 6))
    return {name: n}, build(n), build(n + draw(st.sampled_from([-1, 1])))


def at_least(draw, name, build, broken):
    n = draw(st.integers(1, 6))
    return {name: n}, build(n), build(n - 1) + broken


def existence(draw):
    return {"keywords": ["zebra"]}, among(draw, ["Zebra"]), among(draw, ["Zebr"])


def frequency(draw):
    own, *texts = bounded(draw, lambda n: among(draw, ["zebra"] * n))
    return own | {"keyword": "Zebra"}, *texts


def forbidden_words(draw):
    good, bad = among(draw, ["zebras", "zebra_"]), among(draw, ["ZEBRA,"])
    return {"forbidden_words": ["zebra"]}, good, bad


def letter_frequency(draw):
    own, *texts = bounded(draw, lambda n: among(draw, ["Z"] * n), "let_frequency", "let_relation")
    return own | {"letter": "z"}, *texts


def number_sentences(draw):
    marks = st.sampled_from([".", "!", "?", '."', "?!", ".*"])

    def build(n):
        return " ".join(line(draw, 2) + " zz" + draw(marks) for _ in range(n))

    return bounded(draw, build, "num_sentences")


def number_paragraphs(draw):
    return exactly(draw, "num_paragraphs", lambda n: "\n***\n".join(line(draw) for _ in range(n)))


def number_words(draw):
    return bounded(draw, lambda n: ", ".join(words(draw, n, n)), "num_words")


def nth_paragraph_first_word(draw):
    n = draw(st.integers(1, 4))
    nth = draw(st.integers(1, n))
    parts = [line(draw) for _ in range(n)]

    def with_first(word):
        return "\n\n".join([*parts[: nth - 1], f"{word} {parts[nth - 1]}", *parts[nth:]])

    own = {"num_paragraphs": n, "nth_paragraph": nth, "first_word": "zebra"}
    return own, with_first('"Zebra,'), with_first("a zebra")


def number_placeholders(draw):
    def build(n):
        return among(draw, [f"[{draw(WORD)}]" for _ in range(n)])

    return at_least(draw, "num_placeholders", build, " [open")


def postscript(draw):
    text = line(draw)
    return {"postscript_marker": "P.S."}, f"{text}\nP. S. {text}", f"{text}\nPS {text}"


def number_bullet_lists(draw):
    mark = st.sampled_from(["* ", "- ", "  * "])

    def build(n):
        return "\n".join(draw(mark) + line(draw) for _ in range(n))

    return exactly(draw, "num_bullets", build)


def constrained_response(draw):
    option = f"My answer is {draw(st.sampled_from(['yes', 'no', 'maybe']))}."
    return {}, among(draw, [option]), among(draw, [option[:-1] + ","])


def number_highlighted_sections(draw):
    def build(n):
        return among(draw, [f"*{line(draw)}*" for _ in range(n)])

    return at_least(draw, "num_highlights", build, f" *{line(draw)}")


def multiple_sections(draw):
    def build(n):
        return "\n".join(f"Part {i + 1}\n{line(draw)}" for i in range(n))

    own, *texts = at_least(draw, "num_sections", build, "\nPart zz")
    return own | {"section_spliter": "Part"}, *texts


def json_format(draw):
    values = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())
    text = json.dumps({draw(WORD): draw(values)})
    opening, closing = draw(st.sampled_from([("", ""), ("```json\n", "\n```"), ("```", "```")]))
    return {}, opening + text + closing, opening + text[:-1] + closing


def title(draw):
    text = line(draw)
    return {}, among(draw, [f"<<{text}>>"]), among(draw, [f"<<{text}>"])


def two_responses(draw):
    text = line(draw)
    return {}, f"{text}\n******\n{text} z", f"{text}\n******\n{text}"


def repeat_prompt(draw):
    request, answer = "Z" + line(draw), line(draw)
    return (
        {"prompt_to_repeat": request},
        f" {request.upper()}\n{answer}",
        f"{request[1:]}\n{answer}",
    )


def end_checker(draw):
    text = line(draw)
    return {"end_phrase": "The zebra."}, f'{text} the Zebra."', f"{text} the Zebra. {text}"


def quotation(draw):
    text = line(draw)
    return {}, f' "{text}"\n', f'"{text}'


def capital_word_frequency(draw):
    def build(n):
        return among(draw, [f"{draw(WORD)}z".upper() for _ in range(n)])

    return bounded(draw, build, "capital_frequency", "capital_relation")


def english_capital(draw):
    text = line(draw).upper()
    return {}, text, text + draw(WORD)


def english_lowercase(draw):
    text = line(draw)
    return {}, text, text + draw(WORD).upper()


def no_comma(draw):
    text = line(draw)
    at = draw(st.integers(0, len(text)))
    return {}, text, text[:at] + "," + text[at:]


BUILDERS = {id: globals().get(id.split(":")[1]) for id in sorted(INSTRUCTIONS)}


@pytest.mark.parametrize("id", [id for id in BUILDERS if id != "language:response_language"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_what_is_built_to_follow_does_and_a_small_change_does_not(id, data):
    own, good, bad = BUILDERS[id](data.draw)
    holds = checker(id, checked_arguments(id, own))
    assert holds(good), (own, good)
    assert not holds(bad), (own, bad)
