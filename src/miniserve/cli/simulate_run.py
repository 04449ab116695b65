"""What `miniserve simulate` does with a scenario: describes it, runs it, once or for several users, and draws it.

A plot is checked before anything takes time; how far a simulation is goes to stderr.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import TextColumn, TimeElapsedColumn

from miniserve.cli.results import progress
from miniserve.errors import InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.simulate.build import run, with_users
from miniserve.simulate.deployment import efficiency_for, kernels_of
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.pareto import frontier, parse_concurrencies, sweep
from miniserve.simulate.report import assumed_prices, report
from miniserve.simulate.scenario import Scenario
from miniserve.simulate.timeline import Timeline
from miniserve.workloads.traces import origin


def described(scenario: Scenario) -> dict[str, Any]:
    """What is simulated: the scenario, of which kernels' timings, of which published trace, and what is assumed."""
    kernels = {}
    for name in _devices(scenario):
        efficiency = efficiency_for(load_catalog().accelerator(name))
        kernels[name] = kernels_of(efficiency, shape_by_name(scenario.model))
    trace = scenario.workload.trace
    told = {"label": "simulated", **_assumed(scenario), "scenario": scenario.to_table(), "kernels": kernels}
    return told | ({"trace": origin(Path(trace))} if trace else {})


def _assumed(scenario: Scenario) -> dict[str, Any]:
    """What no source says, but whoever asked."""
    ways = [pool.afd_link for pool in scenario.engines if pool.afd_link]
    said = [f"{way.bandwidth / 1e9:g} GB/s of each device, {way.latency_s * 1e6:g} us a crossing" for way in ways]
    found = {"between attention and feed-forward": "; ".join(dict.fromkeys(said))} if said else {}
    found |= assumed_prices(scenario.price, map(load_catalog().accelerator, _devices(scenario)))
    return {"assumed": found} if found else {}


def hardware_of(scenario: Scenario) -> str:
    """All devices, by their full names."""
    return " and ".join(load_catalog().accelerator(name).name for name in _devices(scenario))


def _devices(scenario: Scenario) -> Iterable[str]:
    """Their names, each once."""
    pairs = ((pool.hardware, pool.ffn_hardware) for pool in scenario.engines)
    return dict.fromkeys(name for pair in pairs for name in pair if name)


def once(scenario: Scenario, plot: Path | None) -> dict[str, Any]:
    """A simulation's report, and its overview drawn into `plot`."""
    timeline = Timeline() if plot else None
    with _progress() as show:
        cluster = run(scenario, timeline, show)
    if plot and timeline:
        from miniserve.notebook.simulated import overview, save
        from miniserve.notebook.style import use_book_style

        use_book_style()
        save(overview(cluster, timeline), plot)
    return report(cluster, scenario.price)


def swept(scenario: Scenario, users: str, plot: Path | None) -> dict[str, Any]:
    """A point for each number of `users`, and the frontier drawn into `plot`."""
    workload = scenario.workload
    if workload.trace or workload.preset or workload.rate is not None:
        raise InvalidRequestError("a sweep is over the number of users, who ask as --input-len and --output-len say")
    numbers = parse_concurrencies(users)
    with _progress() as show:
        points = []
        for point in sweep(lambda number: with_users(scenario, number), numbers):
            points.append(point)
            show(point.report["completed"], point.report["seconds"])
    best = frontier(points)
    if plot:
        from miniserve.notebook.simulated import pareto, save
        from miniserve.notebook.style import use_book_style

        use_book_style()
        save(pareto({scenario.model: points}), plot)
    return {"points": [point._asdict() | {"on_frontier": point in best} for point in points]}


def check_plot(path: Path) -> None:
    """Raise InvalidRequestError before anything takes time: no such format, or nothing to draw with."""
    if path.suffix not in (".svg", ".png"):
        raise InvalidRequestError(f"a plot is a .svg or a .png file, not '{path.name}'")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InvalidRequestError(f"--plot needs {error.name}: pip install 'miniserve[notebook]'") from error


@contextmanager
def _progress() -> Iterator[Callable[[int, float], None]]:
    columns = (TextColumn("simulating: {task.completed:,} requests, {task.fields[hours]:.2f} h"), TimeElapsedColumn())
    with progress(*columns) as shown:
        task = shown.add_task("", total=None, hours=0.0)
        yield lambda done, now_s: shown.update(task, completed=done, hours=now_s / 3600)
