"""Texts near the boundary of each of IFEval's instructions, from a seeded generator.

`case(id, rng)` gives an instruction's arguments and a text that was built to follow it, or to just
miss it, by about even chances. No checker is asked: what a text is worth is for the tests to say.
"""

import json
import random

PLAIN = [
    *("river", "stone", "walk", "evening", "lamp", "quiet", "market", "bread", "window", "garden"),
    *("train", "story", "paper", "salt", "winter", "music", "table", "light", "green", "simple"),
    *("the", "a", "of", "and", "to", "in", "with", "under", "café", "naïve", "x1", "snake_case"),
]
MARKS = [",", ".", ".", "!", "?", ";", ":", "...", ""]
KEYS = ["cat", "Rome", "end", "two words", "a.b", "C++", "#tag", "well-known"]
CASE = [str, str.upper, str.lower, str.title]
RELATIONS = ["less than", "at least"]


def some(rng, low=1, high=8):
    """A few plain words with marks between them, and perhaps line breaks."""
    words = [
        rng.choice(PLAIN) + rng.choice(MARKS + [""] * 12) for _ in range(rng.randint(low, high))
    ]
    return rng.choice([" ", " ", " ", "\n"]).join(words)


def near(rng, count):
    """A bound at, just below or just above a count, at least 1."""
    return max(1, count + rng.choice([-1, 0, 0, 1]))


def mixed(rng, pieces, words=6):
    """The pieces among plain words, in any order, with spaces between all."""
    parts = [*pieces, *(rng.choice(PLAIN) for _ in range(rng.randint(1, words)))]
    rng.shuffle(parts)
    return " ".join(parts)


def existence(rng):
    keywords = rng.sample(KEYS, rng.randint(1, 2))
    found = [rng.choice([k, k, k, "s" + k + "s", k[:-1], "axb"]) for k in keywords]
    return {"keywords": keywords}, mixed(rng, [rng.choice(CASE)(k) for k in found])


def frequency(rng):
    keyword, count = rng.choice(KEYS), rng.randint(0, 4)
    found = [rng.choice(CASE)(rng.choice([keyword, keyword + "s"])) for _ in range(count)]
    arguments = {
        "keyword": keyword,
        "frequency": near(rng, count),
        "relation": rng.choice(RELATIONS),
    }
    return arguments, mixed(rng, found)


def forbidden_words(rng):
    words = rng.sample(KEYS, rng.randint(1, 2))
    forms = ["{}", "{}", "{}s", "in{}", "({})", "{}'s", "{}_", "{}.", "{}-like", "1{}"]
    found = [rng.choice(forms).format(rng.choice(words)) for _ in range(rng.randint(0, 2))]
    return {"forbidden_words": words}, mixed(rng, [rng.choice(CASE)(x) for x in found])


def letter_frequency(rng):
    letter, count = rng.choice("aeqzT#!"), rng.randint(0, 5)
    rest = [c for c in some(rng) if c.lower() != letter.lower()]
    rest += rng.choices([letter.lower(), letter.upper()], k=count)
    rng.shuffle(rest)
    arguments = {"letter": letter, "let_frequency": near(rng, count)}
    return arguments | {"let_relation": rng.choice(RELATIONS)}, "".join(rest) + " ok"


SENTENCES = [
    ("The river is cold.", 1),
    ("Who walks there?", 1),
    ("Stop!", 1),
    ("what a day!!", 1),
    ("Dr. Smith met Mrs. Jones at the mill.", 1),
    ("It costs 3.50 euros, i.e. little.", 1),
    ("J. R. Hart wrote it.", 1),
    ('"Come in," she said.', 1),
    ("He left at 5 p.m. and slept.", 1),
    ("He left at 5 p.m. Then she came.", 2),
    ("Bread, salt, etc. are there.", 1),
    ("Well... it rained.", 1),
    ("Well... It rained.", 2),
    ("\n1. Flour and salt.", 1),
    ("\n- 2. Bread.", 1),
    ("It was 7. then it was 8.", 2),
    ("He said (quietly) yes.)", 1),
    ("*Bold words.*", 1),
    ("…", 0),
    ("So it is… and stays.", 1),
    ("So it is… And stays.", 2),
    ("Visit the U.S. Army.", 2),
    ("the u.s. army marched.", 1),
    ("It was I. We ran.", 2),
]


