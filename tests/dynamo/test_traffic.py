"""A frontend's metrics as a load: of an interval what came in it, of now what is under way."""

import pytest

from miniserve.dynamo.traffic import Sums, Traffic


def page(prompts=0, prompt_tokens=0, cached=0, outputs=0, output_tokens=0, queued=0, active=0):
    return f"""# TYPE dynamo_frontend_input_sequence_tokens histogram
dynamo_frontend_input_sequence_tokens_bucket{{model="a",le="+Inf"}} {prompts}
dynamo_frontend_input_sequence_tokens_sum{{model="a"}} {prompt_tokens}
dynamo_frontend_input_sequence_tokens_count{{model="a"}} {prompts}
# TYPE dynamo_frontend_cached_tokens histogram
dynamo_frontend_cached_tokens_sum{{model="a"}} {cached}
dynamo_frontend_cached_tokens_count{{model="a"}} {prompts}
# TYPE dynamo_frontend_output_sequence_tokens histogram
dynamo_frontend_output_sequence_tokens_sum{{model="a"}} {output_tokens}
dynamo_frontend_output_sequence_tokens_count{{model="a"}} {outputs}
# TYPE dynamo_frontend_queued_requests gauge
dynamo_frontend_queued_requests{{model="a"}} {queued}
# TYPE dynamo_frontend_inflight_requests gauge
dynamo_frontend_inflight_requests{{model="a"}} {active}
"""


def test_what_came_between_two_looks():
    traffic = Traffic()
    assert traffic.read(page(10, 1000, 0, 10, 500), 5.0) is None  # nobody knows how long it took for that to come
    observed = traffic.read(page(14, 1600, 200, 12, 700, queued=2, active=6), 5.0)
    assert (observed.seconds, observed.requests, observed.prompt_tokens, observed.missing_tokens) == (5.0, 4, 600, 400)
    assert (observed.waiting_tokens, observed.decoding, observed.output_tokens) == (300, 4, 100)
    quiet = traffic.read(page(14, 1600, 200, 12, 700), 5.0)
    assert (quiet.requests, quiet.waiting_tokens, quiet.decoding, quiet.output_tokens) == (0, 0, 0, 100)


def test_a_frontend_that_began_anew_is_looked_at_anew():
    traffic = Traffic()
    traffic.read(page(10, 1000), 1.0)
    assert traffic.read(page(3, 300), 1.0) is None
    assert traffic.read(page(5, 500), 1.0).requests == 2


def test_models_are_added_up_and_what_is_not_there_is_nothing():
    two = page(1, 10) + 'dynamo_frontend_input_sequence_tokens_count{model="b"} 2\n'
    assert Sums.of(two).prompts == 3
    assert Sums.of("") == Sums()
    with pytest.raises(ValueError, match=r".+"):
        Sums.of("<html>not metrics {")
