"""What the tools know of the book: its files, and the addresses that `_config.yml` gives.

The repository's address and the site's address stand in `_config.yml` only; everything here is derived from them.
It reads; it writes nothing.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


class BookError(Exception):
    """A chapter or the configuration is wrong; the message says where and what to do."""


def fail(message: str) -> None:
    """Print for the person who can act on it, and end with status 1."""
    print(message, file=sys.stderr)
    raise SystemExit(1)


@dataclass(frozen=True)
class Book:
    """The book under `root`: addresses without a trailing slash, and the documents of `_toc.yml` in order."""

    root: Path
    title: str
    repository: str
    branch: str
    site: str
    documents: tuple[str, ...]

    @classmethod
    def read(cls, root: Path = ROOT) -> "Book":
        """Read `_config.yml` and `_toc.yml`. Raises `BookError` naming the field that is missing."""
        config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
        toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
        try:
            repository, site = config["repository"]["url"], config["html"]["baseurl"]
        except (KeyError, TypeError):
            raise BookError(f"{root / '_config.yml'} needs repository.url and html.baseurl") from None
        branch = config["repository"].get("branch", "main")
        documents = tuple(_files(toc))
        return cls(root, config["title"], repository.rstrip("/"), branch, site.rstrip("/"), documents)

    def source(self, document: str) -> Path:
        """The MyST source of a document such as `book/01_why_gpus`."""
        return self.root / f"{document}.md"

    def page(self, document: str, anchor: str = "") -> str:
        """The document's address in the web book."""
        return f"{self.site}/{document}.html" + (f"#{anchor}" if anchor else "")

    def colab(self, document: str) -> str:
        """The address that opens the document's notebook in Colab."""
        slug = self.repository.removeprefix("https://github.com/")
        return f"https://colab.research.google.com/github/{slug}/blob/{self.branch}/{document}.ipynb"


def _files(node: Any) -> list[str]:
    """Every document a table of contents names, in reading order."""
    if isinstance(node, list):
        return [name for item in node for name in _files(item)]
    if not isinstance(node, dict):
        return []
    own = [node[key] for key in ("root", "file") if key in node]
    return own + [name for key in ("parts", "chapters", "sections") for name in _files(node.get(key))]
