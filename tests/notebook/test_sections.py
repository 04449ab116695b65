"""Anchors are those that the book's build gives; code is no heading."""

import pytest
from myst_parser.mdit_to_docutils.base import default_slugify

from miniserve.errors import CorruptFileError
from miniserve.notebook.sections import anchor_of, sections_of

PAGE = """---
# not a heading: front matter has none of its own in this book, but code does
---
# 5. The `KV` cache

## The claim: up to 5x, or not?
````md
```python
# a comment
```
## still code
````
### The claim: up to 5x, or not?
#### too deep
"""


@pytest.mark.parametrize("heading", ["5. The KV cache", "What, HBM3e's? 27.8 % — or so", "A  b_c-d", "Größe × 2"])
def test_an_anchor_is_the_one_that_myst_gives(heading):
    assert anchor_of(heading) == default_slugify(heading)


def test_sections_are_headings_outside_code(tmp_path):
    (tmp_path / "a.md").write_text(PAGE.split("---\n", 2)[2], encoding="utf-8")
    found = sections_of(tmp_path / "a.md")
    assert list(found) == ["5-the-kv-cache", "the-claim-up-to-5x-or-not", "the-claim-up-to-5x-or-not-1"]
    assert found["the-claim-up-to-5x-or-not"].link == (
        "[5. The KV cache: The claim: up to 5x, or not?](a.md#the-claim-up-to-5x-or-not)"
    )


def test_a_page_without_a_heading_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("text\n")
    with pytest.raises(CorruptFileError, match="has no heading"):
        sections_of(tmp_path / "a.md")
