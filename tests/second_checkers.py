"""IFEval's instructions a second time, from their rules alone: loops over characters and lines.

They share nothing with `aisp.rewards.verifiable`, are slow and plain, and are compared with it on
the texts of `instruction_texts`.
"""

import json

CLOSERS = ")]}\"'”’»*_"
OPENERS = "([{\"'“‘«*_"
NEVER = (
    " mr mrs ms mx dr prof rev capt sgt lt cmdr gov st mt messrs vs cf viz fig dept approx pp e.g i.e "
    "a.k.a ph.d "
)
PERHAPS = " etc al inc ltd corp co jr sr a.m p.m a.d b.c ave blvd u.s u.k "


def follows(id, text, **arguments):
    """Whether a text follows an instruction."""
    return globals()[id.split(":")[1]](text, **arguments)


def is_word(character):
    return character == "_" or character.isalnum()


def places(text, part):
    """Where a part begins, ones that overlap left out; case does not count."""
    text, part, found, i = text.lower(), part.lower(), [], 0
    while i + len(part) <= len(text):
        if text[i : i + len(part)] == part:
            found.append(i)
            i += len(part)
        else:
            i += 1
    return found


def within(number, relation, bound):
    return {"less than": number < bound, "at least": number >= bound}[relation]


def existence(text, keywords):
    return min(len(places(text, keyword)) for keyword in keywords) > 0


def frequency(text, keyword, frequency, relation):
    return within(len(places(text, keyword)), relation, frequency)


def forbidden_words(text, forbidden_words):
    padded = f" {text} "
    for word in forbidden_words:
        for i in range(1, len(text) - len(word) + 2):
            beside = padded[i - 1] + padded[i + len(word)]
            if padded[i : i + len(word)].lower() == word.lower() and not any(map(is_word, beside)):
                return False
    return True


def letter_frequency(text, letter, let_frequency, let_relation):
    count = 0
    for character in text:
        count += character.lower() == letter.lower()
    return within(count, let_relation, let_frequency)


def sentences(text):
    """The number of sentences, token by token."""
    found, has_word, line_start = 0, False, True
    tokens = []
    for line in text.split("\n"):
        own = line.split()
        tokens += [
            (token, all(set(x) <= set("-*#>") for x in own[:i])) for i, token in enumerate(own)
        ]
    for i, (token, line_start) in enumerate(tokens):
        has_word = has_word or any(map(is_word, token))
        stem = token.rstrip(CLOSERS)
        body = stem.rstrip(".!?…")
        marks = stem[len(body) :]
        if not marks or not has_word:
            continue
        coming = ""
        for later, _ in tokens[i + 1 :]:
            coming = later.lstrip(OPENERS)[:1]
            if coming:
                break
        coming = coming if coming and is_word(coming) else ""
        last = body
        for opener in OPENERS:
            last = last.split(opener)[-1]
        if "!" in marks or "?" in marks or not coming:
            ends = True
        elif marks != ".":
            ends = not coming.islower()
        elif last and last.isdecimal():
            ends = not (line_start and not body[: -len(last)].strip("-*#>"))
        elif f" {last.lower()} " in PERHAPS:
            ends = not coming.islower()
        elif len(last) == 1 and last.isupper() and last != "I":
            ends = False
        else:
            ends = f" {last.lower()} " not in NEVER
        if ends:
            found, has_word = found + 1, False
    return found + has_word


def number_sentences(text, num_sentences, relation):
    return within(sentences(text), relation, num_sentences)


def number_paragraphs(text, num_paragraphs):
    parts = text.split("***")
    if len(parts) > 1 and not parts[0].strip():
        parts = parts[1:]
    if not parts[-1].strip():
        parts = parts[:-1]
    return all(part.strip() for part in parts) and len(parts) == num_paragraphs


def number_words(text, num_words, relation):
    count, inside = 0, False
    for character in text:
        count += is_word(character) and not inside
        inside = is_word(character)
    return within(count, relation, num_words)


def nth_paragraph_first_word(text, num_paragraphs, nth_paragraph, first_word):
    parts = text.split("\n\n")
    if len([part for part in parts if part.split()]) != num_paragraphs:
        return False
    if nth_paragraph > num_paragraphs or not parts[nth_paragraph - 1].split():
        return False
    first = parts[nth_paragraph - 1].split()[0]
    while first.startswith("'"):
        first = first[1:]
    while first.startswith('"'):
        first = first[1:]
    kept = ""
    for character in first:
        if character in ".,?!'\"":
            break
        kept += character
    return kept.lower() == first_word.lower()


