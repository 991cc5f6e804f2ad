"""Answers that are one number: the last number of a response against the truth, exactly.

Numbers are read as people and models write them: 1,234.50; -3 and −3; $5, 5€ and 20%; 3/4, 1 3/4 and
\\frac{3}{4}; 1.5e3. Currency, units and the percent sign are left out, so that "20%" and "20" are the
same answer, as in GSM8K. Comparison is of fractions, without any tolerance: 0.5 is 1/2, and 0.33 is
not 1/3.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"""
    (?<![\w.])                                     # x2 and 1.2.3 hold no number to be read
    (?P<sign>[-+−–](?=[$€£¥\\]*\s?[\d.\\]))?
    (?:\\?[$€£¥]\s?)?
    (?P<sign_after>[-−](?=[\d.]))?
    (?:
      (?P<whole>{_DIGITS})?\s*\\[dt]?frac\{{(?P<top>{_DIGITS})\}}\{{(?P<bottom>{_DIGITS})\}}
    | (?:(?P<mixed>{_DIGITS})\s+)?(?P<over>{_DIGITS})\s?/\s?(?P<under>{_DIGITS})(?![\d/])
    | (?P<plain>(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\w))?)
    )
    """,
    re.VERBOSE,
)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_GSM8K = re.compile(r"####[ \t]*([^\n]+)")
# To the end of its sentence; the mark itself is not part of what it says.
_LEAD = re.compile(r"\banswer\s*(?:is|:|=)+\s*((?:(?![.!?](?:\s|$))[^\n])+)", re.IGNORECASE)


def number(text: str) -> Fraction | None:
    """The last number of a text, None if it has none."""
    value = None
    for match in _NUMBER.finditer(text):
        found = _value(match)
        value = value if found is None else found
    return value


def answer(response: str) -> Fraction | None:
    """The number that a response gives as its answer, None if it gives none.

    The last `\\boxed{}`, else the last `####` of GSM8K, else the last "the answer is" with its
    sentence, else the last number of all. Of what is marked, the first number counts, or the first
    after the last "="; a mark that no number follows is ignored.
    """
    for mark in (_BOXED, _GSM8K, _LEAD):
        for found in reversed(mark.findall(response)):
            for text in (found.rpartition("=")[2], found):
                values = (_value(match) for match in _NUMBER.finditer(text))
                value = next((value for value in values if value is not None), None)
                if value is not None:
                    return value
    return number(response)


def truth(checks: Mapping[str, Any]) -> Fraction:
    """The number that a prompt's checks ask for.

    Args:
        checks: `answer`, a number or text that is one number; of a solution of GSM8K, what follows
            its `####`.

    Raises:
        ValueError: no `answer`, or one that is no single number.
    """
    given = checks.get("answer")
    if isinstance(given, int | float | Fraction) and not isinstance(given, bool):
        if given == given and abs(given) != float("inf"):
            return Fraction(str(given))
    elif isinstance(given, str):
        marked = _GSM8K.findall(given)
        text = (marked[-1] if marked else given).strip()
        match = _NUMBER.match(text)
        value = _value(match) if match else None
        if match and value is not None and text[match.end() :].strip(" \\%$€£¥.") == "":
            return value
    raise ValueError(
        f"answer is {given!r}; it must be one number, such as '42', '1,250', '-3.5' or '3/4', or a "
        "solution of GSM8K that ends with '#### 42'. Correct the truth of this prompt"
    )


def share(checks: Mapping[str, Any], response: str) -> float:
    """1.0 if the response's answer is the truth, else 0.0.

    Raises:
        ValueError: `checks` whose `answer` is no number.
    """
    return float(answer(response) == truth(checks))


def _value(match: re.Match[str]) -> Fraction | None:
    """The number of a match; None for a division by zero."""
    part = {k: v.replace(",", "") for k, v in match.groupdict().items() if v is not None}
    top, bottom = part.get("top", part.get("over")), part.get("bottom", part.get("under"))
    if top is None or bottom is None:
        value = Fraction(part["plain"])
    elif int(bottom) == 0:
        return None
    else:
        value = int(part.get("whole", part.get("mixed", 0))) + Fraction(int(top), int(bottom))
    negative = part.get("sign", "+") != "+" or "sign_after" in part
    return -value if negative else value
