"""Tables of pandas: columns of words are aligned to the left, as one reads them; numbers stay right."""

import re

from docutils import nodes

TABLE = re.compile(r'<table border="1" class="dataframe">.*?</table>', re.DOTALL)
ROW = re.compile(r"<tr.*?</tr>", re.DOTALL)
CELL = re.compile(r"<t([hd])>(.*?)</t[hd]>", re.DOTALL)
WORDS = re.compile(r"[^\W\d]{2,} [^\W\d]+ ")  # two words and more; an interval has none


def aligned(html: str) -> str:
    """HTML whose pandas tables have the class `words` on the cells of columns that hold sentences."""
    return TABLE.sub(_aligned, html)


def _aligned(table: re.Match[str]) -> str:
    rows = [CELL.findall(row) for row in ROW.findall(table[0])]
    of_words = {
        column
        for row in rows
        for column, (kind, text) in enumerate(row)
        if kind == "d" and WORDS.search(text)
    }

    def marked(row: re.Match[str]) -> str:
        columns = iter(range(len(CELL.findall(row[0]))))
        return CELL.sub(
            lambda cell: (
                f'<t{cell[1]} class="words">{cell[2]}</t{cell[1]}>'
                if next(columns) in of_words
                else cell[0]
            ),
            row[0],
        )

    return ROW.sub(marked, table[0])


def align(app, doctree):
    for raw in list(doctree.findall(nodes.raw)):
        if raw.get("format") == "html" and TABLE.search(raw.astext()):
            raw.replace_self(nodes.raw("", aligned(raw.astext()), format="html"))


def setup(app):
    app.connect("doctree-read", align)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
