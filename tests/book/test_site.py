"""The built site, page by page, in a real Chromium: what a reader would see, press, search for and download.

Every page: no error, no request to another site, within its weight. Every slider: moves its output by keyboard and by mouse.
Screenshots in light, dark and at phone width are kept in `artifacts/book`. Accessibility is axe-core's judgement, less what
the theme itself is guilty of, listed in `axe_baseline.txt`.
"""

import re
from pathlib import Path

import pytest
import yaml

from book.check_html import check

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MEGABYTE = 1_000_000
BUDGET, BUDGET_WITH_MATH = 2.6 * MEGABYTE, 3.9 * MEGABYTE


def pages(site: Path) -> list[str]:
    """The book's own pages, as addresses relative to the site."""
    return sorted(p.relative_to(site).as_posix() for p in (site / "book").glob("*.html"))


def visit(context, server, page, problems, sizes=None):
    """Open one page, noting errors, refused files and requests that leave the site."""
    tab = context.new_page()
    tab.on("pageerror", lambda error: problems.append(f"{page}: script error: {error}"))
    tab.on("console", lambda m: problems.append(f"{page}: console: {m.text}") if m.type == "error" else None)

    def leave(route):
        url = route.request.url
        if url.startswith((server, "data:", "blob:")):
            return route.continue_()
        problems.append(f"{page}: asks {url[:100]}: vendor it under book/_static")
        return route.abort()

    def weigh(response):
        if response.status >= 400:
            problems.append(f"{page}: {response.status} for {response.url.removeprefix(server)}")
        elif sizes is not None and response.url.startswith(server):
            sizes[response.url] = int(response.headers.get("content-length", 0))

    tab.route("**/*", leave)
    tab.on("response", weigh)
    tab.goto(server + page, wait_until="networkidle")
    return tab


def test_links_anchors_images_and_loads(site):
    assert not check(site)


def test_pages_load_clean_and_light(site, server, browser, artifacts):
    problems: list[str] = []
    for page in pages(site):
        for name, scheme, width in (("light", "light", 1280), ("dark", "dark", 1280), ("phone", "light", 390)):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            sizes: dict[str, int] = {}
            tab = visit(context, server, page, problems, sizes)
            wide = tab.evaluate("document.documentElement.scrollWidth")
            if wide > width:
                problems.append(
                    f"{page}: {wide} pixels wide on a screen of {width}: something does not scroll inside itself"
                )
            budget = BUDGET_WITH_MATH if any("mathjax" in url for url in sizes) else BUDGET
            if sum(sizes.values()) > budget:
                heavy = sorted(((n, url.removeprefix(server)) for url, n in sizes.items()), reverse=True)[:4]
                problems.append(
                    f"{page}: {sum(sizes.values()) / 1e6:.2f} MB, over {budget / 1e6} MB; heaviest: {heavy}"
                )
            tab.screenshot(path=artifacts / f"{Path(page).stem}-{name}.png", full_page=True)
            context.close()
    assert not problems, "\n".join(problems)


def test_dark_mode_text_is_legible(site, server, browser):
    """Text in the article and in Explorers is light on dark: nothing keeps black ink or a white ground."""
    context = browser.new_context(color_scheme="dark")
    for page in pages(site):
        tab = visit(context, server, page, [])
        inks = tab.eval_on_selector_all(
            "article p, .ms-explorer, .ms-figure svg text",
            """nodes => nodes.filter(n => n.checkVisibility()).map(n => {
                 const s = getComputedStyle(n), c = n instanceof SVGElement ? s.fill : s.color;
                 return [c, n.textContent.slice(0, 40)]; })""",
        )
        dim = [text for ink, text in inks if sum(map(float, re.findall(r"[\d.]+", ink)[:3])) < 3 * 70]
        assert not dim, f"{page}: dark ink on the dark page: {dim[:3]}"
        tab.close()
    context.close()


