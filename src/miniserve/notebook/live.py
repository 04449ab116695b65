"""The live side of `Explorer`: an anywidget that runs the same ES module and answers with exact values.

It holds no model of its own: for every setting of the sliders it calls the explorer's function along the first axis and
sends the curve. An exception in the function is shown in the widget instead of being lost in the kernel's log.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from miniserve.errors import MiniserveError


class Sliders(Protocol):
    """What of an `Explorer` is needed here."""

    @property
    def grid(self) -> dict[str, Any]:
        """What the ES module is given."""

    @property
    def start(self) -> Sequence[float]:
        """Where the sliders stand at first."""

    def exact(self, point: Sequence[float]) -> float:
        """The function itself."""


def evaluate(explorer: Sliders, values: list[float]) -> dict[str, Any]:
    """The message for one setting: the value there and the curve along the first axis, or the error's text."""
    try:
        xs = sorted({*explorer.grid["axes"][0]["grid"], values[0]})
        curve = [explorer.exact([x, *values[1:]]) for x in xs]
        return {"values": values, "value": curve[xs.index(values[0])], "xs": xs, "curve": curve}
    except Exception as error:  # whatever a reader's own function raises belongs on the page
        return {"values": values, "error": f"{type(error).__name__}: {error}"}


def make_widget(explorer: Sliders, module: str) -> Any:
    """An anywidget for `explorer` that runs the ES module with the text `module`.

    Raises `MiniserveError` where anywidget is not installed.
    """
    try:
        import anywidget
        import traitlets
    except ModuleNotFoundError as error:
        raise MiniserveError(f"live sliders need {error.name}: pip install 'miniserve[notebook]'") from error

    class ExplorerWidget(anywidget.AnyWidget):  # type: ignore[misc, unused-ignore]
        _esm = module
        grid = traitlets.Dict().tag(sync=True)
        values: Any = traitlets.List().tag(sync=True)
        exact = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)

        @traitlets.observe("values")  # type: ignore[misc, unused-ignore]
        def _recompute(self, change: Any) -> None:
            self.exact = evaluate(explorer, list(change["new"]))

    start = list(explorer.start)
    return ExplorerWidget(grid=explorer.grid, values=start, exact=evaluate(explorer, start))
