"""Check a built site without a browser: links, anchors, alternative texts, and that nothing is loaded from elsewhere.

    python tests/book/check_html.py _build/html

It reads every `.html` and `.css` under a folder. Links to other sites (`<a href="https://…">`) are allowed and not followed;
scripts, images, styles, fonts and frames from other sites are not. It runs no JavaScript: the browser's tests do that.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {
    "img": "src",
    "script": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
CSS_URL = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""")
# Links that a browser reads without loading: who the page is, not what it needs.
NOT_LOADED = {"canonical", "alternate", "author", "license", "next", "prev", "index", "search"}


class Page(HTMLParser):
    """Collects one page's anchors, its references and its own problems."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.references: list[tuple[str, str]] = []
        self.problems: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "img":
            self._image(given)
        if tag == "svg" and given.get("role") == "img" and not (given.get("aria-label") or "").strip():
            self.problems.append("an svg with role=img has no aria-label: say what it shows")
        if "style" in given and CSS_URL.search(given["style"] or ""):
            self.problems.append(f"a style loads from another site: {given['style'][:80]}")
        if tag == "a" and given.get("href"):
            self.references.append(("a", given["href"]))
        elif tag == "link" and given.get("href"):
            if not set((given.get("rel") or "").split()) & NOT_LOADED:
                self.references.append(("link", given["href"]))
        elif tag in LOADS and given.get(LOADS[tag]):
            self.references.append((tag, given[LOADS[tag]]))

    def _image(self, given):
        alt, src = (given.get("alt") or "").strip(), given.get("src") or ""
        # Sphinx writes the file's name where an author gave no text.
        if not alt or alt == src or Path(alt).name == Path(src).name:
            self.problems.append(
                f"the image {src[:60]} has no alternative text: add `:alt:` (or use show_figure(alt=...))"
            )


def check(root: Path) -> list[str]:
    """Every problem under `root`, each as `page: what is wrong and what to do`."""
    root = root.resolve()
    pages: dict[Path, Page] = {}
    for path in sorted(
        p for p in root.rglob("*.html") if "_static" not in p.relative_to(root).parts
    ):  # theme's templates
        pages[path] = Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    problems = []
    for path, page in pages.items():
        told = [*page.problems, *filter(None, (_reference(root, path, pages, *ref) for ref in page.references))]
        problems += [f"{path.relative_to(root)}: {problem}" for problem in dict.fromkeys(told)]
    for path in sorted(root.rglob("*.css")):
        for url in CSS_URL.findall(path.read_text(encoding="utf-8", errors="replace")):
            problems.append(
                f"{path.relative_to(root)}: loads {url[:80]} from another site: vendor it under book/_static"
            )
    return problems


def _reference(root: Path, path: Path, pages: dict[Path, Page], tag: str, url: str) -> str | None:
    parts = urlsplit(url)
    if parts.scheme in ("http", "https") or url.startswith("//"):
        return None if tag == "a" else f"<{tag}> loads {url[:80]} from another site: vendor it under book/_static"
    if parts.scheme:  # data:, mailto:
        return None
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_relative_to(root):
        return f"<{tag}> {url[:80]} leaves the site: mend the link"
    if target.is_dir():
        target = target / "index.html"
    if not target.exists():
        return f"<{tag}> {url[:80]} is missing: mend the link, or add the file"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].ids:
        return f"the link {url[:80]} has no such anchor: mend it, or add a (label)= there"
    return None


def main() -> None:
    """The command line; status 1 if anything is wrong."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit("usage: check_html.py FOLDER_OF_THE_BUILT_SITE")
    problems = check(Path(sys.argv[1]))
    print("\n".join(problems) or "The site's links, images and loads are in order.")
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
