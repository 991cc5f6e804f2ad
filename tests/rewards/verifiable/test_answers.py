"""Arithmetic answers: which number a response gives, and when it is the truth."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisp.rewards.verifiable.answers import answer, number, share, truth


@pytest.mark.parametrize(
    "text, value",
    [
        ("42", 42),
        ("There are 3 apples and 4 pears.", 4),
        ("It costs $1,234.50.", Fraction("1234.5")),
        ("1,234,567", 1234567),
        ("2, 3, 4", 4),
        ("1,2345", 2345),  # no grouping by thousands: two numbers
        ("-3", -3),
        ("−3 degrees", -3),  # U+2212
        ("-$5", -5),
        ("$-5", -5),
        ("+7", 7),
        ("10 - 3", 3),
        ("10-3", 3),
        ("pages 5-8", 8),
        ("20%", 20),
        ("5€", 5),
        ("£ 6", 6),
        (r"\$7", 7),
        ("3/4", Fraction(3, 4)),
        ("3 / 4 of it", Fraction(3, 4)),
        ("1 3/4 cups", Fraction(7, 4)),
        ("-1/2", Fraction(-1, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"2\dfrac{1}{2}", Fraction(5, 2)),
        (".5", Fraction(1, 2)),
        ("0.125", Fraction(1, 8)),
        ("42.", 42),
        ("1.5e3", 1500),
        ("5/0", None),
        ("7 and 5/0", 7),
        ("6 x2", 6),
        ("12km", 12),
        ("12 apples (a dozen)", 12),
        ("x = 9", 9),
        ("3*4=12", 12),
        ("no number", None),
        ("", None),
        ("²", None),
        ("**18**", 18),
        ("007", 7),
    ],
)
def test_the_last_number(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "response, value",
    [
        ("3 + 4 = 7. The answer is 7, and not 8.", 7),
        ("The answer is 7 because 3 + 4 = 7 and 2 < 3", 7),
        ("First 5.\n#### 42\nThanks for all 3 questions", 42),
        (r"So \boxed{18} is right, not 19", 18),
        (r"\boxed{\frac{1}{2}} of 3", Fraction(1, 2)),
        (r"\boxed{1} no: \boxed{2}", 2),
        ("The answer is: $1,000", 1000),
        ("Final answer: 12 apples of 15", 12),
        ("ANSWER = 3 or 4", 3),
        ("The answer is unclear. Perhaps 5", 5),
        ("The answer is 4. No, the answer is 6.", 6),
        ("The answer is 1\n#### 2", 2),
        ("The answer is 3 + 4 = 7 apples of 9.", 7),
        ("Answer: 2.5 kg. That is 5 / 2", Fraction(5, 2)),
        ("The answer is x = many of 6", 6),
        ("an answerable question 3: 4", 4),
        ("nothing", None),
    ],
)
def test_the_answer_of_a_response(response, value):
    assert answer(response) == value


@pytest.mark.parametrize(
    "given, right, wrong",
    [
        ("42", "It is 42.", "It is 43."),
        ("42", "forty-two is 42.0", "42.01"),
        ("1250", "$1,250", "1.250"),
        ("1,250", "1250.00 dollars", "125"),
        ("0.5", "1/2", "0.51"),
        ("1/3", "2/6", "0.33"),
        ("-4", "−4", "4"),
        ("20%", "20", "0.2"),
        (12, "12", "1 2"),
        (2.5, "2 1/2", "2"),
        ("3 + 4 = 7\n#### 7", "7", "8"),
        ("$18", "18", "none"),
        ("0", "0", ""),
    ],
)
def test_right_and_wrong(given, right, wrong):
    checks = {"answer": given}
    assert share(checks, right) == 1 and share(checks, wrong) == 0


@pytest.mark.parametrize(
    "checks",
    [
        {},
        {"answer": None},
        {"answer": "many"},
        {"answer": ""},
        {"answer": "3 or 4"},
        {"answer": "about 3"},
        {"answer": "1/0"},
        {"answer": True},
        {"answer": float("nan")},
        {"answer": [3]},
    ],
)
def test_a_truth_that_is_no_number(checks):
    with pytest.raises(ValueError, match="must be one number"):
        share(checks, "3")


@given(st.integers(-(10**12), 10**12))
def test_whole_numbers_in_every_format(value):
    formats = [
        f"{value}",
        f"{value:,}",
        f"{value}.00",
        f"{value:,}.0",
        f"{value}/1",
        f"**{value}**",
    ]
    formats += [
        f"${value:,}" if value >= 0 else f"-${-value:,}",
        f"{value}%",
        f"\\boxed{{{value:,}}}",
    ]
    formats += [f"#### {value:,}", f"the answer is {value} of 17", f"first 3, then {value}."]
    for text in formats:
        assert answer(text) == value, text
        assert truth({"answer": text}) == value if text in formats[:5] else True
        assert share({"answer": str(value + 1)}, text) == 0


@given(st.decimals(-(10**6), 10**6, places=3), st.integers(2, 99), st.integers(1, 98))
def test_decimals_and_fractions(decimal, bottom, top):
    assert number(f"It is {decimal:,f}.") == Fraction(decimal)
    assert number(f"{top}/{bottom}") == Fraction(top, bottom)
    assert number(f"\\frac{{{top}}}{{{bottom}}}") == Fraction(top, bottom)
    assert number(f"take 5 {top}/{bottom} cups") == 5 + Fraction(top, bottom)
    assert number(f"it is -{top}/{bottom}") == -Fraction(top, bottom)


@given(st.text(max_size=60))
def test_any_text_has_an_answer_or_none(text):
    value = answer(text)
    assert value is None or isinstance(value, Fraction)
