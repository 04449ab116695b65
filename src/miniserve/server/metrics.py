"""The engines' counts as Prometheus reads them, under the names that vLLM made usual, with the prefix `miniserve:`.

Counted once, in the engine: at each look its `Metrics` are asked for and written down. When the engine is started again
its counters begin at 0, as Prometheus expects of a process that was. Times are the engine's: from the moment a request
reaches it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from miniserve.core.histogram import Histogram
from miniserve.core.kv_counts import MoveCounts, TierCounts
from miniserve.core.placement import imbalance
from miniserve.server.backend import EngineReport

PREFIX = "miniserve:"
#: Of each KV tier: the series' kind and meaning, by name; see `TierCounts`.
TIER_SERIES: Mapping[str, tuple[type[CounterMetricFamily] | type[GaugeMetricFamily], str]] = {
    "capacity_bytes": (GaugeMetricFamily, "That it may hold."),
    "used_bytes": (GaugeMetricFamily, "That it holds."),
    "hits": (CounterMetricFamily, "Blocks that were loaded from it."),
    "misses": (CounterMetricFamily, "Blocks of prompts that it did not have."),
    "declined": (CounterMetricFamily, "Blocks that it had and that were computed, which was faster."),
    "saves": (CounterMetricFamily, "Blocks that were written to it."),
    "skipped": (CounterMetricFamily, "Blocks that were not: too much was waiting to be."),
    "evictions": (CounterMetricFamily, "Blocks that were dropped for room."),
    "corrupt": (CounterMetricFamily, "Blocks that were dropped because they were not what had been written."),
    "errors": (CounterMetricFamily, "Reads and writes that the system refused."),
    "loaded_bytes": (CounterMetricFamily, "That were loaded from it."),
    "saved_bytes": (CounterMetricFamily, "That were written to it."),
    "load_seconds": (CounterMetricFamily, "That loads took."),
    "save_seconds": (CounterMetricFamily, "That writing took."),
}
COUNTED = {"load_seconds": "load_s", "save_seconds": "save_s"}  # where a field has another name


def exposition(engines: Sequence[EngineReport], model: str, more: Iterable[Metric] = ()) -> tuple[bytes, str]:
    """The text of `/metrics`, and its media type.

    Args:
        engines: how each is. Where there are several, every series has the label `engine`.
        model: the label `model_name` of every series.
        more: what others have counted; it may come in parts.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(engines, model, more))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collector(Collector):
    """Series of one name belong together, whichever engine they are of."""

    def __init__(self, engines: Sequence[EngineReport], model: str, more: Iterable[Metric]) -> None:
        self._engines, self._model, self._more = engines, model, more

    def collect(self) -> Iterator[Metric]:
        """Every series."""
        families: dict[str, Metric] = {}
        for family in chain(self._of_engines(), self._more):
            if family.name in families:
                families[family.name].samples += family.samples
            else:
                families[family.name] = family
        yield from families.values()

    def _of_engines(self) -> Iterator[Metric]:
        for engine in self._engines:
            labels = {"model_name": self._model} | ({"engine": engine.name} if engine.name else {})
            yield from _Families(labels).of(engine)


