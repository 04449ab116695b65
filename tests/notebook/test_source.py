"""show_source shows what is in the file, links to it, and refuses what has no source."""

import functools
import math
from pathlib import Path

import pytest

import miniserve.errors
from miniserve.errors import CorruptFileError, InvalidRequestError
from miniserve.notebook import show_source
from miniserve.notebook.source import Source, repository


def test_a_class_is_shown_with_its_place():
    source = show_source(CorruptFileError)
    lines = Path(miniserve.errors.__file__).read_text(encoding="utf-8").splitlines()
    assert str(source).splitlines()[0] == lines[source.first - 1] == "class CorruptFileError(MiniserveError):"
    assert source.path == "src/miniserve/errors.py"
    assert source.url.endswith(f"/blob/main/src/miniserve/errors.py#L{source.first}-L{source.last}")


def test_a_module_is_shown_whole():
    source = show_source(miniserve.errors)
    assert str(source) == Path(miniserve.errors.__file__).read_text(encoding="utf-8")
    assert source.first == 1
    assert source.url.endswith("errors.py")


def test_without_a_link_the_path_stands_alone():
    assert "](" not in show_source(CorruptFileError, link=False)._repr_mimebundle_()["text/markdown"]


def test_decorated_functions_and_properties_show_their_own_text():
    @functools.cache
    def decorated():
        """Mine."""

    class Thing:
        @property
        def size(self):
            """Property."""

    assert "Mine." in str(show_source(decorated))
    assert str(show_source(Thing.size)).startswith("@property")


def test_a_fence_inside_the_code_does_not_end_the_block():
    markdown = Source('x = """\n````\n"""', "a.py", 1, 3, None)._repr_mimebundle_()["text/markdown"]
    assert markdown.count("`````") == 2


@pytest.mark.parametrize("thing", [math.sqrt, 3, int])
def test_no_source_is_an_error_that_names_it(thing):
    with pytest.raises(InvalidRequestError, match="has no Python source"):
        show_source(thing)


def test_the_repository_is_read_from_the_nearest_config(tmp_path):
    (tmp_path / "_config.yml").write_text(
        "title: x\nrepository:\n  # here\n  url: https://example.org/a/b/\n  branch: dev\n"
    )
    (tmp_path / "deep" / "er").mkdir(parents=True)
    assert repository(tmp_path / "deep" / "er") == (tmp_path, "https://example.org/a/b", "dev")


@pytest.mark.parametrize(
    ("place", "first", "last", "language"),
    [
        ("miniserve/kernels/triton/rowwise.py:silu_mul_kernel", "@triton.jit", "    tl.store(", "python"),
        ("miniserve/kernels/cpu/dense.cpp:ms_dense_layers", "EXPORTED int ms_dense_layers(", "}", "cpp"),
    ],
)
def test_a_name_in_a_file_that_is_not_imported(place, first, last, language):
    source = show_source(place)
    lines = str(source).splitlines()
    assert lines[0].startswith(first)
    assert lines[-1].startswith(last)
    path = Path(miniserve.errors.__file__).parents[1] / place.partition(":")[0]
    assert path.read_text(encoding="utf-8").splitlines()[source.first - 1 : source.last] == lines
    assert f"```{language}\n" in source._repr_mimebundle_()["text/markdown"]


@pytest.mark.parametrize(
    "place",
    ["text", "miniserve/nothing.py:f", "miniserve/errors.py:nothing", "miniserve/kernels/cpu/dense.cpp:ms_norm"],
)
def test_what_is_not_in_the_file_is_refused(place):
    with pytest.raises(InvalidRequestError, match="show_source"):
        show_source(place)
