"""The live view and the page about the API, in a real Chromium."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from miniserve.registry.store import Registry
from miniserve.registry.version import Provenance
from miniserve.server.access import hash_key, new_key
from support.chromium import violations

SYSTEM = "You are the guide of a museum, and you know all about machines. " * 2
LONG = {"model": "tiny", "max_tokens": 12000, "ignore_eos": True}
CONTROLS = ["pause", "theme", "log", "prompt", "send", "fresh", "visitors", "pool", "strip"]


class Page:
    """A tab, and what went wrong in it."""

    def __init__(self, browser, server, path="/", **options):
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.tab, self.problems = self.context.new_page(), []
        self.tab.on("pageerror", lambda error: self.problems.append(f"script error: {error}"))
        self.tab.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.tab.on("request", lambda r: r.url.startswith(server.url) or self.problems.append(f"asks {r.url}"))
        self.answer = self.tab.goto(server.url + path)
        if path == "/":
            self.live()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def wait(self, expression, argument=None, timeout_s=20):
        """Not by playwright's own `wait_for_function`, which the page's policy forbids: it evaluates a string there."""
        deadline = time.monotonic() + timeout_s
        while not self.tab.evaluate(expression, argument):
            assert time.monotonic() < deadline, f"it did not come about: {expression} {argument}"
            self.tab.wait_for_timeout(50)

    def told(self, text, timeout_s=20):
        self.wait("text => document.querySelector('#status').textContent.includes(text)", text, timeout_s)

    def live(self, timeout_s=20):
        self.told("Live", timeout_s)

    def open_tables(self):
        self.tab.eval_on_selector_all("details.alternative", "all => all.forEach(each => { each.open = true; })")

    def rows(self, table):
        return self.tab.eval_on_selector_all(
            f"#{table} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        )

    def shows(self, engine, column, beginning):
        """Wait until that is what stands there in the table of a fleet's engines."""
        cell = """([name, head, text]) => {
            const [heads, ...rows] = [...document.querySelectorAll('#engines tr')].map(row => [...row.cells]);
            const at = heads.findIndex(each => each.textContent === head);
            return rows.find(row => row[0].textContent === name)[at].textContent.startsWith(text);
        }"""
        self.wait(cell, [engine, column, beginning])

    def points_at(self, figure):
        return self.tab.get_attribute(f"#{figure}", "aria-valuetext")


def an_engine(server):
    """Of a fleet: the process of one."""
    children = psutil.Process(server.process.pid).children()
    return next(child.pid for child in children if "spawn_main" in str(child.cmdline()))


@pytest.fixture(scope="module")
def server(start):
    with start("--max-num-seqs", "6") as server:
        yield server


@pytest.fixture
def open_page(browser, server):
    pages = []

    def open_one(path="/", **options):
        pages.append(Page(browser, server, path, **options))
        return pages[-1]

    yield open_one
    for page in pages:
        page.context.close()
    assert not [problem for page in pages for problem in page.problems]


