"""The built site, page by page, in a real Chromium: what a reader would see, press, search for and download.

Each page is opened three times, in light, in dark and at phone width, and everything that is asked of it is asked there: no
error, no request to another site, within its weight, legible, every icon drawn, every slider moves its output by keyboard and by
mouse. With `MINISERVE_SCREENSHOTS=1` whole pages are kept in `artifacts/book`: drawing one takes longer than all that is
asked of it. Accessibility is axe-core's judgement, less what the theme itself is guilty of,
listed in `axe_baseline.txt`; of the dark look it judges the colours alone, as nothing else differs.
The pages of one look share a cache, as a reader's do: what they share is fetched once, and weighed in each.
"""

import contextlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from book.check_html import check
from support.chromium import violations

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MEGABYTE = 1_000_000
BUDGET, BUDGET_WITH_MATH = 2.6 * MEGABYTE, 3.9 * MEGABYTE
LOOKS = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 390)}
DOCUMENTS = re.findall(r"^\s*- file: (\S+)|^root: (\S+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"), re.MULTILINE)
PAGES = [f"{first or second}.html" for first, second in DOCUMENTS]


@dataclass
class Opened:
    """A page in a tab of its own, and what was noted while it loaded and since."""

    page: str
    tab: Any
    problems: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def has_notebook(self) -> bool:
        return (ROOT / self.page).with_suffix(".ipynb").is_file()


def visit(context, server: str, page: str) -> Opened:
    """Open one page, noting errors, refused files and requests that leave the site."""
    tab = context.new_page()
    opened = Opened(page, tab)
    problems = opened.problems
    tab.on("pageerror", lambda error: problems.append(f"{page}: script error: {error}"))
    tab.on("console", lambda m: problems.append(f"{page}: console: {m.text}") if m.type == "error" else None)

    def leave(request):
        if not request.url.startswith((server, "data:", "blob:")):
            problems.append(f"{page}: asks {request.url[:100]}: vendor it under book/_static")

    def weigh(response):
        if response.status >= 400:
            problems.append(f"{page}: {response.status} for {response.url.removeprefix(server)}")
        elif response.url.startswith(server):
            opened.sizes[response.url] = int(response.headers.get("content-length", 0))

    tab.on("request", leave)  # watched, not held up: no name but this machine's is resolved
    tab.on("response", weigh)
    tab.goto(server + page, wait_until="networkidle")
    return opened


