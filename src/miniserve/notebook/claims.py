"""The claims ledger: what the industry says, what became of it in this book, and by which evidence.

The ledger is a file, `book/_data/claims.toml`. Reading it is strict: an unknown key, a source or a section of the book
that is not there, a number that its file does not hold, or a verdict without the kind of evidence that it needs is
refused, by the name of its place. So a verdict cannot outlive its evidence. How the page looks is `claims_page`'s.
"""

import datetime
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from miniserve.errors import CorruptFileError, InvalidRequestError
from miniserve.hardware.figures import Source, read_sources
from miniserve.notebook.checked import Checked
from miniserve.notebook.results import Label, results_folder
from miniserve.notebook.sections import Section
from miniserve.tables import read_toml

#: What each verdict says, and the kinds of evidence of which it needs one.
VERDICTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "measured here": (
        "It holds under the conditions named, on a page of this book or in a recorded run.",
        ("measured", "recorded"),
    ),
    "reproduced in simulation": (
        "It holds on simulated hardware, as far as the simulator has been shown to be right.",
        ("simulated",),
    ),
    "confirmed by source": (
        "A primary source says so. A forecast stays a forecast, and a specification a specification.",
        ("primary",),
    ),
    "not found": ("Looked for; no primary source with this number was found.", ("secondary", "primary")),
    "not shown": (
        "Neither measured nor reproduced here, nor by anybody independent that we found.",
        ("measured", "recorded", "simulated", "primary"),
    ),
    "misleading": (
        "There is something to it, but as worded it leads to a wrong conclusion: a condition is missing, or a name.",
        ("measured", "recorded", "simulated", "claimed", "primary"),
    ),
    "does not hold": ("Tried here, and it came out otherwise.", ("measured", "recorded", "simulated")),
}
RANKS = {
    "primary": "the words of who made the number: maker, analyst or author",
    "secondary": "a third party that repeats it",
}


@dataclass(frozen=True, kw_only=True)
class ClaimSource(Source):
    """A source with its rank, whose words these are, and how far to trust it."""

    rank: str
    trust: str

    def __post_init__(self) -> None:
        """Reject what is no source, and a rank that is none."""
        super().__post_init__()
        if self.rank not in RANKS:
            raise InvalidRequestError(f"sources.{self.key}: rank {self.rank!r} is none of {', '.join(RANKS)}")


