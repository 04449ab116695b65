from miniserve.hardware.this_machine import num_cores, these_versions, this_device


def test_what_is_known_of_this_machine():
    assert this_device()
    assert "\n" not in this_device()
    assert num_cores() >= 1
    assert {"python", "torch"} >= set(these_versions()) - {"numpy"}