def number_sentences(rng):
    parts = rng.choices(SENTENCES, k=rng.randint(1, 5))
    count, text = sum(n for _, n in parts), " ".join(t for t, _ in parts)
    if rng.random() < 0.3:
        count, text = count + 1, text + " and no end"
    arguments = {"num_sentences": near(rng, count), "relation": rng.choice(RELATIONS)}
    return arguments, text


def number_words(rng):
    count = rng.randint(1, 12)
    words = [rng.choice([w for w in PLAIN if w.isalnum() or "_" in w]) for _ in range(count)]
    text = "".join(w + rng.choice([" ", " ", ", ", "-", "'", "\n", "... "]) for w in words)
    return {"num_words": near(rng, count), "relation": rng.choice(RELATIONS)}, text


def number_paragraphs(rng):
    count = rng.randint(1, 4)
    parts = [some(rng, 1, 4) for _ in range(count)]
    if rng.random() < 0.2:
        parts.insert(rng.randint(0, count), rng.choice(["", " ", "\n"]))
    text = rng.choice(["***", "\n***\n", "\n\n***\n\n", " *** "]).join(parts)
    return {"num_paragraphs": near(rng, count)}, rng.choice(["", "", "***\n"]) + text


def nth_paragraph_first_word(rng):
    count = rng.randint(1, 4)
    nth, first = rng.randint(1, count), rng.choice(["river", "The", "mill"])
    parts = [some(rng, 2, 4).replace("\n", " ") for _ in range(count)]
    shown = rng.choice([first, first, first, first.upper(), first + "s", "a " + first, first[:-1]])
    shown = rng.choice(["", "", '"', "'", "'\"", "(", "  "]) + shown
    parts[nth - 1] = shown + rng.choice(["", "", ",", "!", "'s", ":"]) + " " + parts[nth - 1]
    text = rng.choice(["\n\n"] * 6 + ["\n\n\n", "\n\n\n\n", "\n \n"]).join(parts)
    arguments = {"num_paragraphs": rng.choice([count] * 5 + [count + 1])}
    return arguments | {"nth_paragraph": nth, "first_word": first}, text


def number_placeholders(rng):
    count = rng.randint(0, 4)
    found = [rng.choice(["[name]", "[a b]", "[]", "[[x]]", "[1][2]"]) for _ in range(count)]
    found += rng.choice([[], [], ["[a\nb]"], ["]x["], ["[open"]])
    return {"num_placeholders": near(rng, count)}, mixed(rng, found)


def postscript(rng):
    marker = rng.choice(["P.S.", "P.P.S", "PS:", "Note (last)"])
    forms = [marker, marker.lower(), " ".join(marker), "P. S.", "p.p.s. me", "P.S", "PS", "p.\ns."]
    return {"postscript_marker": marker}, some(rng) + "\n" + rng.choice(
        [*forms, marker, ""]
    ) + " end"


def number_bullet_lists(rng):
    count = rng.randint(1, 4)
    good = ["* one", "- two", "  * three", "-four", "*five*", "\t- six", "---"]
    bad = ["** bold", "1. one", "a - b", "a * b", "**", "+ plus", "* ", "*", "", "•  dot"]
    lines = [rng.choice(good) for _ in range(count)] + rng.choices(bad, k=rng.randint(0, 2))
    rng.shuffle(lines)
    return {"num_bullets": near(rng, count)}, "\n".join([some(rng, 1, 3), *lines, "end"])


def constrained_response(rng):
    option = f"My answer is {rng.choice(['yes', 'no', 'maybe'])}."
    other = [option[:-1], option.lower(), option.upper(), "My answer is sure.", "My  answer is no."]
    return {}, mixed(rng, [rng.choice([option] * 5 + other)])


def number_highlighted_sections(rng):
    count = rng.randint(0, 4)
    found = [rng.choice(["*a*", "*a b*", "** c*", "*d**"]) for _ in range(count)]
    found += rng.choice([[], [], ["**e f**"], ["* *"], ["*g\nh*"], ["***i***"], ["**"], ["****"]])
    return {"num_highlights": near(rng, count)}, mixed(rng, found)


