"""Trace files: both formats, and every kind of bad line by its number."""

import os
from pathlib import Path

import pytest

from miniserve.errors import CorruptFileError
from miniserve.workloads.arrivals import Arrival
from miniserve.workloads.traces import origin, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109

2023-11-16 18:15:51.2222670,879,55"""
MOONCAKE = """{"timestamp": 3000, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 7, "output_length": 9}
{"timestamp": 5500, "input_length": 512, "output_length": 1, "hash_ids": [0]}
"""
SHARED = Path(os.environ.get("MINISERVE_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def trace(tmp_path):
    def write(text):
        path = tmp_path / "trace"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_azure(trace):
    first, second, third = read_trace(trace(AZURE))
    assert first == Arrival(0.0, 374, 44)
    assert second[1:3] == (396, 109)
    assert second.at_s == pytest.approx(4.314579, abs=2e-6)
    assert third.at_s == pytest.approx(4.541677, abs=2e-6)


def test_azure_2024_has_time_zones(trace):
    text = AZURE.splitlines()[0] + "\n2024-05-10 00:00:00.5+00:00,1,2\n2024-05-10 02:00:01.5+02:00,3,4\n"
    assert [*read_trace(trace(text))] == [Arrival(0.0, 1, 2), Arrival(1.0, 3, 4)]


def test_mooncake_keeps_what_prompts_share(trace):
    assert [*read_trace(trace(MOONCAKE), speed=2.0)] == [
        Arrival(0.0, 1030, 5, (0, 1, 2), 512), Arrival(0.0, 7, 9), Arrival(1.25, 512, 1, (0,), 512),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("2023-11-16 18:15:52,12", "not enough values"),
        ("2023-11-16 18:15:52,12,13,14", "too many values"),
        ("yesterday,12,13", "isoformat"),
        ("2023-11-16 18:15:52,many,13", "invalid literal"),
        ("2023-11-16 18:15:52,0,13", "below 1"),
        ("2023-11-16 18:15:45,12,13", "earlier"),
    ],
)
def test_a_bad_azure_line_is_named(trace, line, what):
    with pytest.raises(CorruptFileError, match=rf"trace, line 6: .*{what}"):
        list(read_trace(trace(f"{AZURE}\n{line}\n")))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"timestamp": 6000, "input_length": 5}', "no 'output_length'"),
        ('{"timestamp": 6000, "input_length": 5, "output_length": 5', "delimiter"),
        ('{"timestamp": 6000, "input_length": 5.5, "output_length": 5}', "whole number"),
        ('{"timestamp": 6000, "input_length": 5, "output_length": true}', "whole number"),
        ('{"timestamp": 6000, "input_length": 600, "output_length": 5, "hash_ids": [1]}', "1 hash_ids for 600"),
        ('{"timestamp": 6000, "input_length": 5, "output_length": 5, "hash_ids": ["a"]}', "whole number"),
        ('{"timestamp": NaN, "input_length": 5, "output_length": 5}', "timestamp"),
        ('{"timestamp": 1000, "input_length": 5, "output_length": 5}', "earlier"),
        ("[6000, 5, 5]", "indices"),
    ],
)
def test_a_bad_mooncake_line_is_named(trace, line, what):
    with pytest.raises(CorruptFileError, match=rf"trace, line 4: .*{what}"):
        list(read_trace(trace(MOONCAKE + line + "\n")))


@pytest.mark.parametrize("text", ["", "hello\n", "a,b,c\n1,2,3\n", b"\xff\xfe\x00"])
def test_what_is_no_trace_is_refused(trace, text):
    with pytest.raises(CorruptFileError, match="trace"):
        list(read_trace(trace(text)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CorruptFileError, match="nowhere"):
        list(read_trace(tmp_path / "nowhere"))


def test_an_unknown_file_has_no_origin(trace):
    assert origin(trace("x")).keys() == {"file", "sha256"}


@pytest.mark.parametrize(
    ("name", "count", "span_s"),
    [
        ("AzureLLMInferenceTrace_code.csv", 8819, 3435.948),
        ("AzureLLMInferenceTrace_conv.csv", 19366, 3501.722),
        ("mooncake_conversation_trace.jsonl", 12031, 3536.999),
    ],
)
def test_the_published_files(name, count, span_s):
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is not there: MINISERVE_DATA names the directory of the published traces")
    arrivals = list(read_trace(SHARED / name))
    assert len(arrivals) == count
    assert arrivals[-1].at_s == pytest.approx(span_s, abs=1e-3)
    assert "origin" in origin(SHARED / name)
