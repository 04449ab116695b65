"""MyST to plain Markdown, for the notebooks: what JupyterLab and Colab show as text is turned into what they can draw.

Admonitions become blockquotes with a bold title, dropdowns and solutions become `<details>`, citations and references
become links into the papers and the web book, figures become attachments. Code fences and formulas pass untouched.
Anything without a plain form is an error that names it: nothing is dropped in silence. The result depends on the
sources alone.
"""

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from book_config import Book, BookError
from pybtex.database import Entry, parse_file

ADMONITIONS = {
    **dict.fromkeys(("attention", "caution", "danger", "error", "hint", "important", "note", "tip", "warning")),
    "seealso": "See also",
    "margin": "Aside",
    "sidebar": "Aside",
}
DROPPED = {"tableofcontents", "contents", "exercise-end", "solution-end"}
MIME = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
_OPEN = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,}|:{3,})(?:\{(?P<name>[\w:-]+)\})?(?P<rest>.*)$")
_OPTION = re.compile(r"^:([\w-]+):\s*(.*)$")
_NAMED = re.compile(r"^:(?:name|label):\s*([\w:.-]+)\s*$")
_LABEL = re.compile(r"^\(([\w:.-]+)\)=\s*$")
_ROLE = r"\{(?P<role>[\w:]+)\}`(?P<content>[^`]+)`"
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|mailto:|#)([\w./-]+?)\.md(?:#([\w.-]+))?\)")
_HASH = re.compile(r"(?<!!)\[([^\]]+)\]\(#([\w:.-]+)\)")
_CODE = re.compile(r"(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)")
_ROLE_OR_CODE = re.compile(f"{_ROLE}|{_CODE.pattern}")  # from left to right, so that neither is found inside the other


@dataclass
class Labels:
    """Where the book's `(label)=` targets are, and how its references are cited."""

    targets: dict[str, tuple[str, str]] = field(default_factory=dict)
    citations: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, book: Book) -> "Labels":
        """Collect the labels of every document, with the heading that follows, and the bibliography's entries."""
        labels = cls()
        for document in book.documents:
            path = book.source(document)
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            for here, line in enumerate(lines):
                if match := _LABEL.match(line):
                    heading = next((text for text in lines[here + 1 : here + 4] if text.startswith("#")), "")
                    labels.targets[match[1]] = document, heading.lstrip("# ").strip() or match[1]
                elif match := _NAMED.match(line):
                    labels.targets[match[1]] = document, match[1]
        for key, entry in parse_file(str(book.root / "book" / "references.bib")).entries.items():
            labels.citations[key] = _citation(entry)
        return labels


def _citation(entry: Entry) -> tuple[str, str, str]:
    people = [" ".join(p.prelast_names + p.last_names) for p in entry.persons["author"]]
    names = (
        people[0] if len(people) == 1 else f"{people[0]} and {people[1]}" if len(people) == 2 else f"{people[0]} et al."
    )
    fields = entry.fields
    url = f"https://doi.org/{fields['doi']}" if "doi" in fields else fields["url"]
    return re.sub(r"[{}\\]", "", names), fields["year"], url


