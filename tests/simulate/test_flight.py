"""Blocks by name: alike just where their content, all before it included, would be."""

from hypothesis import given
from hypothesis import strategies as st

from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits
from miniserve.simulate.flight import Flight
from miniserve.workloads.arrivals import Arrival

SIZE = 6  # of a trace's block


@given(
    paths=st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(1, SIZE)), max_size=5),
    block_size=st.integers(1, 9),
)
def test_names_are_as_good_as_content(paths, block_size):
    """A name stands for a path from the root, as in the traces; the same tokens, hashed, are the reference."""
    names, named, hashed = {}, [], []
    for serial, (path, last) in enumerate(paths):
        blocks = tuple(names.setdefault(tuple(path[: at + 1]), len(names)) for at in range(len(path)))
        length = SIZE * (len(path) - 1) + last
        tokens = [name for name in blocks for _ in range(SIZE)][:length]
        flight = Flight.of(Arrival(0.0, length, 1, blocks, SIZE), serial, counts=True)
        named.append(flight.request().block_hashes(block_size, length // block_size))
        hashed.append(Request(str(serial), tokens, Limits(1)).block_hashes(block_size, length // block_size))
    for ours, reference in zip(named, hashed, strict=True):
        assert len(set(ours)) == len(ours)
        for others, reference_others in zip(named, hashed, strict=True):
            alike = [one == other for one, other in zip(reference, reference_others, strict=False)]
            assert [one == other for one, other in zip(ours, others, strict=False)] == alike


def test_without_names_a_request_shares_with_itself_alone():
    flights = [Flight.of(Arrival(0.0, 32, 9, blocks, 16), serial, counts=True)
               for serial, blocks in enumerate([(), (), (2, 3), (2, 3)])]  # fmt: skip
    before = [flight.request().block_hashes(16, 2) for flight in flights]
    assert len({block for hashes in before for block in hashes}) == 2 + 2 + 2
    for flight in flights:
        flight.served.output_tokens = 8  # its engine fails: it begins again, with what has come
    again = [flight.request().block_hashes(8, 5) for flight in flights]
    assert len({hashes[-1] for hashes in again}) == 4  # whoever answers, the answer is its own
    assert [flight.request().block_hashes(16, 2) for flight in flights] == before
    assert flights[0].request().num_prompt_tokens == 40
