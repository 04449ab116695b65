"""How long one call takes on a device: the median of many, without what the host adds.

On a GPU the calls are captured into a CUDA graph and replayed between two events, so that neither Python nor a launch
from the host is in the number. Work that cannot be captured (it asks the host for something) is launched call by call
and the host's share is in the number: the caller says so. On a CPU a clock is read. Inputs are the caller's: work that
should find its data in memory rather than in a cache is given as several calls over different buffers, taken in turn.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch

Work = Callable[[], object]

WARM_UP = 3  # passes before anything is captured or timed: compilation, libraries' handles, clocks
SHORTEST_REPLAY_S = 1e-3  # of a graph, so that an event's resolution (0.5 µs) and a replay's start do not count
MOST_ROUNDS = 64  # passes in one graph


def seconds_per_call(
    works: Sequence[Work], device: torch.device, *, repeats: int = 20, graph: bool = True, budget_s: float = math.inf
) -> float:
    """Median seconds of one call.

    Args:
        works: the same work over different buffers, each called once in a pass.
        device: where it runs; all its launches go to the current stream.
        repeats: passes (of a graph: replays) that are timed.
        graph: on a GPU, capture the passes; False for work that a graph cannot hold.
        budget_s: host seconds after which no further pass is started; three are timed at least.

    Example:
        >>> import torch
        >>> from miniserve.bench.timing import seconds_per_call
        >>> x = torch.ones(100, 100)
        >>> 0 < seconds_per_call([lambda: x @ x], torch.device("cpu"), repeats=3) < 1
        True
    """
    if device.type != "cuda":
        return _on_the_host(works, repeats, budget_s)
    with torch.cuda.device(device):
        _warm_up(works)
        if not graph:
            return _between_events(lambda: _all(works), repeats, budget_s) / len(works)
        rounds = max(1, min(MOST_ROUNDS, math.ceil(SHORTEST_REPLAY_S / _between_events(lambda: _all(works), 1, 0.0))))
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            for _ in range(rounds):
                _all(works)
        captured.replay()
        seconds = _between_events(captured.replay, repeats, budget_s)
        captured.reset()
        return seconds / rounds / len(works)


def _all(works: Sequence[Work]) -> None:
    for work in works:
        work()


def _warm_up(works: Sequence[Work]) -> None:
    """On a stream of its own, as capture asks for."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            _all(works)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


def _between_events(launch: Work, repeats: int, budget_s: float) -> float:
    seconds: list[float] = []
    ends = time.perf_counter() + budget_s
    while len(seconds) < repeats and (len(seconds) < 3 or time.perf_counter() < ends):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        launch()
        after.record()
        after.synchronize()
        seconds.append(before.elapsed_time(after) / 1e3)
    return statistics.median(seconds)


def _on_the_host(works: Sequence[Work], repeats: int, budget_s: float) -> float:
    _all(works)
    seconds: list[float] = []
    ends = time.perf_counter() + budget_s
    while len(seconds) < repeats and (len(seconds) < 3 or time.perf_counter() < ends):
        started = time.perf_counter()
        _all(works)
        seconds.append((time.perf_counter() - started) / len(works))
    return statistics.median(seconds)