@pytest.fixture(scope="module")
def readers(browser):
    """A browser's session for each look."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(
                browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            )
            for name, (scheme, width) in LOOKS.items()
        }


@pytest.fixture(scope="module", params=PAGES, ids=lambda page: Path(page).stem)
def looks(request, server, readers, artifacts):
    """One page, opened in every look."""
    opened = {name: visit(reader, server, request.param) for name, reader in readers.items()}
    if os.environ.get("MINISERVE_SCREENSHOTS"):
        for name, each in opened.items():
            each.tab.screenshot(path=artifacts / f"{Path(request.param).stem}-{name}.png", full_page=True)
    yield opened
    for each in opened.values():
        each.tab.close()


def test_links_anchors_images_and_loads(site):
    assert not check(site)


def test_the_pages_are_those_of_the_table_of_contents(site):
    built = {path.relative_to(site).as_posix() for path in (site / "book").glob("*.html")}
    assert built == set(PAGES)


def test_it_loads_clean_light_and_within_the_screen(looks, server):
    problems = []
    for name, opened in looks.items():
        problems += opened.problems
        width, wide = LOOKS[name][1], opened.tab.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            problems.append(f"{wide} pixels wide on a screen of {width}: something does not scroll inside itself")
        weight, budget = sum(opened.sizes.values()), BUDGET
        if any("mathjax" in url for url in opened.sizes):
            budget = BUDGET_WITH_MATH
        if weight > budget:
            heavy = sorted(((n, url.removeprefix(server)) for url, n in opened.sizes.items()), reverse=True)[:4]
            problems.append(f"{weight / 1e6:.2f} MB, over {budget / 1e6} MB; heaviest: {heavy}")
    assert not problems, "\n".join(problems)


def test_dark_mode_text_is_legible(looks):
    """Text in the article and in Explorers is light on dark: nothing keeps black ink or a white ground."""
    inks = looks["dark"].tab.eval_on_selector_all(
        "article p, .ms-explorer, .ms-figure svg text",
        """nodes => nodes.filter(n => n.checkVisibility()).map(n => {
             const s = getComputedStyle(n), c = n instanceof SVGElement ? s.fill : s.color;
             return [c, n.textContent.slice(0, 40)]; })""",
    )
    dim = [text for ink, text in inks if sum(map(float, re.findall(r"[\d.]+", ink)[:3])) < 3 * 70]
    assert not dim, f"dark ink on the dark page: {dim[:3]}"


def test_every_icon_is_drawn(looks):
    """The build keeps only the icons that pages name; one that is missing would show as an animated placeholder."""
    tab = looks["light"].tab
    assert tab.locator("svg[data-icon]").count() > 5
    assert tab.locator("i[class*='fa-']").count() == 0
    assert tab.locator("svg[data-icon] animate").count() == 0


def test_few_icons_are_shipped(site):
    assert (site / "_static/scripts/fontawesome.js").stat().st_size < 300_000


def test_it_leads_to_its_notebook_on_colab_and_loads_no_kernel_of_its_own(looks):
    opened = looks["light"]
    if opened.has_notebook:
        config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
        slug = config["repository"]["url"].removeprefix("https://github.com/")
        links = opened.tab.eval_on_selector_all("a", "nodes => nodes.map(n => n.href)")
        assert any(link.startswith(f"https://colab.research.google.com/github/{slug}/") for link in links)
    assert "thebe" not in opened.tab.content().lower(), "the page still loads Thebe"


@pytest.mark.parametrize("look", ["light", "dark"])
def test_accessibility(looks, look):
    """axe-core finds nothing beyond the baseline. Of entries of the API in a row, which are made alike, it judges three:
    all of them take it half a minute.
    """
    looks[look].tab.evaluate(
        "document.querySelectorAll('dl.py ~ dl.py ~ dl.py ~ dl.py').forEach(each => each.remove())"
    )
    lines = (HERE / "axe_baseline.txt").read_text().splitlines()
    baseline = [line.split() for line in lines if line and line[0] != "#"]
    problems = []
    for told, target, html in violations(looks[look].tab, rules=["color-contrast"] if look == "dark" else None):
        rule = told.partition(":")[0]
        if not any(rule == known and (mark in html or mark in target) for known, mark in baseline):
            problems.append(f"{told}: {html[:160]}")
    assert not problems, "\n".join(dict.fromkeys(problems))


def test_every_slider_moves_its_output(looks):
    opened = looks["light"]
    tab, source = opened.tab, (ROOT / opened.page).with_suffix(".md").read_text(encoding="utf-8")
    explorers = tab.locator(".ms-explorer-host .ms-explorer")
    assert explorers.count() == tab.locator(".ms-explorer-host").count(), "an Explorer did not start"
    sliders = [(each, slider) for each in explorers.all() for slider in each.locator("input[type=range]").all()]
    assert sliders or "Explorer(" not in source, "no slider found"
    problems = [problem for each, slider in sliders for problem in _drive(tab, each, slider)]
    assert not problems, "\n".join(problems)


def _drive(tab, explorer, slider) -> list[str]:
    label, output = slider.get_attribute("aria-label"), explorer.locator("output")
    title = explorer.get_attribute("aria-label")

    def state():
        return (
            output.inner_text(),
            slider.get_attribute("aria-valuetext"),
            explorer.locator("svg circle").evaluate("c => c.getAttribute('cx') + ' ' + c.getAttribute('cy')"),
        )

    problems = []
    slider.scroll_into_view_if_needed()
    for how in ("keyboard", "mouse"):
        before = state()
        if how == "keyboard":
            slider.focus()
            slider.press("Home" if slider.input_value() != "0" else "End")
        else:
            box = slider.bounding_box()
            beyond = slider.evaluate("s => (s.value - s.min) / (s.max - s.min) > 0.5")
            tab.mouse.click(box["x"] + (0.2 if beyond else 0.8) * box["width"], box["y"] + box["height"] / 2)
        after = state()
        if after[1] == before[1]:
            problems.append(f"{title}: slider {label!r} does not move by {how}")
        elif after[0] == before[0] and after[2] == before[2]:
            problems.append(f"{title}: moving {label!r} by {how} changes nothing that is shown")
    return problems


@pytest.mark.parametrize("page", PAGES, ids=lambda page: Path(page).stem)
def test_search_finds_it(page, server, readers):
    """A word of the document's title leads to it."""
    source = (ROOT / page).with_suffix(".md").read_text(encoding="utf-8")
    heading = next(line for line in source.splitlines() if line.startswith("# "))
    word = max(re.findall(r"[A-Za-z]+", heading), key=len)
    opened = visit(readers["light"], server, f"search.html?q={word}")
    opened.tab.wait_for_selector("#search-results li a", timeout=10_000)
    links = opened.tab.eval_on_selector_all("#search-results li a", "nodes => nodes.map(n => n.href)")
    opened.tab.close()
    assert any(page in link for link in links), f"searching {word!r} does not find it: {links}"
    assert not opened.problems


def test_the_index_has_terms_and_names_and_fits_a_phone(server, readers):
    opened = visit(readers["phone"], server, "genindex.html")
    links = dict(opened.tab.eval_on_selector_all(".genindextable a", "nodes => nodes.map(n => [n.innerText, n.href])"))
    wide = opened.tab.evaluate("document.documentElement.scrollWidth")
    opened.tab.close()
    assert "book/glossary.html#" in links["AFD"]
    assert "book/api.html#miniserve.LLM" in links["LLM (class in miniserve)"]
    assert wide <= LOOKS["phone"][1]
    assert not opened.problems
