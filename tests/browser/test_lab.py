"""Notebooks in JupyterLab, as a reader runs them: Run All, a live bar, an interrupt."""

import json
import re

import nbformat
import pytest

pytestmark = pytest.mark.browser

MINUTES = 60_000  # in the milliseconds of Playwright
CODE = ".jp-Notebook .jp-CodeCell"
ERRORS = f"{CODE} .jp-OutputArea-output:has-text('Traceback (most recent call last)')"
RUN = f"""() => {{
    const cells = [...document.querySelectorAll('{CODE}')];
    const marks = cells.map(x => x.querySelector('.jp-InputArea-prompt').textContent);
    const errors = cells.some(x => x.textContent.includes('Traceback (most recent call last)'));
    return errors || marks.length > 0 && marks.every(x => /\\d/.test(x));
}}"""
IDLE = "#jp-main-statusbar:has-text('| Idle')"
SETUP = """
import aisp
from aisp import experiment
from aisp.experiment import records_path
policy = aisp.load_policy("embedded", dtype="float32")
prompts = aisp.load_prompts("builtin", split="test")
def shorter(prompt, response):
    return -float(len(response))
small = {"n": 4, "max_new_tokens": 8}
path = records_path("interrupted", "smoke")
print("ready")
"""
ALIGN = """
out = aisp.align(prompts[0], policy, shorter, kappa=1000, **small)
print("interrupted:", out.interrupted, len(out.history), len(out.candidates))
"""
EXPERIMENT = """
few = {"AISP": {"method": "aisp", "kappa": 4, **small}}
try:
    found = experiment.run(path, few, prompts, policy, shorter, batch=1)
except KeyboardInterrupt:  # before anything of a batch was scored: what is on disk is whole
    found = experiment.load(path)
print("left:", len(found), int(found["interrupted"].sum()))
"""
AGAIN = """
there = experiment.load(path)
before, finished = len(there), int((~there["interrupted"]).sum())
known = [p for p in prompts if p.id in set(there["prompt"])]
other = next(p for p in prompts if p not in known)
found = experiment.run(path, few, [*known, other], policy, shorter, batch=1, progress=False)
print("resumed:", finished, before, len(found), int(found["interrupted"].sum()))
"""


def start(page, address: str) -> None:
    """Wait for the notebook and its kernel."""
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector(CODE, timeout=2 * MINUTES)
    page.wait_for_selector(IDLE, timeout=2 * MINUTES)


def menu(page, *names: str) -> None:
    """Choose from the menus, such as "Run", "Run All Cells"."""
    for name in names:
        page.get_by_role("menuitem", name=re.compile(rf"^{name}\b")).first.click()


def run_all(page, minutes: float = 5) -> None:
    """Forget the stored outputs, run all cells, and wait until each has a number."""
    menu(page, "Edit", "Clear Outputs of All Cells")
    assert not page.locator(f"{CODE} .jp-OutputArea-output").count()
    until_it_starts(page, 0, lambda: menu(page, "Run", "Run All Cells"))
    page.wait_for_function(RUN, timeout=minutes * MINUTES)
    errors = page.locator(ERRORS)
    assert not errors.count(), errors.first.text_content()


def until_it_starts(page, number: int, begin) -> None:
    """Do it again where JupyterLab let it fall, as in the first moments of a kernel."""
    mark = cell(page, number).locator(".jp-InputArea-prompt")
    for _ in range(10):
        begin()
        for _ in range(20):
            if mark.text_content().strip() not in ("[ ]:", ""):
                return
            page.wait_for_timeout(100)
    pytest.fail("the kernel runs nothing")