@dataclass(frozen=True)
class Evidence:
    """One line of evidence, with its kind: numbers from files, a section that measures, or what a source says."""

    text: str
    kind: Label
    origins: tuple[str, ...] = ()
    section: Section | None = None
    source: ClaimSource | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it counts as when a verdict asks for evidence."""
        return (self.kind, self.source.rank) if self.source else (self.kind,)


@dataclass(frozen=True)
class Claim:
    """A claim, its verdict with the reason, the evidence, and the sections of the book that examine it."""

    key: str
    title: str
    claim: str
    verdict: str
    why: str
    evidence: tuple[Evidence, ...]
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Claims:
    """The ledger, in the order of its file. `checked`: the day on which the sources were last looked for."""

    checked: str
    claims: tuple[Claim, ...]
    sources: tuple[ClaimSource, ...]

    def __iter__(self) -> Iterator[Claim]:
        return iter(self.claims)

    def __getitem__(self, key: str) -> Claim:
        for claim in self.claims:
            if claim.key == key:
                return claim
        raise InvalidRequestError(f"no claim {key!r}; there is {', '.join(each.key for each in self.claims)}")

    def count(self) -> dict[str, int]:
        """How many claims have each verdict, in the order of `VERDICTS`."""
        counts = Counter(claim.verdict for claim in self.claims)
        return {verdict: counts[verdict] for verdict in VERDICTS}


def load_claims(root: Path | None = None) -> Claims:
    """The ledger of the repository at `root`, or of the one above this directory.

    Raises CorruptFileError for whatever is not sound, with its place.
    """
    folder = root or results_folder().parent
    path = folder / "book" / "_data" / "claims.toml"
    return _Reader(path.name, folder).claims(read_toml(path))


class _Reader(Checked):
    """One pass over the parsed file; holds the sources, and which of them are cited."""

    def __init__(self, file: str, root: Path) -> None:
        super().__init__(file, root)
        self.sources: dict[str, ClaimSource] = {}
        self.cited: set[str] = set()

    def claims(self, raw: dict[str, Any]) -> Claims:
        self.fields("the file", raw, {"checked": datetime.date, "sources": dict, "claims": dict})
        try:
            self.sources = read_sources(raw["sources"], ClaimSource)
        except InvalidRequestError as error:
            raise CorruptFileError(f"{self.file}: {error}") from None
        claims = tuple(self.claim(f"claims.{key}", key, each) for key, each in raw["claims"].items())
        if idle := sorted(set(self.sources) - self.cited):
            self.fail(f"sources.{idle[0]}", "no claim cites it")
        titles = Counter(claim.title for claim in claims)
        if double := [title for title, times in titles.items() if times > 1]:
            self.fail("claims", f"two have the title {double[0]!r}")
        return Claims(raw["checked"].isoformat(), claims, tuple(self.sources.values()))

    def claim(self, at: str, key: str, raw: Any) -> Claim:
        texts = dict.fromkeys(("title", "claim", "verdict", "why"), str)
        self.fields(at, raw, texts | {"sections": list, "evidence": list})
        if raw["verdict"] not in VERDICTS:
            self.fail(at, f"verdict {raw['verdict']!r} is none of {', '.join(VERDICTS)}")
        sections = tuple(self.section(at, each) for each in raw["sections"])
        evidence = tuple(self.evidence(f"{at}.evidence[{i}]", each) for i, each in enumerate(raw["evidence"]))
        needed = VERDICTS[raw["verdict"]][1]
        if not any(kind in needed for each in evidence for kind in each.kinds):
            self.fail(at, f"verdict '{raw['verdict']}' needs evidence that is {' or '.join(needed)}")
        return Claim(key, raw["title"], raw["claim"], raw["verdict"], raw["why"], evidence, sections)

    def evidence(self, at: str, raw: Any) -> Evidence:
        self.fields(at, raw, {"text": str}, {"numbers": dict, "section": str, "kind": str, "by": str})
        if ("section" in raw) == ("numbers" in raw or "by" in raw):
            self.fail(at, "needs numbers, a source (by) or both, or else a section: where it comes from")
        if ("kind" in raw) != ("section" in raw) or raw.get("kind", "measured") not in ("measured", "simulated"):
            self.fail(at, "a section, and nothing else, has a kind: measured or simulated there")
        if "section" in raw:
            return Evidence(raw["text"], raw["kind"], section=self.section(at, raw["section"]))
        if raw.get("by", "") not in {"", *self.sources}:
            self.fail(at, f"source {raw['by']!r} is not among [sources]")
        evidence = (
            self.computed(at, raw["text"], raw["numbers"]) if "numbers" in raw else Evidence(raw["text"], "claimed")
        )
        if "by" not in raw:
            return evidence
        if evidence.kind != "claimed":
            self.fail(at, f"its numbers are {evidence.kind}, and no source's: leave out by")
        self.cited.add(raw["by"])
        return replace(evidence, source=self.sources[raw["by"]])

    def computed(self, at: str, text: str, raw: dict[str, Any]) -> Evidence:
        """A text whose {names} are numbers of one kind."""
        numbers = {name: self.number(f"{at}.{name}", each) for name, each in raw.items()}
        used = set(re.findall(r"\{(\w+)\}", text))
        if odd := sorted(used ^ set(numbers)):
            self.fail(at, f"{{{odd[0]}}} stands in {'the text' if odd[0] in used else 'numbers'} only")
        try:
            shown = {name: self.shelf.text(number) for name, number in numbers.items()}
            kinds = {self.shelf.label(number) for number in numbers.values()}
            paths = [path for number in numbers.values() for path in (number.of, number.over) if path]
            origins = tuple(dict.fromkeys(self.shelf.origin(path) for path in paths))
        except (InvalidRequestError, CorruptFileError) as error:
            self.fail(at, str(error))
        if len(kinds) != 1:
            self.fail(at, f"its numbers are {' and '.join(sorted(kinds)) or 'not there'}: one kind a line")
        return Evidence(text.format(**shown), kinds.pop(), origins)
