"""The claims ledger as Markdown: the verdicts in a table, what each means, a claim with its evidence, the sources.

Links between pages are MyST's own, so that the book's build checks them. Every line of evidence says of which kind it
is. What a claim says and what it is worth is `claims`' business. Dollars are escaped: MyST would read a formula.
"""

from collections.abc import Iterable

from miniserve.hardware.figures import Source
from miniserve.notebook.claims import RANKS, VERDICTS, Claim, Claims, Evidence
from miniserve.notebook.results import MEANING
from miniserve.notebook.sections import anchor_of

#: What the labels say on a page that measures nothing itself.
KINDS = {
    **MEANING,
    "measured": "measured each time the page named is built",
    "claimed": "stated by the source named, not checked by us",
}


class Page:
    """Markdown that shows itself; `repr` is the same text."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Join the lines."""
        self.text = "\n".join(lines).replace("$", "\\$")

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return self.text


def show_summary(claims: Claims) -> Page:
    """Every claim with its verdict, each a link to its own part of the page."""
    rows = [f"| [{claim.title}](#{anchor_of(claim.title)}) | {claim.verdict} |" for claim in claims]
    return Page(["| claim | verdict |", "|---|---|", *rows])


def show_verdicts(claims: Claims) -> Page:
    """What each verdict means, and how many claims have it."""
    counts = claims.count()
    rows = [f"| {verdict} | {counts[verdict]} | {meaning} |" for verdict, (meaning, _) in VERDICTS.items()]
    return Page(["| verdict | claims | what it says |", "|---|---|---|", *rows])


def show_claim(claim: Claim) -> Page:
    """One claim: what is said, the verdict with its reason, the evidence line by line, where the book examines it."""
    lines = [f"“{claim.claim}”", "", f"**Verdict: {claim.verdict}.** {claim.why}", ""]
    lines += [f"- {_evidence(each)}" for each in claim.evidence]
    return Page([*lines, "", f"In the book: {'; '.join(each.link for each in claim.sections)}."])


def show_claim_sources(claims: Claims) -> Page:
    """The sources, with whose words they are and how far they go."""
    ranks = [f"*{rank.capitalize()}*: {meaning}." for rank, meaning in RANKS.items()]
    rows = [
        f"| {_link(each)}{_copy(each)}, {each.publisher}, {each.date} | {each.rank} | {each.trust} |"
        for each in sorted(claims.sources, key=lambda each: (each.publisher.lower(), each.date))
    ]
    looked = f"Last looked for on {claims.checked}."
    return Page([" ".join([looked, *ranks]), "", "| source | rank | how far to trust it |", "|---|---|---|", *rows])


def _evidence(evidence: Evidence) -> str:
    label = f'<span class="ms-label ms-{evidence.kind}" title="{KINDS[evidence.kind]}">{evidence.kind}</span>'
    if evidence.source:
        source = evidence.source
        where = f"{_link(source)}, {source.publisher}, {source.date}; {source.rank}"
    elif evidence.section:
        where = f"on the page: {evidence.section.link}"
    else:
        where = "; ".join(evidence.origins)
    return f"{label} {evidence.text} ({where})"


def _link(source: Source) -> str:
    return f"[{source.title}]({source.url})"


def _copy(source: Source) -> str:
    return f" ([read here]({source.via}))" if source.via else ""