class _Families:
    """Of one engine."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels

    def of(self, engine: EngineReport) -> Iterator[Metric]:
        """Each with its samples."""
        yield self._gauge("engine_up", "Whether the engine takes requests.", float(engine.ready))
        yield self._counter("engine_restarts", "Engine processes that died.", engine.num_restarts)
        if engine.report is None:
            return
        metrics, running, waiting, free, moves, experts = engine.report
        yield self._gauge("num_requests_running", "Outputs that are being computed.", running)
        yield self._gauge("num_requests_waiting", "Outputs that wait for a place.", waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", 1 - free / engine.num_blocks)
        yield self._counter("prompt_tokens", "Of prompts that were begun.", metrics.num_prompt_tokens)
        yield self._counter("generation_tokens", "Output.", metrics.num_output_tokens)
        yield self._counter("prefix_cache_queries", "Prompt tokens looked for.", metrics.num_prompt_tokens)
        yield self._counter("prefix_cache_hits", "Prompt tokens found.", metrics.num_cached_tokens)
        busy_s = metrics.schedule_s + metrics.execute_s
        yield self._counter("engine_busy_seconds", "That steps took.", busy_s)
        yield self._counter("num_preemptions", "Outputs that lost their place.", metrics.num_preemptions)
        finished = CounterMetricFamily(
            f"{PREFIX}request_success", "Outputs that ended.", labels=[*self._labels, "finished_reason"]
        )
        for reason, number in metrics.finished.items():
            finished.add_metric([*self._labels.values(), reason.value], number)
        yield finished
        yield from self._of_tiers(metrics.tiers)
        yield self._histogram("request_queue_time_seconds", "Until the first step.", metrics.queue_s)
        yield self._histogram("time_to_first_token_seconds", "The wait included.", metrics.ttft_s)
        yield self._histogram("inter_token_latency_seconds", "Between two tokens.", metrics.itl_s)
        yield self._histogram("e2e_request_latency_seconds", "From arrival to the end.", metrics.e2e_s)
        yield self._histogram("iteration_batch_size", "Outputs in a step.", metrics.batch_size)
        if moves:
            yield from self._of_moves(moves)
        if experts:
            yield from self._of_experts(experts)

    def _of_experts(self, layers: Sequence[Sequence[int]]) -> Iterator[Metric]:
        """A series an expert and one a layer, not one for each expert of each layer: there may be ten thousand."""
        tokens = CounterMetricFamily(
            f"{PREFIX}expert_tokens", "That an expert got, all layers together.", labels=[*self._labels, "expert"]
        )
        for expert, number in enumerate(map(sum, zip(*layers, strict=True))):
            tokens.add_metric([*self._labels.values(), str(expert)], number)
        yield tokens
        uneven = GaugeMetricFamily(
            f"{PREFIX}expert_imbalance",
            "Tokens of a layer's busiest expert over the mean; layers without experts are not counted.",
            labels=[*self._labels, "layer"],
        )
        for layer, counts in enumerate(layers):
            if any(counts):
                times = imbalance(counts, range(len(counts)), len(counts))
                uneven.add_metric([*self._labels.values(), str(layer)], times)
        yield uneven

    def _of_moves(self, moves: MoveCounts) -> Iterator[Metric]:
        yield self._counter("kv_moves_left", "Outputs that left their KV for another engine.", moves.num_left)
        yield self._counter("kv_moves_left_bytes", "Of that KV.", moves.left_bytes)
        yield self._counter("kv_moves_left_seconds", "Until it could be fetched.", moves.left_s)
        yield self._counter("kv_moves_arrived", "Outputs whose KV was fetched.", moves.num_arrived)
        yield self._counter("kv_moves_arrived_bytes", "Of that KV: what was missing here.", moves.arrived_bytes)
        yield self._counter("kv_moves_arrived_seconds", "That fetching took.", moves.arrived_s)
        yield self._gauge("kv_moves_held", "Outputs whose KV stands to be fetched.", moves.held)
        yield self._gauge("kv_moves_held_bytes", "Of that KV.", moves.held_bytes)
        yield self._counter("kv_moves_expired", "Of which nobody fetched the KV in time.", moves.expired)
        yield self._counter("kv_moves_refused", "For whose KV there was no room.", moves.refused)
        yield self._counter("kv_moves_failed", "Whose KV could not be copied.", moves.failed)

    def _of_tiers(self, tiers: Mapping[str, TierCounts]) -> Iterator[Metric]:
        """Of KV beside the device, a series a tier."""
        labels = [*self._labels, "tier"]
        for name, (kind, help) in TIER_SERIES.items() if tiers else ():
            family = kind(f"{PREFIX}kv_tier_{name}", help, labels=labels)
            for tier, counts in tiers.items():
                family.add_metric([*self._labels.values(), tier], getattr(counts, COUNTED.get(name, name)))
            yield family

    def _gauge(self, name: str, help: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, help, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, help: str, value: float) -> Metric:
        family = CounterMetricFamily(PREFIX + name, help, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _histogram(self, name: str, help: str, counted: Histogram) -> Metric:
        return histogram(name, help, counted, self._labels)


def histogram(name: str, help: str, counted: Histogram, labels: Mapping[str, str]) -> Metric:
    """As Prometheus has it: of each bucket, what is in it and in all below."""
    total, buckets = 0, []
    for bound, number in zip((*map(str, counted.bounds), "+Inf"), counted.counts, strict=True):
        total += number
        buckets.append((bound, total))
    family = HistogramMetricFamily(PREFIX + name, help, labels=list(labels))
    family.add_metric(list(labels.values()), buckets, counted.sum)
    return family
