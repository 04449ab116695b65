"""Output tokens, taken several at once as one by one."""

from hypothesis import given
from hypothesis import strategies as st

from miniserve.core.request import Request
from miniserve.core.sampling_params import Limits

tokens = st.lists(st.integers(0, 3), max_size=8)


@given(st.lists(tokens, max_size=4), st.integers(1, 12), st.sampled_from([(), (3,), (2, 3)]), st.integers(0, 4))
def test_several_at_once_end_where_one_by_one_do(steps, most, stops, least):
    limits = Limits(most, stop_token_ids=frozenset(stops), min_tokens=min(least, most))
    once, single = Request("a", [1, 2], limits), Request("b", [1, 2], limits)
    for step in steps:
        if once.finish_reason:
            break
        taken = []
        for token in step:
            taken.append(token)
            if single.append(token):
                break
        assert list(once.extend(step)) == taken
        assert (once.token_ids, once.finish_reason) == (single.token_ids, single.finish_reason)