def test_every_icon_is_drawn(site, server, browser):
    """The build keeps only the icons that pages name; one that is missing would show as an animated placeholder."""
    context = browser.new_context()
    for page in pages(site):
        tab = visit(context, server, page, [])
        assert tab.locator("svg[data-icon]").count() > 5, page
        assert tab.locator("i[class*='fa-']").count() == 0, page
        assert tab.locator("svg[data-icon] animate").count() == 0, page
        tab.close()
    context.close()
    assert (site / "_static/scripts/fontawesome.js").stat().st_size < 300_000


def test_every_slider_moves_its_output(site, server, browser):
    problems: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    found = 0
    for page in pages(site):
        tab = visit(context, server, page, problems)
        hosts = tab.locator(".ms-explorer-host")
        if hosts.count() != tab.locator(".ms-explorer-host .ms-explorer").count():
            problems.append(f"{page}: an Explorer did not start")
        for explorer in tab.locator(".ms-explorer").all():
            for slider in explorer.locator("input[type=range]").all():
                found += 1
                problems += [f"{page}: {problem}" for problem in _drive(tab, explorer, slider)]
        tab.close()
    context.close()
    assert found or not any("Explorer(" in p.read_text() for p in (ROOT / "book").glob("[0-9]*.md")), "no slider found"
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
            tab.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
        after = state()
        if after[1] == before[1]:
            problems.append(f"{title}: slider {label!r} does not move by {how}")
        elif after[0] == before[0] and after[2] == before[2]:
            problems.append(f"{title}: moving {label!r} by {how} changes nothing that is shown")
    return problems


def test_search_finds_every_chapter(site, server, browser):
    """A word of each document's title leads to it."""
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    documents = re.findall(r"^\s*- file: (\S+)", toc, re.MULTILINE)
    context = browser.new_context()
    for document in documents:
        heading = next(line for line in (ROOT / f"{document}.md").read_text().splitlines() if line.startswith("# "))
        word = max(re.findall(r"[A-Za-z]+", heading), key=len)
        problems: list[str] = []
        tab = visit(context, server, f"search.html?q={word}", problems)
        tab.wait_for_selector("#search-results li a", timeout=10_000)
        links = tab.eval_on_selector_all("#search-results li a", "nodes => nodes.map(n => n.href)")
        assert any(f"{document}.html" in link for link in links), (
            f"searching {word!r} does not find {document}: {links}"
        )
        assert not problems
        tab.close()
    context.close()


def test_the_theme_s_own_search_and_notebook_buttons_are_there(site, server, browser):
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    context = browser.new_context()
    for page in pages(site):
        tab = visit(context, server, page, [])
        if (ROOT / page).with_suffix(".ipynb").is_file():
            links = tab.eval_on_selector_all("a", "nodes => nodes.map(n => n.href)")
            slug = config["repository"]["url"].removeprefix("https://github.com/")
            assert any(link.startswith(f"https://colab.research.google.com/github/{slug}/") for link in links), page
        assert "thebe" not in tab.content().lower(), f"{page} still loads Thebe"
        tab.close()
    context.close()


def test_accessibility(site, server, browser):
    """axe-core finds nothing beyond the baseline, in light and in dark."""
    axe = pytest.importorskip("axe_core_python")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    baseline = [
        line.split() for line in (HERE / "axe_baseline.txt").read_text().splitlines() if line and line[0] != "#"
    ]
    problems = []
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        for page in pages(site):
            tab = visit(context, server, page, problems)
            tab.evaluate(script)
            for violation in tab.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]:
                for node in violation["nodes"]:
                    html, target = node["html"], " ".join(map(str, node["target"]))
                    if not any(rule == violation["id"] and (mark in html or mark in target) for rule, mark in baseline):
                        problems.append(f"{page} ({scheme}): {violation['id']}: {violation['help']}: {html[:160]}")
            tab.close()
        context.close()
    assert not problems, "\n".join(dict.fromkeys(problems))