@pytest.fixture
def load(server):
    """Begin completions that go on while a test looks at them; returns their numbers."""
    with contextlib.ExitStack() as stack:

        def begin(prompts):
            names = []
            for prompt in prompts:
                body = LONG | {"prompt": prompt, "stream": True}
                reply = stack.enter_context(server.http.stream("POST", "/v1/completions", json=body))
                begun.append(reply.iter_lines())  # kept: when it goes, so does the connection
                next(begun[-1])
                names.append(reply.headers["x-engine-request"])
            return names

        begun = []
        yield begin
    server.until(lambda: server.metric("num_requests_running") == 0)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_it_asks_nobody_else_and_may_not(open_page, server, path):
    page = open_page(path)
    policy = page.answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    page.tab.wait_for_load_state("load")
    for name in page.tab.eval_on_selector_all("link, script, img", "all => all.map(each => each.src || each.href)"):
        answer = server.http.get(name)
        assert answer.headers["content-security-policy"] == policy
        again = server.http.get(name, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_the_api_is_described(open_page, server):
    tab = open_page("/docs").tab
    tab.wait_for_selector("#api[data-ready]")
    told = tab.text_content("#api")
    schema = server.http.get("/openapi.json").json()
    for path in schema["paths"]:
        assert path in told
    for field in ("max_completion_tokens", "stream_options", "logit_bias", "json_schema"):
        assert field in told
    assert not [path for path in schema["paths"] if path.startswith("/view")]


def test_chat_streams_stops_and_tells_times(open_page):
    page = open_page()
    tab = page.tab
    tab.click("#chat summary")
    tab.fill("#max-tokens", "12000")
    tab.eval_on_selector("#temperature", "slider => { slider.value = 0; slider.dispatchEvent(new Event('input')); }")
    tab.fill("#prompt", "hello")
    tab.press("#prompt", "Enter")
    grown = "n => document.querySelector('article.assistant p')?.textContent.length > n"
    page.wait(grown, 0)
    page.wait(grown, tab.evaluate("document.querySelector('article.assistant p').textContent.length"))
    name = re.fullmatch(r"request (\d+)", tab.text_content("article.assistant h3")).group(1)
    page.open_tables()
    page.wait("name => document.querySelector('#blocks-table td')?.textContent === name", name)
    tab.click("#stop")
    page.wait("document.querySelector('.note').textContent.startsWith('Stopped')")
    page.wait("document.querySelectorAll('#blocks-table td').length === 0")  # and in the engine, too
    assert tab.is_disabled("#stop")
    tab.click("#fresh")
    tab.fill("#max-tokens", "5")
    tab.fill("#prompt", "again")
    tab.click("#send")
    page.wait("/^\\d+ tokens.*first after/.test(document.querySelector('.note')?.textContent)")
    tab.fill("#max-tokens", "20000")  # refused, in the server's own words
    tab.fill("#prompt", "and again")
    tab.click("#send")
    page.wait("document.querySelector('.note.error')?.textContent.includes('16384')")
    page.problems[:] = [each for each in page.problems if "status of 400" not in each]


def test_two_generations_and_what_they_share(open_page, load):
    names = load([SYSTEM + "Who are you?", SYSTEM + "What is a bit?"])
    page = open_page()
    page.open_tables()
    page.wait("document.querySelectorAll('#blocks-table tbody tr').length === 2")
    rows = page.rows("blocks-table")
    assert [row[0] for row in rows] == names
    shared = len(SYSTEM) // 16  # a token is a character, a block 16 of them
    assert [int(row[6]) for row in rows] == [shared, shared]
    assert min(int(row[5]) for row in rows) > shared
    page.tab.focus("#pool")  # it begins with the first block that somebody has
    wanted = f"requests {', '.join(names)}; 2 references; can be found by others"
    for _ in range(20):
        if page.points_at("pool").endswith(wanted):
            break
        page.tab.press("#pool", "ArrowRight")
    assert page.points_at("pool").endswith(wanted)
    assert page.tab.text_content("#pool-told") == page.points_at("pool")
    before = int(page.rows("steps-table")[0][0])
    page.wait("n => +document.querySelector('#steps-table td').textContent > n", before)
    assert int(page.rows("steps-table")[0][3]) == 2  # who decodes
    page.wait("+document.querySelector('#n-output').textContent.replace(',', '') > 0")
    assert page.tab.text_content("#n-running") == "2"
    assert re.search(r"p50 [\d.]+ (ms|µs)", page.tab.get_attribute("#chart-itl", "aria-label"))
    assert "forward" in page.tab.text_content("#split")
    cost = page.tab.text_content("#cost")
    assert 0 < float(cost.removesuffix("%")) < 5


def test_every_control_by_keyboard(open_page):
    page = open_page()
    tab, seen = page.tab, []
    tab.evaluate("document.activeElement.blur()")
    for _ in range(40):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement === document.body"):
            break  # once around
        name, outline = tab.evaluate(
            "(e => [e.id || e.textContent, getComputedStyle(e).outlineStyle])(document.activeElement)"
        )
        seen.append(name)
        assert outline != "none", f"{name} does not show that it has the focus"
        if name == "pool":
            first = page.points_at("pool")
            tab.keyboard.press("ArrowDown")
            assert page.points_at("pool") != first
        if name == "theme":
            for theme in ("light", "dark"):
                tab.keyboard.press("Enter")
                assert tab.evaluate("document.documentElement.dataset.theme") == theme
        if name == "pause":
            tab.keyboard.press("Space")
            assert tab.get_attribute("#pause", "aria-pressed") == "true"
            tab.keyboard.press("Space")
    assert [name for name in seen if name in CONTROLS] == CONTROLS
    assert seen.count("As a table") == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(open_page, load, scheme):
    load([SYSTEM])
    page = open_page(color_scheme=scheme)
    page.tab.eval_on_selector_all("details", "all => all.forEach(each => { each.open = true; })")
    page.wait("!!document.querySelector('#charts-table td') && !!document.querySelector('#split b')")
    page.tab.click("#pause")
    assert not violations(page.tab)
    docs = open_page("/docs", color_scheme=scheme)
    docs.tab.wait_for_selector("#api[data-ready]")
    docs.tab.eval_on_selector("details", "first => { first.open = true; }")
    assert not violations(docs.tab)


def test_on_a_phone_nothing_is_wider_than_the_screen(open_page, load):
    load([SYSTEM])
    for path in ("/", "/docs"):
        page = open_page(path, viewport={"width": 360, "height": 780}, reduced_motion="reduce")
        page.tab.wait_for_selector("#api[data-ready]" if path == "/docs" else "#strip")
        page.tab.eval_on_selector_all("details", "all => all.forEach(each => { each.open = true; })")
        if path == "/":
            page.wait("!!document.querySelector('#charts-table td') && !!document.querySelector('#blocks-table td')")
            assert re.search(r"One cell is [2-9] of 6,144 blocks", page.tab.text_content("#scale"))
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= 360


def test_an_engine_that_dies_is_told_and_its_successor_shown(open_page, server, load):
    page = open_page()
    load([SYSTEM])
    page.open_tables()
    page.wait("document.querySelectorAll('#blocks-table tbody tr').length === 1")
    os.kill(server.engine_pid(), signal.SIGKILL)
    page.told("The engine died and is being started again")
    page.wait("document.querySelectorAll('#blocks-table tbody tr').length === 0")
    page.live(timeout_s=60)
    load([SYSTEM])
    page.wait("document.querySelectorAll('#blocks-table tbody tr').length === 1")
    page.wait("+document.querySelector('#steps-table td')?.textContent >= 0")


def test_every_engine_of_a_fleet_is_shown(browser, start):
    options = ["--prefill", "1", "--decode", "1", "--prefill-from", "32", "--kv-cache-mib", "16", "--kv-host-mib", "8"]
    body = LONG | {"prompt": SYSTEM, "stream": True, "max_tokens": 8000}
    with start(*options) as server, Page(browser, server) as page:
        tab = page.tab
        page.open_tables()
        with server.http.stream("POST", "/v1/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            page.shows("decode 0", "running", "1")
            page.shows("prefill 0", "left", "1 (")
            page.shows("decode 0", "arrived", "1 (")
            page.shows("prefill 0", "in tiers", "host 0.")
            name = reply.headers["x-engine-request"]
            page.wait("name => document.querySelector('#blocks-table td')?.textContent === name", name)
            assert tab.text_content("#n-running") == "1"
            tab.focus("#engines button")
            tab.keyboard.press("Enter")
            pressed = tab.eval_on_selector_all("#engines button", "all => all.map(each => each.ariaPressed)")
            assert pressed == ["true", "false"]
            page.wait("document.querySelectorAll('#blocks-table td').length === 0")  # it has gone from there
            page.wait("document.querySelector('#tiers').textContent.includes('host 0 of 8 MiB')")
            assert not violations(tab)
            os.kill(an_engine(server), signal.SIGKILL)
            page.told("Live, without ")
            name = tab.text_content("#status").removeprefix("Live, without ")
            page.shows(name, "state", "starting again")
            page.shows(name, "left", "–")
            page.wait("document.querySelector('#n-running').textContent === '1'")  # here or there
        assert page.problems == []


def test_a_stable_version_and_a_canary_are_shown_apart(browser, start, tiny_chat_model, tmp_path):
    """A server of two engines: some 10 s of CPU."""
    key, admins, registry = new_key(), tmp_path / "admins.toml", tmp_path / "registry"
    admins.write_text(f'[ann]\nsha256 = "{hash_key(key)}"\n')
    origin = Provenance(source="random weights", by="a test", licence="Apache-2.0")
    for version in "12":
        Registry(registry).register(
            "shop", Path(tiny_chat_model), card="Of a test.", version=version, provenance=origin
        )
    (registry / "shop" / "stable").write_text("1\n")
    options = ["--models", "registry:shop", "--warm", "2", "--kv-cache-mib", "16", "--admin-keys-file", str(admins)]
    with (
        start(*options, model=None, MINISERVE_REGISTRY=str(registry)) as server,
        Page(browser, server) as page,
        contextlib.ExitStack() as stack,
    ):

        def begin(version, **headers):
            """A stream that goes on; returns its number."""
            body = LONG | {"prompt": SYSTEM, "stream": True, "max_tokens": 8000}
            reply = stack.enter_context(server.http.stream("POST", "/v1/completions", json=body, headers=headers))
            assert reply.headers["x-model-version"] == version
            next(lines := reply.iter_lines())
            kept.append(lines)
            return reply.headers["x-engine-request"]

        kept, tab, block_owner = [], page.tab, "document.querySelector('#blocks-table td')?.textContent"
        page.open_tables()
        assert [row[0] for row in page.rows("engines")] == ["version 1", "version 2"]
        first = begin("1")
        page.shows("version 1", "running", "1")
        page.shows("version 2", "running", "0")
        page.wait(f"name => {block_owner} === name", first)
        order, admin = {"canary": "2", "weight": 1.0}, {"authorization": f"Bearer {key}"}
        assert server.http.put("/admin/traffic", json=order, headers=admin).status_code == 200
        assert begin("2") == first  # each version numbers its own
        begin("1", **{"x-model-version": "1"})
        page.shows("version 1", "running", "2")
        page.shows("version 2", "running", "1")
        assert tab.text_content("#n-running") == "3"
        tab.click("#engines button >> text=version 2")
        page.wait("document.querySelectorAll('#blocks-table tbody tr').length === 1")
        tab.fill("#prompt", "hello")
        tab.press("#prompt", "Enter")
        page.wait("document.querySelector('article.assistant h3')?.textContent.endsWith(' of version 2')")
        assert not violations(tab)
        assert page.problems == []


def test_a_lost_connection_is_told_and_comes_back_with_a_key(browser, server, start):
    """The last one: it ends the server."""
    key = "a-key-that-nobody-guesses"
    with Page(browser, server) as page:
        port = server.url.rpartition(":")[2]
        server.close()
        page.told("Connection lost")
        with start("--port", port, MINISERVE_API_KEY=key):
            page.told("An API key is needed")
            page.tab.fill("#key", key)
            page.tab.press("#key", "Enter")
            page.live()
            assert page.tab.evaluate("Object.values(sessionStorage)") == [key]
            assert key not in page.tab.evaluate("JSON.stringify(localStorage) + document.cookie")
