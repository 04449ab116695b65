"""The book's own Sphinx extension: what a page needs that jupyter-book's configuration cannot say.

It puts `src/` on the path of Sphinx and of every kernel, takes Thebe's scripts out of the pages (jupyter-book adds
them even when Thebe is off), gives each chapter that has a notebook a header menu (open it in Colab, or see it on the
repository's site), and keeps of the theme's two thousand icons those that the pages use, saving 1.4 MB a reader.
It adds no directive and no role, so that chapters stay portable MyST.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import toctree
from sphinx.application import Sphinx
from sphinx.config import Config


def _put_src_on_path(app: Sphinx) -> None:
    """Kernels inherit the environment; autodoc imports in this process. Both must see this tree's miniserve."""
    src = str(Path(app.confdir).resolve() / "src")
    if src not in sys.path:
        sys.path.insert(0, src)
    paths = [src, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in paths if p))


def _no_launch_buttons(_app: Sphinx, config: Config) -> None:
    """Take out jupyter-book's own: they would open the .md in Binder. `_notebook_buttons` adds the right ones."""
    config.html_theme_options["launch_buttons"] = {}


def _is_thebe(script: Any) -> bool:
    body = getattr(script, "attributes", {}).get("body") or ""
    return "thebe" in str(getattr(script, "filename", script) or "").lower() or "thebe" in body.lower()


def _strip_thebe(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if not _is_thebe(file)]


def _notebook_buttons(app: Sphinx, pagename: str, _template: str, context: dict[str, Any], doctree: Any) -> None:
    notebook = Path(app.srcdir) / f"{pagename}.ipynb"
    options = app.config.html_theme_options
    url, branch = options.get("repository_url", ""), options.get("repository_branch", "main")
    if doctree is None or not notebook.is_file() or not url:
        return
    slug = url.removeprefix("https://github.com/")
    links = [
        (
            "Open in Colab",
            "fas fa-rocket",
            f"https://colab.research.google.com/github/{slug}/blob/{branch}/{pagename}.ipynb",
        ),
        ("View the notebook", "fas fa-code", f"{url}/blob/{branch}/{pagename}.ipynb"),
    ]
    context.setdefault("header_buttons", []).insert(
        0,
        {
            "type": "group",
            "tooltip": "Run this chapter",
            "icon": "fas fa-rocket",
            "label": "run-buttons",
            "buttons": [
                {"type": "link", "url": href, "text": text, "tooltip": text, "icon": icon, "label": "run-button"}
                for text, icon, href in links
            ],
        },
    )


def _mend_page(_app: Sphinx, doctree: nodes.document, _docname: str) -> None:
    """Drop Thebe's configuration, and the id that sphinx-exercise gives to the body of every exercise."""
    for raw in list(doctree.findall(nodes.raw)):
        if "text/x-thebe-config" in raw.astext():
            raw.parent.remove(raw)
    for section in doctree.findall(nodes.section):
        if section["ids"] in (["exercise-content"], ["solution-content"]):
            section["ids"] = []


def _add_index(app: Sphinx, doctree: nodes.document) -> None:
    """Put Sphinx's index, of the glossary's terms and the API's names, behind the last of the contents."""
    if app.env.docname == app.config.root_doc:
        list(doctree.findall(toctree))[-1]["entries"].append(("Index", "genindex"))


# An icon in the theme's script: name:[width,height,[aliases],"code point","path" or ["path","path"]]
_ICON = re.compile(r'"?([a-z0-9-]+)"?:\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?')


def _trim_icons(app: Sphinx, exception: Exception | None) -> None:
    """Once all pages are written, drop the icons that none of them names."""
    script = Path(app.outdir) / "_static" / "scripts" / "fontawesome.js"
    if exception or not script.is_file():
        return
    used: set[str] = set()
    for page in Path(app.outdir).rglob("*.html"):
        used.update(re.findall(r"\bfa-([a-z0-9-]+)", page.read_text(encoding="utf-8")))

    def keep(icon: re.Match[str]) -> str:
        names = {icon[1], *re.findall(r'"([^"]+)"', icon[2])}
        return icon[0] if names & used else ""

    script.write_text(_ICON.sub(keep, script.read_text(encoding="utf-8")), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers; the priorities run them after the theme's own."""
    app.connect("builder-inited", _put_src_on_path, priority=1)
    app.connect("config-inited", _no_launch_buttons, priority=1)
    app.connect("doctree-read", _add_index, priority=400)  # before the table of contents is collected
    app.connect("doctree-resolved", _mend_page, priority=900)
    app.connect("html-page-context", _strip_thebe, priority=900)
    app.connect("html-page-context", _notebook_buttons, priority=502)
    app.connect("build-finished", _trim_icons)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
