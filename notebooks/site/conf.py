"""The site's settings. `make docs` builds it; nothing is executed, and no page asks another host.

The sources are the repository itself (`sphinx-build -c notebooks/site .`), so that a link between
notebooks, README and figures that works in a checkout works on the site too.
"""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE / "extensions")]

_project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
project = "AISP companion"
author = _project["authors"][0]["name"]
copyright = author
version = release = _project["version"]
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "docstrings",  # these five are in extensions/
    "reference",
    "gallery",
    "links",
    "tables",
]
root_doc = "notebooks/site/index"
include_patterns = [
    "notebooks/*.ipynb",
    "notebooks/site/**",
    "figures/README.md",
    "data/*/README.md",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
exclude_patterns = [".*", "*venv*", "aisp", "build", "dist", "outputs", "tests"]  # not looked into

# -- notebooks and Markdown -------------------------------------------------------------------------

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # links in what a cell displays are checked too
nb_ipywidgets_js = {}  # the default loads scripts from other hosts
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath", "html_image"]
myst_heading_anchors = 4

# -- docstrings --------------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 76
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # takes "a, b: what both are"
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"
# Types of other packages have no pages here; a name in backticks need not be a link.
nitpick_ignore_regex = [("py:(class|exc)", r"(?!aisp\.).*"), ("py:obj", r".*")]

# -- pages -------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["static"]
html_favicon = "static/icon.svg"
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"
