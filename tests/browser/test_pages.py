"""The built site in a browser: every kind of page loads, fits a phone, and can be read in the dark."""

import re

import pytest

pytestmark = pytest.mark.browser

PAGES = {
    "index": "notebooks/site/index.html",
    "00": "notebooks/00_quickstart.html",
    "01": "notebooks/01_theory.html",
    "02": "notebooks/02_sampler.html",
    "06": "notebooks/06_main_results.html",
    "07": "notebooks/07_ablations.html",
    "09": "notebooks/09_figures.html",
    "figures": "figures/README.html",
    "readme": "README.html",
    "api": "notebooks/site/api/small.html",
    "howto": "notebooks/site/howto/method.html",
}
each_page = pytest.mark.parametrize("name", PAGES)

# Words whose color is too near to that of what is behind them: WCAG's contrast below 4.5, or below 3
# for code, whose colors the theme chooses.
FAINT = """() => {
    const parts = color => (color.match(/[\\d.]+/g) || []).map(Number);
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map(c => c / 255).map(
            c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const color = parts(getComputedStyle(e).backgroundColor);
            if (color.length === 3 || color[3] > 0.5) return color;
        }
        return [255, 255, 255];
    };
    const faint = [];
    for (const e of document.querySelectorAll('article *')) {
        const own = [...e.childNodes].some(x => x.nodeType === 3 && x.textContent.trim());
        if (!own || !e.getClientRects().length || e.closest('svg, mjx-container, .headerlink')) continue;
        const style = getComputedStyle(e);
        if (style.visibility === 'hidden' || style.opacity < 0.5) continue;
        const [a, b] = [light(parts(style.color)), light(behind(e))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < (e.closest('pre, code') ? 3 : 4.5))
            faint.push(`${e.textContent.trim().slice(0, 40)} (${contrast.toFixed(1)}, ${e.className})`);
    }
    return faint;
}"""
WIDE = """() => [...document.querySelectorAll('article *')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
    .slice(0, 5).map(e => `${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 40)}`)"""


def visit(page, address: str) -> None:
    """Load a page with all its pictures and formulas."""
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address, wait_until="load")
    page.evaluate("() => document.querySelectorAll('img').forEach(x => { x.loading = 'eager' })")
    page.wait_for_function("() => [...document.images].every(x => x.complete)")
    page.wait_for_function("() => !window.MathJax?.startup || document.readyState === 'complete'")
    broken = page.evaluate(
        "() => [...document.images].filter(x => !x.naturalWidth).map(x => x.src)"
    )
    here = re.match(r"\w+://[^/]+/", address)[0]
    elsewhere = [url for url in asked if not url.startswith((here, "data:", "blob:"))]
    assert broken == [] and elsewhere == []


@each_page
def test_a_page_loads_without_an_error(opened, site, shot, name):
    page = opened()
    visit(page, site + PAGES[name])
    page.wait_for_timeout(500)
    assert page.faults == []
    assert page.locator("article h1").count() >= 1
    if name in ("00", "01", "02"):
        assert page.locator("article mjx-container").count() > 3, "formulas are not drawn"
    shot(page, f"site_{name}_wide", full_page=True)


@each_page
def test_a_page_fits_a_phone(opened, site, shot, name):
    page = opened(width=390, height=844)
    visit(page, site + PAGES[name])
    inner, outer = page.evaluate(
        "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert inner <= outer == 390, page.evaluate(WIDE)
    shot(page, f"site_{name}_phone", full_page=True)


@each_page
def test_a_page_can_be_read_in_the_dark(opened, site, shot, name):
    page = opened(scheme="dark")
    visit(page, site + PAGES[name])
    color = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", color)[:3])) < 80, f"not dark: {color}"
    faint = page.evaluate(FAINT)
    assert faint == [], f"{len(faint)} too faint"
    shot(page, f"site_{name}_dark", full_page=True)


def test_search_finds_a_function(opened, site, shot):
    page = opened()
    page.goto(site + PAGES["index"])
    page.locator("input[name=q]").first.fill("log_weights")
    page.keyboard.press("Enter")
    found = page.locator("ul.search a", has_text="aisp.control.log_weights")
    found.first.wait_for()
    page.wait_for_load_state("networkidle")  # it reads a summary of each page that it found
    shot(page, "site_search")
    assert page.faults == []
    found.first.click()
    page.wait_for_url(re.compile(r"/api/.*log_weights"))
    assert page.locator("[id='aisp.control.log_weights']").is_visible()
