"""What `/metrics` says of routing: bounded series, whatever the model."""

from prometheus_client.parser import text_string_to_metric_families

from miniserve.core.metrics import Metrics
from miniserve.server.backend import EngineReport
from miniserve.server.messages import Report
from miniserve.server.metrics import exposition


def samples(experts, names=("",)):
    reports = [EngineReport(name, True, 0, 8, Report(Metrics(), 0, 0, 8, None, experts)) for name in names]
    text = exposition(reports, "m")[0].decode()
    return {
        (
            sample.name.removeprefix("miniserve:"),
            *(v for k, v in sample.labels.items() if k != "model_name"),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_tokens_of_experts_and_imbalance_of_layers():
    found = samples([[1, 3, 0, 0], [2, 2, 2, 2], [0, 0, 0, 0]])
    assert [found["expert_tokens_total", str(expert)] for expert in range(4)] == [3, 5, 2, 2]
    assert found["expert_imbalance", "0"] == 3
    assert found["expert_imbalance", "1"] == 1
    assert ("expert_imbalance", "2") not in found, "before the first token there is none"


def test_several_engines_and_none_that_counts():
    found = samples([[4, 0]], ["a", "b"])
    assert found["expert_tokens_total", "a", "0"] == found["expert_tokens_total", "b", "0"] == 4
    for nothing in (None, []):
        assert not any("expert" in name for name, *_ in samples(nothing))