@dataclass
class Converter:
    """Converts the cells of one document; collects the attachments of the cell at hand."""

    book: Book
    labels: Labels
    document: str
    attachments: dict[str, dict[str, str]] = field(default_factory=dict)

    def cell(self, text: str) -> str:
        """One Markdown cell. `attachments` holds its images afterwards."""
        self.attachments = {}
        return re.sub(r"\n{3,}", "\n\n", self._blocks(text.splitlines())).strip()

    def _error(self, what: str, instead: str) -> BookError:
        return BookError(f"{self.document}.md: {what} has no plain-Markdown form for the notebook; {instead}")

    def _blocks(self, lines: list[str]) -> str:
        out: list[str] = []
        i = 0
        while i < len(lines):
            match = _OPEN.match(lines[i])
            if match is None or (match["name"] is None and match["fence"][0] == ":"):
                if not (_LABEL.match(lines[i]) or lines[i].startswith("% ")):
                    out.append(self._inline(lines[i]))
                i += 1
                continue
            close = re.compile(rf"^\s*{re.escape(match['fence'][0])}{{{len(match['fence'])},}}\s*$")
            end = next((k for k in range(i + 1, len(lines)) if close.match(lines[k])), None)
            if end is None:
                raise BookError(f"{self.document}.md: the block that opens with {lines[i].strip()!r} is never closed")
            if match["name"]:
                out += ["", self._directive(match["name"], match["rest"].strip(), lines[i + 1 : end]), ""]
            else:
                out += lines[i : end + 1]
            i = end + 1
        return "\n".join(out)

    def _directive(self, name: str, argument: str, body: list[str]) -> str:
        options: dict[str, str] = {}
        while body and (match := _OPTION.match(body[0])):
            options[match[1]] = match[2]
            body = body[1:]
        if name in DROPPED:
            return ""
        if name in ADMONITIONS or name in ("admonition", "exercise"):
            return self._quote(name, argument, body)
        handlers: dict[str, Callable[[str, dict[str, str], list[str]], str]] = {
            "dropdown": self._details,
            "solution": lambda _argument, _options, text: self._details("Solution", {}, text),
            "exercise-start": lambda title, _options, _body: f"**Exercise{f': {title}' if title else ''}**",
            "solution-start": lambda *_: "**Solution.** Try it yourself before you run the cells below.",
            "figure": self._figure,
            "image": self._figure,
            "math": lambda _argument, _options, text: "\n".join(["$$", *text, "$$"]),
            "code-block": lambda language, _options, text: "\n".join([f"```{language}", *text, "```"]),
            "table": lambda caption, _options, text: f"**{self._inline(caption)}**\n\n{self._blocks(text)}",
            "tab-set": lambda _argument, _options, text: self._blocks(text),
            "tab-item": lambda title, _options, text: f"**{title}**\n\n{self._blocks(text)}",
        }
        if name not in handlers:
            known = ", ".join(sorted([*handlers, "admonition", "exercise", *ADMONITIONS]))
            raise self._error(
                f"the directive {{{name}}}", f"use one of: {known}; for code that is in a file, show_source()"
            )
        return handlers[name](argument, options, body)

    def _quote(self, name: str, argument: str, body: list[str]) -> str:
        title = self._inline(argument) if argument else ADMONITIONS.get(name) or name.capitalize()
        if name == "exercise":
            title = f"Exercise: {self._inline(argument)}" if argument else "Exercise"
        elif name != "admonition" and argument:  # a note's argument is its first line, not its title
            title, body = ADMONITIONS.get(name) or name.capitalize(), [argument, *body]
        text = self._blocks(body).strip()
        return "\n".join(["> " + line if line else ">" for line in [f"**{title}**", "", *text.splitlines()]])

    def _details(self, title: str, _options: dict[str, str], body: list[str]) -> str:
        return f"<details><summary>{title}</summary>\n\n{self._blocks(body).strip()}\n\n</details>"

    def _figure(self, target: str, options: dict[str, str], body: list[str]) -> str:
        path = (self.book.source(self.document).parent / target).resolve()
        if not options.get("alt"):
            raise BookError(f"{self.document}.md: the figure {target} has no :alt: text; say what it shows")
        if not path.is_file() or path.suffix not in MIME:
            raise BookError(f"{self.document}.md: the figure {target} is missing or not one of {', '.join(MIME)}")
        name = Path(target).name
        self.attachments[name] = {MIME[path.suffix]: base64.b64encode(path.read_bytes()).decode()}
        caption = self._blocks(body).strip()
        return f"![{options['alt']}](attachment:{name})" + (f"\n\n*{caption}*" if caption else "")

    def _inline(self, line: str) -> str:
        """Roles and links of one line; what stands in a code span is left alone."""
        kept: list[str] = []

        def keep(match: re.Match[str]) -> str:
            kept.append(match[0])
            return f"\0{len(kept) - 1}\0"

        line = _ROLE_OR_CODE.sub(lambda m: self._role(m["role"], m["content"]) if m["role"] else keep(m), line)
        if cut := re.search(r"\{[\w:]+\}`", line):
            raise self._error(f"a role cut by a line break, {cut[0]}", f"keep it on one line: {line.strip()!r}")
        line = _CODE.sub(keep, line)  # roles may have made code spans
        line = _LINK.sub(lambda m: self._page_link(m[1], m[2], m[3] or ""), line)
        line = _HASH.sub(lambda m: self._label_link(m[2], m[1]), line)
        line = re.sub(r"^(\s*\$\$.*|.*\$\$)\s*\([\w:.-]+\)\s*$", r"\1", line)
        return re.sub(r"\0(\d+)\0", lambda m: kept[int(m[1])], line)

    def _page_link(self, text: str, target: str, anchor: str) -> str:
        document = (Path(self.document).parent / target).as_posix()
        return f"[{text or target}]({self.book.page(document, anchor)})"

    def _label_link(self, label: str, text: str) -> str:
        if label not in self.labels.targets:  # a heading's own anchor on this page
            return f"[{text}]({self.book.page(self.document, label)})"
        document, title = self.labels.targets[label]
        return f"[{text or title}]({self.book.page(document, re.sub(r'[^a-z0-9]+', '-', label.lower()))})"

    def _role(self, role: str, content: str) -> str:
        given = re.match(r"^(.*?)\s*<([^>]+)>$", content)
        text, target = (given[1], given[2]) if given else ("", content)
        glossary = self.book.page("book/glossary", "term-" + re.sub(r"[^A-Za-z0-9]+", "-", target))
        forms: dict[str, Callable[[], str]] = {
            "math": lambda: f"${content}$",
            **dict.fromkeys(("code", "kbd", "file", "command"), lambda: f"`{content}`"),
            **dict.fromkeys(("sub", "sup"), lambda: f"<{role}>{content}</{role}>"),
            "abbr": lambda: content,
            "term": lambda: f"[{text or target}]({glossary})",
            "doc": lambda: self._page_link(text, target.lstrip("/"), ""),
            "ref": lambda: self._label_link(target, text),
            "numref": lambda: self._label_link(
                target, "the figure" if not text or "%" in text or "{" in text else text
            ),
            "eq": lambda: f"[{text or 'the equation'}]({self.book.page(self.document, f'equation-{target}')})",
            **dict.fromkeys(("cite", "cite:p", "cite:t"), lambda: self._cite(role, re.split(r"\s*,\s*", content))),
        }
        if role not in forms:
            raise self._error(f"the role {{{role}}}`{content}`", "write it as plain text or a link")
        return forms[role]()

    def _cite(self, role: str, keys: list[str]) -> str:
        unknown = [key for key in keys if key not in self.labels.citations]
        if unknown:
            raise BookError(
                f"{self.document}.md cites {unknown[0]!r}, which is not in book/references.bib; add it there"
            )
        cited = [self.labels.citations[key] for key in keys]
        if role == "cite:t":
            return ", ".join(f"[{names} ({year})]({url})" for names, year, url in cited)
        return "(" + "; ".join(f"[{names}, {year}]({url})" for names, year, url in cited) + ")"
