"""The stored figures as a gallery: figures/README.md, with what figures/*.json and CITATION.cff know.

The README has a heading, the image with a text for those who cannot see it, the caption and the
command of each figure. Here each gets its provenance and a BibTeX entry; `stored-figure` and
`thumbnails` show figures on other pages.
"""

import importlib
import json
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[3]
README = ROOT / "figures" / "README.md"
IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<file>[\w./-]+)\)")


class Figure(NamedTuple):
    """What figures/README.md says of one figure."""

    name: str
    alt: str  # for those who cannot see it
    caption: str
    command: str


def figures(text: str) -> dict[str, Figure]:
    """The figures of the README, in its order, by name."""
    found = {}
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        name, _, body = section.partition("\n")
        image = IMAGE.search(body)
        if image is None:
            continue
        lines = body[image.end() :].split("\n")
        command = "\n".join(line[4:] for line in lines if line.startswith("    "))
        caption = "\n".join(line for line in lines if not line.startswith("    ")).strip()
        found[name.strip()] = Figure(name.strip(), image["alt"], caption, command.strip())
    return found


def plain(markdown: str) -> str:
    """Markdown on one line, without links, code and emphasis, and so fit to stand in brackets."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    return " ".join(re.sub(r"[\[\]*`]", "", text).split())


def provenance(name: str) -> dict[str, str]:
    """What figures/NAME.json says, as Markdown."""
    stored = json.loads((README.parent / f"{name}.json").read_text(encoding="utf-8"))
    flat = {}
    for key, value in stored.items():
        for inner, one in value.items() if isinstance(value, dict) else [(key, value)]:
            flat[inner.replace("_", " ")] = f"`{one}`"
    source, function = stored.get("source"), stored.get("function")
    if source and (ROOT / source).is_file():
        flat["source"] = f"[{source}](../{source})"
    if function and _exists(function):
        flat["function"] = f"{{py:func}}`{function}`"
    flat.pop("figure", None)
    return flat


def _exists(full_name: str) -> bool:
    module, _, name = full_name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


@cache
def citation() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def bibtex(name: str | None = None) -> str:
    """The entry of one figure; without a name, those of the software and of the paper."""
    software = citation()
    year = str(software["date-released"])[:4]
    authors = " and ".join(f"{{{a['name']}}}" for a in software["authors"])
    if name:
        stored = json.loads((README.parent / f"{name}.json").read_text(encoding="utf-8"))
        note = f"Figure {name}, commit {stored.get('commit')}"
        key, title = f"aisp_companion_{name}", f"{name}, a figure of the AISP companion"
    else:
        note = f"Version {software['version']}"
        key, title = "aisp_companion", software["title"]
    entries = [_entry("software", key, title=title, author=authors, year=year, note=note)]
    for paper in [] if name else software["references"]:
        people = [f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]]
        entries.append(
            _entry(
                "article",
                f"{people[0].split(',')[0].lower()}{paper['year']}",
                title=paper["title"],
                author=" and ".join(people),
                year=paper["year"],
                journal=f"{paper['journal']} {paper['identifiers'][0]['value']}",
                url=paper["url"],
            )
        )
    return "\n\n".join(entries)


def _entry(kind: str, key: str, **fields: object) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def page(text: str) -> str:
    """figures/README.md as the page of the gallery."""
    known = figures(text)
    first, *rest = re.split(r"^(?=# )", text, flags=re.MULTILINE)[1:]
    text = "".join(re.sub(r"^(#+ )", r"#\1", part, flags=re.MULTILINE) for part in rest)
    for name in known:
        section = re.search(
            rf"^### {re.escape(name)}\n.*?(?=^##|\Z)", text, flags=re.MULTILINE | re.DOTALL
        )
        text = text.replace(section[0], f"{section[0].rstrip()}\n\n{_details(name)}\n\n")
    cite = f"To cite the software and the paper:\n\n```bibtex\n{bibtex()}\n```\n\n"
    return first + cite + _thumbnails(known.values()) + "\n\n" + text


def _details(name: str) -> str:
    rows = "\n".join(f"| {key} | {value} |" for key, value in provenance(name).items())
    return (
        f"[PDF]({name}.pdf), [PNG]({name}.png), [JSON]({name}.json)\n\n"
        f"<details><summary>Provenance and BibTeX</summary>\n\n"
        f"| | |\n|---|---|\n{rows}\n\n```bibtex\n{bibtex(name)}\n```\n\n</details>"
    )


def _thumbnails(some) -> str:
    items = [
        f"- [![{f.alt}](/figures/{f.name}.png)<br>{f.name}](/figures/README.md#{f.name})"
        for f in some
    ]
    return "\n".join([":::{container} gallery", *items, ":::"])


def extend(app, docname, source):
    if docname == "figures/README":
        source[0] = page(source[0])


class FromReadme(SphinxDirective):
    """What figures/README.md says of some figures."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        known = figures(README.read_text(encoding="utf-8"))
        missing = [name for name in self.arguments[0].split() if name not in known]
        if missing:
            raise self.error(f"figures/README.md has no figure {', '.join(missing)}")
        text = self.markdown([known[name] for name in self.arguments[0].split()])
        return self.parse_text_to_nodes(text)


class Thumbnails(FromReadme):
    def markdown(self, chosen):
        return _thumbnails(chosen)


class StoredFigure(FromReadme):
    def markdown(self, chosen):
        return "\n\n".join(
            f"[![{f.alt}](/figures/{f.name}.png)](/figures/README.md#{f.name})\n\n"
            f"{plain(f.caption)} ([Provenance](/figures/README.md#{f.name}).)"
            for f in chosen
        )


def load_lazily(app):
    app.env.settings["image_loading"] = "lazy"


def describe_outputs(app, doctree):
    """What a cell drew has no text of its own; the section says what it is about."""
    for image in doctree.findall(nodes.image):
        section = image
        while section and not isinstance(section, nodes.section):
            section = section.parent
        if not image.get("alt") and section:
            image["alt"] = f"Output of the cell above, in the section {section[0].astext()!r}"


def setup(app):
    app.connect("source-read", extend)
    app.connect("builder-inited", load_lazily)
    app.connect("doctree-read", describe_outputs)
    app.add_directive("thumbnails", Thumbnails)
    app.add_directive("stored-figure", StoredFigure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
