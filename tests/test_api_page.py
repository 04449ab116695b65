"""The API page, `book/api.md`: what it names is there and described, and every example, there and in `src`, runs.

An example stands for itself: it imports what it uses and needs no network. Whatever has none of its own is used by name in
another's, or stands in `HANDED_OUT`. Some 6 s in all, a third of it to load torch.
"""

import doctest
import inspect
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^\.\. auto(?:class|function|data):: (\S+)", PAGE, re.MULTILINE)
MODULES = re.findall(r"^\.\. automodule:: (\S+)", PAGE, re.MULTILINE)
SOURCES = [path for path in sorted((ROOT / "src").rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]


@cache
def found(name: str) -> Any:
    module, _, rest = name.rpartition(".")
    return getattr(import_module(module), rest)


def members(thing: type) -> dict[str, Any]:
    return {name: member for name, member in vars(thing).items() if not name.startswith("_")}


def run(name: str, text: str, path: Path) -> None:
    """Run one docstring's examples, in a namespace of their own."""
    test = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, name, str(path), 0)
    told: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=told.append)
    assert not told, "".join(told)


def test_nothing_is_named_twice():
    assert len(set(ENTRIES)) == len(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_it_is_there_and_says_what_it_is(name):
    thing = found(name)
    if not callable(thing):
        return
    assert inspect.getdoc(thing), f"{name} has no docstring"
    if isinstance(thing, type):
        bare = [
            member
            for member, value in members(thing).items()
            if inspect.isroutine(value) or isinstance(value, property)
            if member not in thing.__annotations__ and not inspect.getdoc(value)
        ]
        assert not bare, f"of {name}, {bare} say nothing"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT / "src" / "miniserve").as_posix())
def test_examples_of_a_module_run(path):
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    tests = doctest.DocTestFinder(exclude_empty=True).find(import_module(name), name)
    tests = [test for test in tests if test.examples]
    assert tests, f"{path} has a >>> that is in no docstring"
    for test in tests:
        run(test.name, test.docstring, path)


BLOCKS = {
    heading: re.findall(r"^```pycon\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for heading, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}


@pytest.mark.parametrize("heading", BLOCKS)
def test_examples_of_the_page_run(heading):
    for block in BLOCKS[heading]:
        run(heading, block, ROOT / "book" / "api.md")


#: Made by what has an example, and read rather than made: results, and parts of results.
HANDED_OUT = {
    f"miniserve.{name}"
    for name in [
        "LoadedModel",
        "outputs.CompletionOutput",
        "outputs.Timings",
        "core.request.TokenLogprob",
        "core.request.FinishReason",
        "core.scheduler.Output",
        "core.executor.Step",
        "core.executor.Scheduled",
        "core.connector.Progress",
        "core.metrics.Metrics",
        "core.step_record.StepRecord",
        "hardware.figures.Figure",
        "hardware.figures.Source",
        "hardware.shape.Experts",
        "hardware.efficiency.Efficiency",
        "kernels.formats.Quantised",
        "kernels.formats.Scheme",
        "simulate.tally.Tally",
        "simulate.capacity.Trial",
        "simulate.outcome.Outcome",
        "simulate.steady.Yield",
        "simulate.choice.Offer",
        "bench.ceilings.Ceilings",
        "train.trainer.StepReport",
        "registry.version.Version",
        "registry.manifest.Entry",
        "registry.audit.AuditRecord",
    ]
}
#: Takes seconds, starts processes, or changes this one.
NOT_RUN = {
    "miniserve.bench.ceilings.measure_ceilings",
    "miniserve.bench.serving.own_server.own_server",
    "miniserve.bench.serving.client.Client",
    "miniserve.notebook.use_book_style",
}


def test_everything_has_an_example():
    told = [PAGE.replace("\n.. auto", "")] + [path.read_text(encoding="utf-8") for path in SOURCES]
    examples = "\n".join(line for text in told for line in text.splitlines() if re.match(r"\s*(>>>|\.\.\.) ", line))
    without = {
        name
        for name in ENTRIES
        if ">>> " not in (inspect.getdoc(found(name)) or "")
        if not re.search(rf"\b{name.rpartition('.')[2]}\b", examples)
        if not getattr(found(name), "_is_protocol", False)
    }
    missing, spare = without - HANDED_OUT - NOT_RUN, (HANDED_OUT | NOT_RUN) - without
    assert not missing, f"without an example: {', '.join(sorted(missing))}"
    assert not spare, f"has an example by now: {', '.join(sorted(spare))}"
