"""How `api.md` is made from docstrings: what autodoc needs to be told about this package.

Docstrings are Google's style with code in single backticks. Code that is the name of something on the page becomes a
link to it; names that are not there (torch's, a helper's) stay code, without a warning. Each entry links to the lines
of its source in the repository that `_config.yml` names. It adds no directive and no role.
"""

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import desc_parameter, desc_returns, pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

#: What code in a docstring may name without saying where it is.
KINDS = {"class", "exception", "function", "data"}


def _link_or_leave(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """A Python name that Sphinx has not found: of the one entry that ends in it, or plain."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"]
    found = [
        entry
        for key, entry in env.get_domain("py").objects.items()
        if f".{key}".endswith(f".{name}") and ("." in name or entry.objtype in KINDS) and not entry.aliased
    ]
    if len(found) != 1:
        return content
    return make_refnode(app.builder, node["refdoc"], found[0].docname, found[0].node_id, content, name)


def _repository(config: Config) -> str:
    """The address of its files, without their paths."""
    url, branch = (config.html_theme_options[f"repository_{what}"] for what in ("url", "branch"))
    return f"{url}/blob/{branch}"


def _link_to_repository(app: Sphinx, config: Config) -> None:
    """Entries to their source; `[text](repo:FILE)` to a file."""
    config.linkcode_resolve = lambda domain, info: _source(app, info) if domain == "py" and info["module"] else None
    config.myst_url_schemes = {name: None for name in ("http", "https", "mailto")} | {
        "repo": {"url": _repository(config) + "/{{path}}"}
    }


def _source(app: Sphinx, info: dict[str, str]) -> str | None:
    """The address of an entry's lines; None for what has none, as a field or an alias."""
    found: Any = import_module(info["module"])
    for part in info["fullname"].split("."):
        found = getattr(found, part, None)
    found = inspect.unwrap(found.fget if isinstance(found, property) else getattr(found, "func", found))
    try:
        path = Path(inspect.getsourcefile(found) or "").resolve()
        lines, first = inspect.getsourcelines(found)
    except (TypeError, OSError):
        return None
    place = path.relative_to((Path(app.confdir) / "src").resolve().parent).as_posix()
    return f"{_repository(app.config)}/{place}#L{first}-L{first + len(lines) - 1}"


def _skip_fields(_app: Sphinx, _what: str, _name: str, found: Any, _skip: bool, _options: Any) -> bool | None:
    """A named tuple's fields are in its signature and its docstring; Python's words for them say nothing."""
    return True if (getattr(found, "__doc__", None) or "").startswith("Alias for field number") else None


def _readable_signature(
    _app: Sphinx, _what: str, _name: str, found: Any, _options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Protocols and enumerations have none that a caller would write. A default that is made afresh for each object
    (`<factory>`, `<function …>`) is no Python: `...` stands for it.
    """
    if getattr(found, "_is_protocol", False) or (isinstance(found, type) and issubclass(found, Enum)):
        return "", None
    return (re.sub(r"= <(?:[^<>]|<[^<>]*>)*>", "= ...", signature) if signature else signature), returns


def _pieces(node: nodes.Element) -> Iterator[nodes.Node]:
    """Its links, and the text between them."""
    for child in node.children:
        if isinstance(child, nodes.reference):
            yield child
        elif isinstance(child, nodes.Text):
            yield nodes.raw("", escape(child.astext()), format="html")
        elif "default_value" in child["classes"]:
            yield nodes.raw("", f'<span class="default_value">{escape(child.astext())}</span>', format="html")
        else:
            yield from _pieces(child)


def _thin_signatures(_app: Sphinx, doctree: nodes.document, _docname: str) -> None:
    """Parameters in few elements: Sphinx wraps each word in two, which would be half of the page."""
    for part in [*doctree.findall(desc_parameter), *doctree.findall(desc_returns)]:
        thin = list(_pieces(part))
        part.clear()
        part.extend(thin)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers. Autodoc's own settings are in `_config.yml`."""
    app.connect("config-inited", _link_to_repository)
    app.connect("missing-reference", _link_or_leave)
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("doctree-resolved", _thin_signatures, priority=900)
    app.connect("autodoc-process-signature", _readable_signature)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