def multiple_sections(rng):
    word, count = rng.choice(["Section", "SECTION", "Day", "Part (a)"]), rng.randint(0, 4)
    found = [f"\n{word}{rng.choice([' ', '', chr(10)])}{i + 1}\n" for i in range(count)]
    found += rng.choice([[], [], [word], [word.swapcase() + " 1"], [word + "s 2"], [word + "  3"]])
    return {"section_spliter": word, "num_sections": near(rng, count)}, mixed(rng, found)


def json_format(rng):
    value = rng.choice(
        [{"a": [1, 2.5, None]}, [some(rng)], some(rng), 7, True, {}, {"b": {"c": "d"}}]
    )
    text = json.dumps(value, indent=rng.choice([None, 1]))
    cut = [text, text, text, text, text[:-1], text + ",", text.replace('"', "'"), "Here: " + text]
    opening = rng.choice(["", "", "```", "```json\n", "```JSON\n", "```js\n", " \n"])
    return {}, opening + rng.choice(cut) + rng.choice(["", "", "\n```", "```", "\nDone"])


def title(rng):
    good = ["<<title>>", "<<a b>>", "<<<c>>>", "<<a>b>>", "<< d >>"]
    bad = ["<<>>", "<< >>", "<<x>", "<x>>", "<<a\nb>>", "<<<>>>", "< <x> >", "«t»"]
    return {}, mixed(rng, [rng.choice(rng.choice([good, bad]))])


def two_responses(rng):
    one, other = some(rng, 1, 3), some(rng, 1, 3)
    parts = [one, rng.choice([other] * 4 + [one, f" {one}\n", ""])]
    if rng.random() < 0.3:
        parts.insert(rng.randint(0, 2), rng.choice(["", " ", "third"]))
    stars = rng.choice(["******"] * 5 + ["*****", "*******", "***"])
    return {}, rng.choice(["{}", "\n{}\n"]).format(stars).join(parts) + " "


def repeat_prompt(rng):
    request = some(rng, 3, 8) + rng.choice(["?", ".", " "]) + " x"
    shown = rng.choice(CASE)(request)
    wrong = ["Sure. " + shown, shown[:-1], '"' + shown, shown.replace(" ", "  "), ""]
    text = rng.choice(["", " ", "\n"]) + rng.choice([shown] * 4 + wrong) + "\n" + some(rng)
    return {"prompt_to_repeat": request}, text


def end_checker(rng):
    phrase = rng.choice(["Peace!", "That is all.", "Any questions?", "the end"])
    ends = ["", "", "", '"', ' "', "\n", '"\n', ".", " Thanks", "*", "'"]
    shown = rng.choice([phrase] * 5 + [phrase.upper(), phrase.lower(), phrase[:-1], phrase[1:]])
    return {"end_phrase": phrase}, some(rng) + " " + shown + rng.choice(ends)


def quotation(rng):
    text = some(rng)
    forms = ['"{}"', ' "{}"\n', '"{}" "{}"', '"{}', '{}"', "'{}'", "“{}”", '"{}".', "{}", '"']
    return {}, rng.choice(forms[:3] + forms).format(text, text)


def capital_word_frequency(rng):
    count = rng.randint(0, 4)
    found = [
        rng.choice(["NASA", "I", "X-RAY", "A1", "U.S.", "RIVER,", '"STOP"']) for _ in range(count)
    ]
    found += rng.choice([[], ["Nasa"], ["aB"], ["1984"], ["iPHONE"], ["MP3s"], ["É"]][:6])
    arguments = {"capital_frequency": near(rng, count), "capital_relation": rng.choice(RELATIONS)}
    return arguments, mixed(rng, found)


def english_capital(rng):
    text = some(rng).upper()
    return {}, rng.choice(
        [text, text, text + " a", "b" + text, "12 34.", "É " + text, text.title()]
    )


def english_lowercase(rng):
    text = some(rng).lower()
    return {}, rng.choice(
        [text, text, text + " A", "B" + text, "12 34.", "é " + text, text.title()]
    )


def no_comma(rng):
    text = some(rng).replace(",", "")
    return {}, rng.choice([text, text, text + ", end", "," + text, text + "、" + text, text + "،"])


GENERATORS = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}


def cases(id, count=1000):
    """So many (arguments, text) of one instruction, always the same ones."""
    rng = random.Random(id)
    return [GENERATORS[id](rng) for _ in range(count)]
