"""Links to files and folders of the repository that are no pages of the site.

A module or package leads to its part of the API (and from there to its source), a folder with a
README to that page, the folder of parameter files to the page that lists them. MyST itself offers
any other file for download.
"""

import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

FOLDERS = {"notebooks/params": "notebooks/site/parameters", "figures": "figures/README"}


def target(path: str, srcdir: Path) -> dict[str, str] | None:
    """What a cross-reference to this path, relative to the repository, has to name; None: nothing."""
    place = srcdir / path
    if path.split("/")[0] == "aisp" and (place.suffix == ".py" or place.is_dir()):
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return {"refdomain": "py", "reftype": "mod", "reftarget": module}
    if place.is_dir():
        page = FOLDERS.get(path) or f"{path}/README"
        return {"refdomain": "std", "reftype": "doc", "reftarget": f"/{page}"}
    return None


class RepositoryLinks(SphinxTransform):
    default_priority = 5

    def apply(self, **kwargs):
        for node in list(self.document.findall(_is_link)):
            docname = self.env.current_document.docname
            path, _ = self.env.relfn2path(node["reftarget"].split("#")[0], docname)
            found = target(path.rstrip("/"), Path(self.env.srcdir))
            if found:
                link = addnodes.pending_xref("", refdoc=docname, refexplicit=True, **found)
                link += node.children
                node.replace_self(link)


def _is_link(node: nodes.Node) -> bool:
    kind = addnodes.download_reference | addnodes.pending_xref
    return isinstance(node, kind) and node.get("reftype") == "myst" and "/" in node["reftarget"]


class ParameterFiles(SphinxDirective):
    """The files of notebooks/params, each with the first sentence of its comment."""

    def run(self):
        folder = Path(self.env.srcdir) / "notebooks" / "params"
        lines = []
        for path in sorted(folder.glob("*.yaml")):
            comment = re.match(r"(#.*\n)*", path.read_text(encoding="utf-8"))[0]
            first = re.split(r"(?<=\.) ", " ".join(comment.replace("#", " ").split()))[0]
            lines.append(f"- [{path.name}](/notebooks/params/{path.name}): {first}")
        return self.parse_text_to_nodes("\n".join(lines))


def home_page(app, error):
    """The host of the site opens index.html, and the pages have the folders of the repository."""
    if error is None and app.builder.format == "html":
        page = f"{app.config.root_doc}.html"
        (Path(app.outdir) / "index.html").write_text(
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f"<title>{app.config.project}</title>"
            f'<link rel="icon" href="_static/icon.svg">'
            f'<meta http-equiv="refresh" content="0; url={page}"></head>'
            f'<body><a href="{page}">{app.config.project}</a></body></html>\n',
            encoding="utf-8",
        )


def setup(app):
    app.add_transform(RepositoryLinks)
    app.add_directive("parameter-files", ParameterFiles)
    app.connect("build-finished", home_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
