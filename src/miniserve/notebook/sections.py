"""Sections of the book's pages, by the anchors that their headings get: what a link from elsewhere can point at.

Anchors are formed as on GitHub, which is how MyST forms them too: the heading in lower case, spaces as hyphens, other
punctuation left out, a number after what has been there already. What stands inside fenced blocks is no heading.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from miniserve.errors import CorruptFileError


@dataclass(frozen=True)
class Section:
    """A heading of a page. `page` is the file's name, `title` the page's own heading, `heading` this section's."""

    page: str
    title: str
    heading: str
    anchor: str

    @property
    def link(self) -> str:
        """A link in Markdown that the book's build resolves and checks, e.g. [5. The KV cache: The claim](…)."""
        words = self.title if self.heading == self.title else f"{self.title}: {self.heading}"
        return f"[{words}]({self.page}#{self.anchor})"


def anchor_of(heading: str) -> str:
    """The anchor of a heading that stands once on its page."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def sections_of(path: Path) -> dict[str, Section]:
    """The sections of a page by anchor, in order. Raises CorruptFileError for a page without a heading."""
    found: dict[str, Section] = {}
    seen: Counter[str] = Counter()
    fence, title = "", ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if mark := re.match(r"(`{3,}|~{3,})", line):
            fence = "" if fence and line.startswith(fence) else fence or mark[1]
        heading = None if fence else re.fullmatch(r"#{1,3} (.+)", line)
        if not heading:
            continue
        words = re.sub(r"[`$*]", "", heading[1]).strip()
        title = title or words
        anchor = anchor_of(words)
        number = f"-{seen[anchor]}" if seen[anchor] else ""
        seen[anchor] += 1
        found[anchor + number] = Section(path.name, title, words, anchor + number)
    if not title:
        raise CorruptFileError(f"{path}: has no heading")
    return found
