"""Provenance: what was measured and what was simulated are told apart, in the file and by its reader."""

import pytest

from miniserve.bench.record import write_record
from miniserve.notebook.results import load_results


@pytest.mark.parametrize(("simulated", "label"), [(None, "recorded"), ("NVIDIA H200", "simulated")])
def test_a_written_record_is_read_with_its_label_and_device(tmp_path, simulated, label):
    write_record(tmp_path / "some.json", {"tokens": 3}, "miniserve this", "cpu", simulated=simulated)
    read = load_results("some", root=tmp_path)
    assert (read.label, read.data, read.command) == (label, {"tokens": 3}, "miniserve this")
    assert (read.device == simulated) is (simulated is not None)
    assert "cores" in read.device or simulated
