"""README's results are those of the committed records."""

from pathlib import Path

import pytest

from aisp.experiment import readme

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_blocks_are_what_the_records_say():
    """If this fails: python -m aisp.experiment.readme."""
    made = readme.blocks(ROOT / "data" / "results" / "cpu")
    assert readme.render(TEXT, made) == TEXT


def test_no_result_is_typed_outside_the_blocks():
    assert readme.typed(TEXT) == []
    assert readme.typed("by 0.74 [0.54, 0.95], or +0.25 and 2.41, but sigma = 0.5") == [
        "[0.54, 0.95]",
        "+0.25",
        "0.74",
        "2.41",
    ]


def test_blocks_are_filled_in_a_line_and_over_several():
    text = "<!-- results: a -->old<!-- end --> and <!-- results: b --><!-- end -->"
    filled = readme.render(text, {"a": "1", "b": "- x\n- y"})
    assert filled == (
        "<!-- results: a -->1<!-- end --> and <!-- results: b -->\n- x\n- y\n<!-- end -->"
    )
    assert readme.render(filled, {"a": "1", "b": "- x\n- y"}) == filled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results: b --><!-- end -->", r"no block \['b'\]; known: a"),
        ("nothing", r"no place for \['a'\]; put"),
        ("<!-- results: a --><!-- end --> <!-- end -->", "a marker is alone"),
    ],
)
def test_a_text_whose_blocks_do_not_fit_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        readme.render(text, {"a": "1"})
