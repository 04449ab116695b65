import os

import pytest

from miniserve.hardware.this_machine import cpu_quota, instruction_sets, num_cores, these_versions, this_device


def test_what_is_known_of_this_machine():
    assert this_device()
    assert "\n" not in this_device()
    assert 1 <= num_cores() <= (os.cpu_count() or 1)
    assert {"python", "torch"} >= set(these_versions()) - {"numpy"}
    assert all(" " not in name for name in instruction_sets())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
    ],
)
def test_a_containers_share_of_the_cpus(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (0.5, 1), (2.5, 3), (64.0, 8)])
def test_threads_are_no_more_than_a_container_is_given(monkeypatch, quota, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(8), raising=False)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 16)
    monkeypatch.setattr("miniserve.hardware.this_machine.cpu_quota", lambda: quota)
    assert num_cores() == expected