@pytest.mark.parametrize(
    ("name", "tables", "figures"), [("00_quickstart", 6, 2), ("02_sampler", 7, 3)]
)
def test_run_all_shows_tables_and_figures_and_no_error(
    opened, lab, checkout, shot, name, tables, figures
):
    page = opened(height=1000)
    start(page, lab.format(f"{name}.ipynb"))
    run_all(page)
    assert page.locator(f"{CODE} .jp-RenderedHTMLCommon table").count() >= tables
    drawn = page.locator(f'{CODE} .jp-OutputArea-output[data-mime-type="image/png"] img')
    assert drawn.count() >= figures
    assert all(image.evaluate("x => x.complete && x.naturalWidth > 100") for image in drawn.all())
    found = page.locator(CODE, has_text="findings.shown").locator(".jp-RenderedMarkdown li")
    assert found.count() > 5 and "prompts" in " ".join(found.all_text_contents())
    assert page.locator(CODE, has_text="Read ").count()  # records were read, and said so

    for number, cell in enumerate(page.locator(".jp-Notebook .jp-Cell").all()):
        if cell.locator("table, img, .jp-RenderedMarkdown li").count():
            shot(cell, f"lab_{name}_{number:02}")
    menu(page, "File", "Save Notebook")
    page.wait_for_timeout(2000)
    stored = json.loads((checkout / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    kinds = [o["output_type"] for c in stored["cells"] for o in c.get("outputs", [])]
    assert "error" not in kinds and len(kinds) > 10
    assert not [fault for fault in page.faults if fault.startswith("script")]


@pytest.fixture
def live(request, opened, lab, checkout):
    """A notebook of four cells, of which the first was run."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    sources = (SETUP, ALIGN, EXPERIMENT, AGAIN)
    notebook.cells = [nbformat.v4.new_code_cell(source.strip()) for source in sources]
    name = f"{request.node.name}.ipynb"  # each test has a kernel of its own
    nbformat.write(notebook, checkout / "notebooks" / name)
    path = checkout / "data" / "results" / "smoke" / "interrupted.jsonl"
    path.unlink(missing_ok=True)
    page = opened(height=1000)
    start(page, lab.format(name))
    run(page, 0)
    said(page, 0, "ready")
    return page


def cell(page, number: int):
    return page.locator(CODE).nth(number)


def run(page, number: int) -> None:
    """Run one cell that was not run before."""
    code = cell(page, number).locator(".cm-content")
    until_it_starts(page, number, lambda: code.press("Control+Enter"))


def said(page, number: int, pattern: str) -> tuple[str, ...]:
    """What the groups of a pattern match in what a cell wrote, once it is there."""
    found = cell(page, number).locator(".jp-OutputArea")
    found.filter(has_text=re.compile(f"{pattern}|Traceback")).wait_for(timeout=2 * MINUTES)
    text = found.text_content()
    assert re.search(pattern, text), text
    return re.search(pattern, text).groups()


def counted(page, number: int, at_least: int) -> list[int]:
    """What the bar of a running cell has counted, until that many: the numbers that were seen."""
    seen = []
    for _ in range(1200):
        text = cell(page, number).locator(".jp-OutputArea").first.text_content()
        counts = [int(x) for x in re.findall(r"(\d+)/\d+\s\[", text)]
        if counts and counts[-1] not in seen:
            seen.append(counts[-1])
        if seen and seen[-1] >= at_least:
            return seen
        page.wait_for_timeout(100)
    pytest.fail(f"the bar stays at {seen}")


def interrupt(page) -> None:
    menu(page, "Kernel", "Interrupt Kernel")


def test_the_bar_of_align_moves_and_an_interrupt_leaves_what_was_found(live, shot):
    run(live, 1)
    seen = counted(live, 1, at_least=4)
    assert len(seen) >= 3 and seen == sorted(seen), seen
    assert cell(live, 1).locator(".jp-OutputArea .widget-hprogress, .jupyter-widgets").count()
    shot(live, "lab_align_running")
    interrupt(live)
    flag, rounds, candidates = said(live, 1, r"interrupted: (\w+) (\d+) (\d+)\n")
    assert flag == "True" and 4 <= int(rounds) < 1000 and int(candidates) == 4 * int(rounds)
    assert not cell(live, 1).locator(ERRORS).count()
    shot(live, "lab_align_interrupted")


def test_an_interrupt_of_an_experiment_leaves_its_records_and_the_next_run_goes_on(live, shot):
    run(live, 2)
    seen = counted(live, 2, at_least=3)
    assert seen == sorted(seen)
    interrupt(live)
    left, broken = map(int, said(live, 2, r"left: (\d+) (\d+)\n"))
    assert 3 <= left < 40 and broken in (0, 1)
    shot(live, "lab_experiment_interrupted")
    run(live, 3)
    numbers = said(live, 3, r"resumed: (\d+) (\d+) (\d+) (\d+)\n")
    finished, before, after, unfinished = map(int, numbers)
    assert (before, finished) == (left, left - broken)
    assert after == before + 1 and unfinished == 0
