"""show_source: the real source of a module, class or function, in the page, with a link to its file.

Chapters never retype code: they show what runs. The output is Markdown, which the book, JupyterLab and Colab each
highlight in their own light or dark colours. The repository's address comes from the nearest `_config.yml`; where there
is none (an installed package) the path stands alone. It reads files and imports nothing but what it is given: kernels
for another machine, or in C++, are found by their file and name.
"""

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from miniserve.errors import InvalidRequestError

_PACKAGES = Path(__file__).resolve().parents[2]
_LANGUAGES = {".py": "python", ".cpp": "cpp", ".h": "cpp"}
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
        code = f"{fence}{_LANGUAGES[Path(self.path).suffix]}\n{self.text.rstrip()}\n{fence}\n"
        return {"text/markdown": f"{where}\n\n{code}", "text/plain": repr(self)}


def show_source(obj: Any, *, link: bool = True) -> Source:
    """The source of `obj`: a module (its whole file), class, function or method; or what "file:name" names, unimported.

    Raises `InvalidRequestError` for what has no source (a value, a built-in, a compiled extension, a name not there).

    Example:
        >>> from miniserve.core.block_pool import BlockPool
        >>> from miniserve.notebook import show_source
        >>> print(show_source(BlockPool.is_free))
        def is_free(self, block: int) -> bool:
        ...
        >>> show_source("miniserve/kernels/cpu/dense.cpp:ms_dense_layers").path
        'src/miniserve/kernels/cpu/dense.cpp'
    """
    if isinstance(obj, str):
        path, first, lines = _named(obj)
        return _placed(path, lines, first, whole=False, link=link)
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
    return _placed(Path(file).resolve(), lines, 1 if whole else start, whole=whole, link=link)


def _placed(path: Path, lines: list[str], first: int, *, whole: bool, link: bool) -> Source:
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


def _named(place: str) -> tuple[Path, int, list[str]]:
    """The file, the first line's number and the lines of "path:name"; a path begins with the package's name."""
    file, _, name = place.partition(":")
    path = _PACKAGES / file
    if path.suffix not in _LANGUAGES or not path.is_file():
        raise InvalidRequestError(f"show_source: there is no source file {file!r}")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    span = (_in_python if path.suffix == ".py" else _in_cpp)("".join(lines), name)
    if span is None:
        raise InvalidRequestError(f"show_source: {file} has no {name!r}")
    return path, span[0], lines[span[0] - 1 : span[1]]


def _in_python(text: str, name: str) -> tuple[int, int] | None:
    """First and last line of a function or class, with its decorators."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return first, node.end_lineno or first
    return None


def _in_cpp(text: str, name: str) -> tuple[int, int] | None:
    """First and last line of a function: from the line at the margin that names it to the next brace at the margin."""
    found = re.search(rf"^\S[^\n;]*\b{re.escape(name)}\((?:[^;{{]*)\{{\n.*?^\}}", text, re.MULTILINE | re.DOTALL)
    return (text.count("\n", 0, found.start()) + 1, text.count("\n", 0, found.end()) + 1) if found else None
