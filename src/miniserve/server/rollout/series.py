"""Who gets which traffic, as Prometheus reads it."""

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from miniserve.server.metrics import PREFIX
from miniserve.server.rollout.traffic import Traffic


def directed(traffic: Traffic, model: str) -> Metric:
    """Which version gets which share of requests, and as what: stable, canary or shadow."""
    family = GaugeMetricFamily(
        f"{PREFIX}traffic_share", "Of requests; a shadow's are copies.", labels=["model_name", "version", "role"]
    )
    family.add_metric([model, traffic.stable, "stable"], 1 - traffic.weight)
    if traffic.canary is not None:
        family.add_metric([model, traffic.canary, "canary"], traffic.weight)
    if traffic.shadow is not None:
        family.add_metric([model, traffic.shadow, "shadow"], traffic.shadow_share)
    return family
