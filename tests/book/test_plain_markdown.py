"""MyST to plain Markdown, piece by piece: what the notebooks' readers see."""

import pytest

pytest.importorskip("pybtex")


@pytest.fixture(scope="module")
def converter():
    from book_config import Book
    from plain_markdown import Converter, Labels

    book = Book.read()
    labels = Labels(
        targets={"the-label": ("book/02_next", "2. Next")}, citations={"key": ("Kwon et al.", "2023", "https://x.y")}
    )
    return Converter(book, labels, "book/01_this")


@pytest.mark.parametrize(
    ("myst", "plain"),
    [
        (":::{note}\nOne.\n\nTwo.\n:::", "> **Note**\n>\n> One.\n>\n> Two."),
        (":::{admonition} Title\n:class: tip\nBody\n:::", "> **Title**\n>\n> Body"),
        ("```{exercise} Name\n:label: ex\n\nWhy?\n```", "> **Exercise: Name**\n>\n> Why?"),
        (":::{dropdown} Hint\nLook.\n:::", "<details><summary>Hint</summary>\n\nLook.\n\n</details>"),
        (
            "::::{note}\n:::{dropdown} In\nx\n:::\n::::",
            "> **Note**\n>\n> <details><summary>In</summary>\n>\n> x\n>\n> </details>",
        ),
        ("```{math}\n:label: e\nx^2\n```", "$$\nx^2\n$$"),
        ("$$\nx\n$$ (eq-x)", "$$\nx\n$$"),
        ("(anchor)=\n# Title", "# Title"),
        ("{cite}`key`, by {cite:t}`key`", "([Kwon et al., 2023](https://x.y)), by [Kwon et al. (2023)](https://x.y)"),
        ("{math}`a` and `{math}` and ``a ` b``", "$a$ and `{math}` and ``a ` b``"),
        ("```python\n{not}`a role`\n:::{nor this}\n```", "```python\n{not}`a role`\n:::{nor this}\n```"),
        ("% a comment\ntext", "text"),
    ],
)
def test_forms(converter, myst, plain):
    assert converter.cell(myst) == plain


def test_links_lead_into_the_web_book(converter):
    site = converter.book.site
    assert converter.cell("{term}`caches <KV cache>`") == f"[caches]({site}/book/glossary.html#term-KV-cache)"
    assert converter.cell("{ref}`the-label`") == f"[2. Next]({site}/book/02_next.html#the-label)"
    assert converter.cell("[next](02_next.md#part)") == f"[next]({site}/book/02_next.html#part)"
    assert converter.cell("[out](https://a.b/c.md)") == "[out](https://a.b/c.md)"
