"""From a `Scenario` to a simulation that has run: its deployments, its cluster, its arrivals, its report."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from miniserve.core.disaggregation import Disaggregation
from miniserve.core.routing import ROUTERS
from miniserve.errors import InvalidRequestError
from miniserve.hardware.afd import Sides
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.imbalance import power_law_imbalance
from miniserve.hardware.shape import Parallel, Precision
from miniserve.simulate.cluster import Cluster
from miniserve.simulate.deployment import Deployment, efficiency_for
from miniserve.simulate.models import shape_by_name
from miniserve.simulate.report import check_price, report
from miniserve.simulate.scenario import Engines, Scenario, Workload
from miniserve.simulate.speculation import Speculation
from miniserve.simulate.storage import Link
from miniserve.simulate.timeline import Timeline
from miniserve.workloads.arrivals import Arrival, Lengths, arrival_times, drawn
from miniserve.workloads.presets import preset
from miniserve.workloads.service import SLO
from miniserve.workloads.traces import read_trace

DEFAULT_REQUESTS = 256


def deployment_of(model: str, engines: Engines) -> Deployment:
    """What one of these engines runs on.

    Raises:
        InvalidRequestError: model, hardware or a number format is unknown, or it does not fit.

    Example:
        >>> from miniserve.simulate.build import deployment_of
        >>> from miniserve.simulate.scenario import Engines
        >>> engine = deployment_of("qwen3-8b", Engines("h100", weights="fp8"))
        >>> f"{engine.weight_bytes / 1e9:.1f} GB of weights, and KV of {engine.num_blocks * engine.block_size:,} tokens"
        '9.4 GB of weights, and KV of 424,256 tokens'
    """
    catalog, shape = load_catalog(), shape_by_name(model)
    device, there = catalog.accelerator(engines.hardware), engines.ffn_hardware
    apart = catalog.accelerator(there) if there else device
    sides = None
    if engines.afd:  # a shared expert that each chip had would take as much of its SRAM as an expert does
        sides = Sides.parse(engines.afd, shape, engines.afd_batches, shared_stays=apart.memory == "SRAM")
    redundant = -shape.experts.count % engines.expert if shape.experts else 0  # so that all ranks hold equally many
    parallel, skew, acceptance = Parallel(engines.tensor, engines.expert, redundant), 1.0, engines.draft_acceptance
    parallel.check(shape)
    if engines.expert_skew is not None:
        if not shape.experts:
            raise InvalidRequestError(f"an expert skew of {engines.expert_skew}: the model has no experts")
        shared_out = Parallel(1, sides.ffn, sides.redundant) if sides else parallel
        skew = power_law_imbalance(engines.expert_skew, shape.experts, shared_out)
    made = Deployment(
        device, shape, Precision.of(engines.weights, engines.kv), parallel, efficiency_for(device),
        memory_share=engines.memory_share, block_size=engines.block_size, max_num_seqs=engines.max_num_seqs,
        max_num_batched_tokens=engines.max_num_batched_tokens, max_model_len=engines.max_model_len,
        overhead_s=engines.overhead_ms / 1000, imbalance=skew, overlap=engines.overlap,
        speculation=None if acceptance is None else Speculation.parse(acceptance), sides=sides,
        ffn_device=None if apart == device else apart, way=engines.afd_link,
    )  # fmt: skip
    _ = made.num_blocks  # raises if it does not fit
    return made


def cluster_of(scenario: Scenario, timeline: Timeline | None = None) -> Cluster:
    """Ready to run. Raises InvalidRequestError for what cannot be."""
    pools: dict[str, list[Deployment]] = {}
    for engines in scenario.engines:
        made = deployment_of(scenario.model, engines)
        for device, _ in made.devices:
            check_price(scenario.price, device)
        ranks = made.sides.attention if made.sides else engines.expert
        pools.setdefault(engines.role, []).extend([made] * engines.number * ranks)
    link, workload, shares = scenario.link, scenario.workload, scenario.prefix_caching
    shares = bool(workload.trace or workload.preset) if shares is None else shares
    if scenario.tiers and not shares:
        raise InvalidRequestError("nobody would read the tiers: prompts share blocks in a trace or a preset alone")
    return Cluster(
        pools.get("both") or pools["decode"],
        prefill=pools.get("prefill", ()),
        router=ROUTERS[scenario.router](),
        apart=None if scenario.prefill_from is None else Disaggregation(scenario.prefill_from),
        decode_router=ROUTERS[scenario.decode_router](),
        slo=SLO.parse(scenario.slo) if scenario.slo else SLO(),
        make_link=lambda: Link(link.bandwidth, link.latency_s),
        tiers=scenario.tiers,
        load_if_faster=scenario.load_if_faster,
        prefix_caching=shares,
        outages=scenario.outages,
        scaling=scenario.planner,
        timeline=timeline,
    )


def arrivals_of(workload: Workload) -> Iterator[Arrival]:
    """All that come, warm-up included."""
    rng, number = random.Random(workload.seed), workload.requests
    if workload.trace:
        arrivals = read_trace(Path(workload.trace), speed=workload.speed)
    elif workload.preset:
        arrivals, number = preset(workload.preset, rng, workload.rate), number or DEFAULT_REQUESTS
    else:
        times = None if workload.rate is None else arrival_times(workload.rate, rng)
        arrivals = drawn(Lengths.parse(workload.input), Lengths.parse(workload.output), rng, times)
        number = number or DEFAULT_REQUESTS
    return arrivals if number is None else islice(arrivals, warmup_of(workload) + number + (workload.concurrency or 0))


def warmup_of(workload: Workload) -> int:
    """Requests that do not count."""
    return workload.concurrency or 0 if workload.warmup is None else workload.warmup


def run(
    scenario: Scenario, timeline: Timeline | None = None, progress: Callable[[int, float], None] | None = None
) -> Cluster:
    """Simulate it.

    Args:
        scenario: what.
        timeline: is told what each engine does.
        progress: told, now and then, how many requests have ended, and the time.

    Raises:
        InvalidRequestError: it cannot be.
    """
    cluster, workload = cluster_of(scenario, timeline), scenario.workload
    # An open loop ends with its last arrival, and all turns after it.
    counted = (workload.requests or DEFAULT_REQUESTS) if workload.concurrency else None
    cluster.run(
        arrivals_of(workload), concurrency=workload.concurrency, warmup=warmup_of(workload), counted=counted,
        progress=(lambda done: progress(done, cluster.now_s)) if progress else None,
    )  # fmt: skip
    return cluster


def with_users(scenario: Scenario, users: int) -> dict[str, Any]:
    """The report with so many users at once, each asking again at once, twice each at least."""
    number = max(scenario.workload.requests or DEFAULT_REQUESTS, 2 * users)
    workload = replace(scenario.workload, concurrency=users, requests=number)
    return report(run(replace(scenario, workload=workload)), scenario.price)