def number_placeholders(text, num_placeholders):
    count = 0
    for line in text.split("\n"):
        while "[" in line and "]" in line[line.index("[") :]:
            line = line[line.index("[") :]
            line = line[line.index("]") + 1 :]
            count += 1
    return count >= num_placeholders


def postscript(text, postscript_marker):
    text, tight = text.lower(), postscript_marker.lower()
    if postscript_marker not in ("P.S.", "P.P.S"):
        return tight in text
    gaps = ["", " ", "\n", "\t"]
    if postscript_marker == "P.S.":
        return any(f"p.{gap}s." in text for gap in gaps)
    return any(f"p.{gap}p.{other}s" in text for gap in gaps for other in gaps)


def number_bullet_lists(text, num_bullets):
    """A lone "*" counts where a line follows that is not a second bullet to the same pattern."""
    count, lines = 0, [line.lstrip() for line in text.split("\n")]
    i = 0
    while i < len(lines):  # stars, of which a lone one takes the next line with it
        if lines[i] == "*" and i + 1 < len(lines):
            count, i = count + 1, i + 1
        elif lines[i].startswith("*") and len(lines[i]) > 1 and lines[i][1] != "*":
            count += 1
        i += 1
    return count + sum(line.startswith("-") for line in lines) == num_bullets


def constrained_response(text):
    return sum(text.count(f"My answer is {x}.") for x in ("yes", "no", "maybe")) > 0


def number_highlighted_sections(text, num_highlights):
    return stars(text, 1) + stars(text, 2) >= num_highlights


def stars(text, width):
    """Parts of a line between so many asterisks that hold something, from left to right."""
    count, i, mark = 0, 0, "*" * width
    while i < len(text):
        end = i + width
        while end < len(text) and text[end] not in "*\n":
            end += 1
        if text[i : i + width] == mark and text[end : end + width] == mark:
            count += bool(text[i + width : end].strip())
            i = end + width
        else:
            i += 1
    return count


def multiple_sections(text, section_spliter, num_sections):
    count = 0
    for rest in text.split(section_spliter)[1:]:
        rest = rest[1:] if rest[:1].isspace() else rest
        count += rest[:1].isdecimal()
    return count >= num_sections


def json_format(text):
    text = text.strip()
    if text.startswith("```"):
        text = text[7:] if text[3:7] in ("json", "Json", "JSON") else text[3:]
    if text.endswith("```"):
        text = text[:-3]
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def title(text):
    """From the first << of a line to its last >>, with something within."""
    for line in text.split("\n"):
        begin, end = line.find("<<"), line.rfind(">>")
        if begin >= 0 and end - begin > 2 and line[begin : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def two_responses(text):
    parts = [part.strip() for part in text.split("*" * 6)]
    if parts[0] == "":
        parts = parts[1:]
    if parts and parts[-1] == "":
        parts = parts[:-1]
    return len(parts) == 2 and "" not in parts and len(set(parts)) == 2


def repeat_prompt(text, prompt_to_repeat):
    want = prompt_to_repeat.strip().lower()
    return text.strip().lower()[: len(want)] == want


def end_checker(text, end_phrase):
    text = text.strip()
    while text and text[0] == '"':
        text = text[1:]
    while text and text[-1] == '"':
        text = text[:-1]
    return end_phrase.lower() == text.lower()[-len(end_phrase) :]


def quotation(text):
    text = text.strip()
    return len(text) >= 2 and text[:1] + text[-1:] == '""'


def capital_word_frequency(text, capital_frequency, capital_relation):
    count = 0
    for token in text.split():
        run = ""
        for i, character in enumerate(token + " "):
            joins = character in "-'’.&/" and run and i + 1 < len(token) and is_word(token[i + 1])
            if is_word(character) or joins:
                run += character
            else:
                letters = [c for c in run if c.lower() != c.upper()]
                count += bool(letters) and all(c == c.upper() for c in letters)
                run = ""
    return within(count, capital_relation, capital_frequency)


def english_capital(text):
    letters = [c for c in text if c.lower() != c.upper()]
    return bool(letters) and not [c for c in letters if c != c.upper()]


def english_lowercase(text):
    letters = [c for c in text if c.lower() != c.upper()]
    return bool(letters) and not [c for c in letters if c != c.lower()]


def no_comma(text):
    return text.split(",") == [text]
