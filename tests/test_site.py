"""The site: what its pages must hold, and that the code of the how-to pages runs as it stands."""

import json
import re
import runpy
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from html import unescape
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from tiny import reward, save_classifier, tiny_model

import aisp
from aisp.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "notebooks" / "site"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = sorted(set((ROOT / "figures").glob("*.png")) - {ROOT / "figures" / "quickstart.png"})
OTHER_HOST = re.compile(
    r"""<(?:script|link|img|iframe|source)\b[^>]*?\s(?:src|href)=["'](?:https?:)?//"""
    r"""|@import\s+["'(]|url\(\s*["']?(?:https?:)?//""",
    flags=re.IGNORECASE,
)

pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
sys.path.append(str(SITE / "extensions"))
docstrings, gallery, links, reference, tables = map(
    import_module, ("docstrings", "gallery", "links", "reference", "tables")
)

# -- what is on the pages -------------------------------------------------------------------------


def test_the_settings_are_those_of_the_project(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = runpy.run_path(str(SITE / "conf.py"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert settings["version"] == project["version"]
    assert settings["nb_execution_mode"] == "off" and settings["nb_ipywidgets_js"] == {}
    assert settings["root_doc"] == "notebooks/site/index" and (SITE / "index.md").is_file()
    sources = settings["include_patterns"]
    assert all(any(fnmatch(f"notebooks/{p.name}", x) for x in sources) for p in NOTEBOOKS)


def in_toctrees() -> set[str]:
    """Documents that are named in toctrees, or match a pattern there, relative to the root."""
    entries = set()
    for path in [*SITE.rglob("*.md"), *SITE.rglob("*.rst")]:
        text = path.read_text(encoding="utf-8")
        trees = re.findall(r"^```{toctree}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        trees += re.findall(r"^\.\. toctree::\n((?:   .*\n|\n)*)", text, flags=re.MULTILINE)
        for line in "\n".join(trees).split("\n"):
            entry = re.sub(r".*<(.*)>$", r"\1", line.strip())
            if entry and not entry.startswith(":"):
                folder = ROOT if entry.startswith("/") else path.parent
                found = folder.glob(entry.lstrip("/") + ".*")
                entries |= {str(p.relative_to(ROOT).with_suffix("")) for p in found}
    return entries


def test_every_notebook_and_page_is_in_the_contents():
    pages = [p for kind in ("*.md", "*.rst") for p in SITE.rglob(kind) if p != SITE / "index.md"]
    cards = sorted((ROOT / "data").glob("*/README.md"))
    others = [ROOT / x for x in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    expected = [*NOTEBOOKS, *pages, *cards, *others, ROOT / "figures" / "README.md"]
    names = {str(p.relative_to(ROOT).with_suffix("")) for p in expected}
    assert names - in_toctrees() == set()


def test_every_module_is_on_one_page_of_the_api():
    named = []
    for path in sorted((SITE / "api").glob("*.rst")):
        for line in re.findall(r"^\.\. reference:: (.+)\n(?!   :names:)", path.read_text(), re.M):
            named += line.split()
    documented = [m for name in named for m in [name, *reference.modules_below(name)]]
    assert sorted(documented) == reference.modules_below("aisp")


PACKAGES = ["aisp", *(m for m in reference.modules_below("aisp") if reference.exported(m))]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package):
    for public, full in reference.exported(package).items():
        assert full in reference.constants() or reference.said(full), f"{public} says nothing"
        module = full if full in sys.modules else full.rpartition(".")[0]
        assert module in reference.modules_below("aisp")


@pytest.mark.parametrize("path", FIGURES, ids=[p.stem for p in FIGURES])
def test_every_figure_has_a_caption_a_command_a_provenance_and_a_text_for_the_blind(path):
    known = gallery.figures((ROOT / "figures" / "README.md").read_text(encoding="utf-8"))
    figure = known[path.stem]
    assert len(figure.caption) > 60 and figure.command.startswith("papermill notebooks/")
    assert len(figure.alt) > 60 and not re.search(r"[\[\]`*]", figure.alt)
    stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    page = gallery.page((ROOT / "figures" / "README.md").read_text(encoding="utf-8"))
    assert f"![{figure.alt}]({path.name})" in page
    assert f"Figure {path.stem}, commit {stored['commit']}" in page
    assert gallery.provenance(path.stem)["commit"] == f"`{stored['commit']}`"


def test_the_gallery_reads_text_caption_and_command():
    text = "# All\n\n# Some\n\n## a\n![A line](a.png)\n\nIt rises. By [much](x).\n\n    make a\n"
    text += "\n## b\n![A\ncurve](b.png)\n\nThe flow.\n\n    make b\n    make c\n"
    a, b = gallery.figures(text).values()
    assert (a.alt, a.caption, a.command) == ("A line", "It rises. By [much](x).", "make a")
    assert (b.alt, b.command) == ("A\ncurve", "make b\nmake c")


def test_bibtex_has_the_software_and_the_paper():
    both = gallery.bibtex()
    assert both.count("@") == 2 and both.count("{") == both.count("}")
    assert "@software{aisp_companion," in both and "@article{kanai2025," in both
    assert "author = {Kanai, Sekitoshi and Yoshida, Tsukasa and" in both


def test_no_page_asks_another_host():
    for path in [p for p in SITE.rglob("*") if p.is_file() and p.suffix != ".pyc"]:
        found = OTHER_HOST.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path.name}: {found[0]}"
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [o for c in cells for o in c.get("outputs", [])]
        shown = ["".join(o.get("data", {}).get("text/html", "")) for o in outputs]
        found = [OTHER_HOST.search(html)[0] for html in shown if OTHER_HOST.search(html)]
        assert not found, f"{path.name}: {found}"
    assert OTHER_HOST.search('<script async src="https://cdn.example/x.js">')
    assert OTHER_HOST.search("@import url('//fonts.example/x')")
    assert not OTHER_HOST.search('<a href="https://arxiv.org/abs/2510.26219">')


# -- plain docstrings and links -------------------------------------------------------------------


@pytest.mark.parametrize(
    "plain, rest",
    [
        ("logits: (rows, |V|).", r"logits: (rows, \|V\|)."),
        ("**options: of `load`.", r"\*\*options: of :py:obj:`load`."),
        ("model *and* template, n * T", r"model *and* template, n \* T"),
        ("names with_ an end, log_weights", r"names with\_ an end, log_weights"),
        ("`x[0]` and ``as is``", "``x[0]`` and ``as is``"),
        ("of `Prompt`s", r"of :py:obj:`Prompt`\ s"),
        (
            "Two:\n\n    a = 1\n\n    b\n\nend",
            "Two:\n\n.. code-block:: python\n\n    a = 1\n\n    b\n\nend",
        ),
        ("It is\n\n    x ~ N(0, 1)\n", "It is\n\n.. code-block:: text\n\n    x ~ N(0, 1)\n\n"),
        ("Args:\n    a: one\n\n    more | of", "Args:\n    a: one\n\n    more \\| of"),
        ("- a: b\n\n    c", "- a: b\n\n    c"),
    ],
)
def test_plain_docstrings_become_restructured_text(plain, rest):
    assert docstrings.as_rest(plain) == rest


@pytest.mark.parametrize(
    "path, target",
    [
        ("aisp/sampler.py", "aisp.sampler"),
        ("aisp/engine", "aisp.engine"),
        ("aisp/methods/__init__.py", "aisp.methods"),
        ("data/judge", "/data/judge/README"),
        ("notebooks/params", "/notebooks/site/parameters"),
        ("CITATION.cff", None),
        ("notebooks/params/cpu.yaml", None),
    ],
)
def test_links_to_what_is_no_page(path, target):
    found = links.target(path, ROOT)
    assert (found and found["reftarget"]) == target


def test_columns_of_words_are_aligned_as_words():
    import pandas as pd

    frame = pd.DataFrame({"r": ["1.0 [0.5, 2.0]"], "response": ["Learning to <cook> is a & b"]})
    html = frame.to_html()
    shown = tables.aligned(html)
    assert shown.count('class="words"') == 2  # the heading and the cell, of one column
    assert '<th class="words">response</th>' in shown
    assert '<td class="words">Learning to &lt;cook&gt;' in shown
    assert shown.replace(' class="words"', "") == html


# -- the code of the how-to pages -----------------------------------------------------------------


@pytest.fixture
def page(tiny, byte_tokenizer, tmp_path, monkeypatch):
    """Runs the code of a how-to page, in a folder with the files that it names; its variables."""
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").float().save_pretrained("my-model")
    byte_tokenizer.save_pretrained("my-model")

    def run(name):
        text = (SITE / "howto" / f"{name}.md").read_text(encoding="utf-8")
        names = {"policy": tiny(), "reward": reward}
        for code in re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            exec(code, names)
        return names

    return run


def test_every_how_to_page_is_tried_here():
    tried = {"model", "reward", "method", "machines"}
    assert {p.stem for p in (SITE / "howto").glob("*")} == tried


def test_how_to_use_your_model(page):
    names = page("model")
    out, policy = names["out"], names["policy"]
    assert policy.name == "my-model" and policy.template is names["dialogue"]
    assert out.reward == -len(out.response) and len(out.candidates) == 8
    assert out.reward == out.candidates["reward"].max()


def test_how_to_use_your_reward(page, byte_tokenizer, tmp_path):
    save_classifier(tmp_path / "my-reward-model", byte_tokenizer)
    names = page("reward")
    assert names["lam"] > 0 and not names["plain"].config.adapt
    assert names["out"].reward == -len(names["out"].response.split())
    assert names["checked"].history["solved"].between(0, 4).all()
    assert isinstance(names["reward"], aisp.Reward)
    assert names["reward"].score(["Hi"], ["there"]).isfinite().all()


def test_how_to_add_a_method(page, tiny, monkeypatch):
    monkeypatch.setitem(METHODS, "cross_entropy", None)  # taken out again after the test
    names = page("method")
    ours, control = names["ours"], names["control"]
    assert ours.method == "cross_entropy" and len(ours.candidates) == len(control.candidates) == 24
    same = aisp.align("Name three rivers", tiny(), reward, tau=8, **names["config"])
    first = [out.candidates.query("iteration == 0")["response"].tolist() for out in (ours, same)]
    assert first[0] == first[1], "the page says that the first iteration draws what AISP's does"
    assert ours.U.shape == same.U.shape and ours.U.abs().sum() > 0


def test_how_to_use_more_than_one_machine(page, tiny):
    names = page("machines")
    records = names["records"].set_index(["label", "prompt"])
    assert len(records) == 8 and records["reward"].notna().all()
    prompts = aisp.load_prompts("builtin", split="test", limit=4)
    outs = aisp.align(prompts, tiny(), reward, n=4, kappa=2, max_new_tokens=8, progress=False)
    parts = [records.loc[("AISP", p.id), "reward"] for p in prompts]
    np.testing.assert_array_equal(parts, [out.reward for out in outs])


# -- the whole site -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-n", "-W", "--keep-going", "-c"]
    command += [str(SITE), "-d", str(folder / "doctrees"), str(ROOT), str(folder / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.slow
def test_the_site_builds_and_every_link_in_it_leads_somewhere(built):
    pages = {path.resolve(): path.read_text(encoding="utf-8") for path in built.rglob("*.html")}
    ids = {path: set(re.findall(r'\sid="([^"]+)"', text)) for path, text in pages.items()}
    dead = []
    for path, text in pages.items():
        assert not OTHER_HOST.search(text), path
        for image in re.findall(r"<img[^>]*_images/[^>]*>", text):
            alt = re.search(r'\salt="([^"]*)"', image)
            assert alt and " " in unescape(alt[1]), f"{path}: {image} says nothing to the blind"
        for link in re.findall(r'<[a-z]+[^>]*?\s(?:href|src)="([^"]*)"', text):
            file, _, place = unquote(unescape(link)).partition("#")
            if re.match(r"[a-z]+:", file):
                continue
            there = (path.parent / file.split("?")[0]).resolve() if file else path
            if not there.exists() or (place and there in ids and place not in ids[there]):
                dead.append(f"{path.relative_to(built.resolve())}: {link}")
    assert len(pages) > 40 and dead == []
    assert "notebooks/site/index.html" in (built / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_search_and_inventory_know_the_public_names(built):
    from sphinx.util.inventory import InventoryFile

    assert "log_weights" in (built / "searchindex.js").read_text(encoding="utf-8")
    inventory = InventoryFile.loads((built / "objects.inv").read_bytes(), uri="").data
    objects = {
        name for kind, found in inventory.items() if kind.startswith("py:") for name in found
    }
    for package in PACKAGES:
        assert set(reference.exported(package).values()) <= objects, package
