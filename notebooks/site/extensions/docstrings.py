"""Docstrings of this project are plain text; this makes reStructuredText of them.

`x` in backticks becomes a link where it names something of the module, and code otherwise; a block
that is indented after a blank line becomes code; symbols such as |V| and **options stay as they are.
"""

import ast
import re
import textwrap

SPAN = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# What reST takes for markup: a bar, a star (but for *emphasis*), an underscore at a word's end.
MARKUP = re.compile(r"(?P<emphasis>(?<![\w*])\*\w[^*\s]*\*(?![\w*]))|\||\*|(?<=\w)_(?!\w)")


def as_rest(text: str) -> str:
    """A plain docstring, its indentation removed, as reStructuredText."""
    parts, prose = [], []
    for block, is_code in _blocks(text.split("\n")):
        if is_code:
            parts.append(_marked_up("\n".join(prose)))
            parts.append(_code(block))
            prose = []
        else:
            prose.append("\n".join(block))
    parts.append(_marked_up("\n".join(prose)))
    return "\n".join(parts)


def _blocks(lines: list[str]):
    """(lines, whether they are code): code is indented by 4 or more after unindented text, blank."""
    block, code, above = [], False, ""
    for i, line in enumerate(lines):
        starts = line.startswith("    ") and i > 0 and not lines[i - 1].strip()
        text_above = above and not above.startswith((" ", "- "))
        ends = line.strip() and not line.startswith("    ")
        if (not code and starts and text_above) or (code and ends):
            yield block, code
            block, code = [], not code
        block.append(line)
        above = line if line.strip() else above
    yield block, code


def _code(block: list[str]) -> str:
    body = textwrap.dedent("\n".join(block)).strip("\n")
    try:
        ast.parse(body)
        language = "python"
    except SyntaxError:
        language = "text"
    return f".. code-block:: {language}\n\n{textwrap.indent(body, '    ')}\n"


def _marked_up(prose: str) -> str:
    pieces = SPAN.split(prose)
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            pieces[i] = MARKUP.sub(lambda m: m["emphasis"] or "\\" + m[0], piece)
        elif not piece.startswith("``"):
            name = piece[1:-1]
            pieces[i] = f":py:obj:`{name}`" if NAME.fullmatch(name) else f"``{name}``"
            if pieces[i + 1][:1].isalnum():
                pieces[i] += "\\ "
    return "".join(pieces)


def process(app, what, name, obj, options, lines):
    lines[:] = as_rest("\n".join(lines)).split("\n")
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # else napoleon takes what precedes a colon for the type


def setup(app):
    app.connect("autodoc-process-docstring", process, priority=400)  # before napoleon, at 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
