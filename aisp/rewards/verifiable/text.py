r"""Words, sentences and paragraphs of a response, by rules that need no download.

IFEval (arXiv:2311.07911) splits sentences by nltk's trained Punkt model, whose data nltk fetches at
run time. The rule here is written out instead, so that it is the same everywhere:

- a sentence ends at ".", "!", "?" or "…", one or more of them, with closing quotes, brackets or
  asterisks after them, if white space or the end of the text follows;
- but not at the period of an abbreviation ("Dr.", "e.g."), of an initial ("J. Smith"), or of
  the number that opens a line ("1. Flour");
- "etc.", "a.m.", "U.S." and their like, and "...", end one if what follows begins with a capital;
- a piece without a letter or digit is no sentence, and what follows the last end is one, if it has
  some. Line breaks end none, as in Punkt.
"""

import re

ABBREVIATIONS = {  # none of which is a word, as "gen" and "rep" are
    *("mr", "mrs", "ms", "mx", "dr", "prof", "rev", "capt", "sgt", "lt", "cmdr", "gov", "st", "mt"),
    *("messrs", "vs", "cf", "viz", "fig", "dept", "approx", "pp", "e.g", "i.e", "a.k.a", "ph.d"),
}
MAY_END = {
    *("etc", "al", "inc", "ltd", "corp", "co", "jr", "sr", "a.m", "p.m", "a.d", "b.c"),
    *("ave", "blvd", "u.s", "u.k"),
}
DIVIDER = re.compile(r"\s?\*\*\*\s?")

_WORD = re.compile(r"\w+")
_CAPITALS = re.compile(r"\w+(?:[-'’.&/]\w+)*")
_END = re.compile(r"[.!?…]+[)\]}\"'”’»*_]*(?=\s|\Z)")
_LAST_WORD = re.compile(r"[^\s(\[{\"'“‘«*_]*\Z")
_NEXT = re.compile(r"[\s(\[{\"'“‘«*_]*(\w?)")


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, so that "don't" is two; IFEval counts so, too."""
    return _WORD.findall(text)


def capital_words(text: str) -> list[str]:
    """Words without a small letter and with at least one capital: "NASA", "I", "X-RAY", "DON'T".

    A word may hold single hyphens, apostrophes, periods, "&" and "/" between its letters.
    """
    return [word for word in _CAPITALS.findall(text) if word.isupper()]


def sentences(text: str) -> list[str]:
    """The sentences, by the rule of this module, without white space around them."""
    found, begin = [], 0
    for end in _END.finditer(text):
        if _ends(text, end):
            piece = text[begin : end.end()]
            if _WORD.search(piece):
                found.append(piece.strip())
                begin = end.end()
    rest = text[begin:]
    if _WORD.search(rest):
        found.append(rest.strip())
    return found


def _ends(text: str, end: re.Match[str]) -> bool:
    """Whether what may end a sentence does."""
    marks = end[0].rstrip(")]}\"'”’»*_")
    if "!" in marks or "?" in marks:
        return True
    after = _NEXT.match(text, end.end())
    follows = after[1] if after else ""
    if not follows:  # nothing that a next sentence could be made of
        return True
    if marks != ".":
        return not follows.islower()
    before = _LAST_WORD.search(text, max(0, end.start() - 40), end.start())
    word = before[0] if before else ""
    if word.isdecimal():
        line = text.rfind("\n", 0, end.start()) + 1
        return bool(text[line : end.start() - len(word)].strip(" \t*-#>"))
    if word.lower() in MAY_END:
        return not follows.islower()
    if len(word) == 1 and word.isupper() and word != "I":
        return False
    return word.lower() not in ABBREVIATIONS


def paragraphs(text: str) -> list[str]:
    """What stands between double line breaks, with empty ones, as they are."""
    return text.split("\n\n")


def divided(text: str) -> list[str]:
    """What stands between the dividers "***" of Markdown, with empty ones."""
    return DIVIDER.split(text)
