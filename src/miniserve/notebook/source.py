"""show_source: the real source of a module, class or function, in the page, with a link to its file.

Chapters never retype code: they show what runs. The output is Markdown, which the book, JupyterLab and Colab each
highlight in their own light or dark colours. The repository's address comes from the nearest `_config.yml`; where there
is none (an installed package) the path stands alone. It reads files and imports nothing but what it is given.
"""

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from miniserve.errors import InvalidRequestError

_REPOSITORY = re.compile(r"^repository:[ \t]*\n((?:[ \t]+.*\n|[ \t]*#.*\n|\n)+)", re.MULTILINE)


def repository(start: Path) -> tuple[Path, str, str] | None:
    """`(root, url, branch)` from the nearest `_config.yml` above `start` that names a repository, or None."""
    for folder in (start, *start.parents):
        config = folder / "_config.yml"
        if config.is_file() and (block := _REPOSITORY.search(config.read_text(encoding="utf-8") + "\n")):
            fields = dict(re.findall(r"^[ \t]+(url|branch):[ \t]*[\"']?([^\s\"'#]+)", block.group(1), re.MULTILINE))
            if "url" in fields:
                return folder, fields["url"].rstrip("/"), fields.get("branch", "main")
    return None


class Source:
    """Source text with its place; displays itself as Markdown, `str()` is the text alone."""

    def __init__(self, text: str, path: str, first: int, last: int, url: str | None) -> None:
        """`first` and `last` are line numbers in the file at `path`, counted from 1."""
        self.text, self.path, self.first, self.last, self.url = text, path, first, last, url

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"{self.path}, lines {self.first}-{self.last}\n\n{self.text}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        # A fence longer than any run of backticks inside cannot be closed by the code it holds.
        longest = max((len(run) for run in re.findall(r"`+", self.text)), default=0)
        fence = "`" * max(3, longest + 1)
        place = f"[`{self.path}`]({self.url})" if self.url else f"`{self.path}`"
        where = f"{place}, lines {self.first}–{self.last}"
        return {"text/markdown": f"{where}\n\n{fence}python\n{self.text.rstrip()}\n{fence}\n", "text/plain": repr(self)}


def show_source(obj: Any, *, link: bool = True) -> Source:
    """The source of `obj`: a module (its whole file), class, function or method.

        show_source(miniserve.model.generate)      # the file
        show_source(BlockPool.allocate)            # one method, with its decorators

    Raises `InvalidRequestError` for what has no Python source (a value, a built-in, a compiled extension).
    """
    target = inspect.unwrap(obj.fget if isinstance(obj, property) and obj.fget else obj)
    try:
        file = inspect.getsourcefile(target)
        lines, start = inspect.getsourcelines(target)
    except (TypeError, OSError):
        file, lines, start = None, [], 0
    if file is None:
        name = getattr(obj, "__qualname__", getattr(obj, "__name__", repr(obj)))
        raise InvalidRequestError(f"show_source: {name} has no Python source; give it a module, class or function")
    whole = isinstance(target, ModuleType)
    path, first = Path(file).resolve(), 1 if whole else start
    last = first + len(lines) - 1
    text = "".join(lines) if whole else inspect.cleandoc("\n" + "".join(lines))
    found = repository(path.parent)
    if found is None:
        parts = path.parts
        shown = "/".join(parts[parts.index("site-packages") + 1 :]) if "site-packages" in parts else path.name
        return Source(text, shown, first, last, None)
    root, url, branch = found
    shown = path.relative_to(root).as_posix()
    anchor = "" if whole else f"#L{first}-L{last}"
    return Source(text, shown, first, last, f"{url}/blob/{branch}/{shown}{anchor}" if link else None)
