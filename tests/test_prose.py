"""Typed prose holds no results: what cells and markers have computed, and nothing else, states them.

Numbers in Markdown cells and in README outside its generated blocks are those of definitions, settings
and sources. A decimal, a percentage, an interval or a count such as "3 of 24" that is none of these is
taken for a result, which no re-execution would change.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

RESULT = re.compile(
    r"\[[-+]?\d[\d.]*, ?[-+]?\d[\d.]*\]"  # an interval
    r"|\d+(?:\.\d+)? ?\\?%"
    r"|\d[\d,]* of (?:the )?\d[\d,]*"
    r"|\d[\d,.]* times\b"
    r"|\d+\.\d+"
)
NOT_READ = re.compile(
    r"```.*?```|^(?: {4}|\t).*?$"  # code
    r"|<!-- results: \w+ -->.*?<!-- end -->"  # generated
    r"|\]\([^)\s]*\)|https?://\S+|arXiv:\d+\.\d+",  # links
    flags=re.DOTALL | re.MULTILINE,
)
# What numbers may stand for in every text.
DEFINED = [re.compile(x) for x in (
    r"top-?\$?p\$? 0\.9|temperature 0\.65",  # how tokens are drawn
    r"95% (?:\w+ )?intervals?|bootstrap 95%|\(95%\)",
    r"\\in \[0, 1\]",  # a range of definition
    r"(?:=|\\to|\\ge) ?\$?-?\d+\.\d+",  # a symbol or a name is given a value
    r"[Pp]ython 3\.\d+\+?|torch \d\.\d+|\b0\.[12]\.0\b|Apache-2\.0",  # versions
)]  # fmt: skip
# What else they stand for, text by text: the words around the number, and whose they are.
KNOWN = {
    "01_theory": {
        "agree to within 0.01 if $T = \\sigma\\|w_1-w_2\\|/1.702$": "Haley's constant; asserted",
        "rejects at the 5% level, 0.05 for a Gaussian": "the level of the test",
        "band that holds 90% of them": "how the figure is drawn",
    },
    "04_residual_alignment": {"published limit of 0.1 nats": "RAM's paper"},
    "05_proxy_deferral": {'such as "dual 0.1"': "a label"},
    "07_ablations": {"The paper uses 0.5": "AISP's paper"},
    "08_runtime": {"AISP takes 1.8 to 2.5 times as long": "AISP's paper"},
    "README": {"(up to 40%)": "AISP's paper"},
}


def typed_results(text: str, known: dict[str, str]) -> list[str]:
    """Numbers of a text that read as results, with the words around them."""
    text = NOT_READ.sub(" ", text)
    for words in known:
        assert words in text, f"{words!r} stands there no longer: take it out of KNOWN"
        text = text.replace(words, "")
    for pattern in DEFINED:
        text = pattern.sub("", text)
    return [text[max(0, x.start() - 40) : x.end() + 20] for x in RESULT.finditer(text)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def test_markdown_cells_type_no_result(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert typed_results(prose, KNOWN.get(path.stem, {})) == []


def test_readme_types_no_result_outside_its_generated_blocks():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert typed_results(text, KNOWN["README"]) == []


@pytest.mark.parametrize(
    "typed",
    [
        "AISP gains 0.74 here",
        "by +0.74 [0.54, 0.95]",
        "in [1, 2]",
        "wins on 70% of prompts",
        "3 of 24 answers",
        "it is 2 times as fast",
        "its KL is -1.5 nats",
    ],
)
def test_a_typed_result_is_noticed(typed):
    assert typed_results(f"By the way, {typed}.", {}) != []


def test_definitions_settings_and_generated_blocks_are_not():
    text = "With top-p 0.9 and $\\sigma = 0.5$, 95% intervals ([x](a_0.5.md)), arXiv:2510.26219.\n"
    text += (
        "```\nx = 0.3 * y\n```\n\n    y = 0.25\n\n<!-- results: gain -->+0.7 [0.5, 0.9]<!-- end -->"
    )
    assert typed_results(text, {}) == []
