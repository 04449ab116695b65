"""Requests that move between two engines of one process, with their KV."""

import threading
import time
from types import SimpleNamespace

import pytest

from miniserve import LLM, SamplingParams
from miniserve.core.grammar import Choices
from miniserve.core.request import FinishReason, Status
from miniserve.errors import InvalidRequestError
from miniserve.fleet.moves import Moves
from miniserve.kvstore.blocks import BlockCopier
from miniserve.kvstore.layout import KVLayout
from miniserve.kvstore.shared_memory import SharedMemory
from miniserve.model.load import load_model

PROMPT = [3 + index % 90 for index in range(77)]
GREEDY = SamplingParams(max_tokens=20, ignore_eos=True)


def open_engine(directory, **options):
    plain = {"dtype": "float32", "device": "cpu", "backend": "torch", "kv_cache_memory": 2**21, "block_size": 16}
    return LLM(str(directory), **(plain | {"moves": "shared-memory"} | options))


@pytest.fixture(scope="module")
def engines(tiny_directory):
    directory, _ = tiny_directory("llama")
    with open_engine(directory) as one, open_engine(directory) as other:
        yield one, other


@pytest.fixture
def pair(engines):
    yield engines
    for llm in engines:
        llm.text_engine.abort_all()
        llm.moves.withdraw("leaver")
        until(llm, lambda llm=llm: not llm.engine.has_work)
        pool = llm.engine.scheduler.pool
        llm.engine.scheduler.check()
        assert pool.num_free == pool.num_blocks
        pool.clear_cache()
        held(llm, 0)
        llm.moves.answers()


def until(llm, condition, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        llm.text_engine.step()


def leave(llm, prompt=PROMPT, params=GREEDY, after=1, name="leaver"):
    """Compute so many tokens, and move: the tokens, and what is offered."""
    text = llm.text_engine
    generation = text.add(text.make(prompt, params, request_id=name))
    request = generation.choices[0].request
    until(llm, lambda: request.num_output_tokens >= after)
    text.abort(name, FinishReason.MOVED)
    answers = []
    until(llm, lambda: answers.extend(llm.moves.answers()) or answers)
    (answer,) = answers
    assert answer[0] == name
    return request.output_token_ids, answer[1]


def go_on(llm, prior, offer, prompt=PROMPT, params=GREEDY, name="comer"):
    text = llm.text_engine
    generation = text.add(text.make(prompt, params, prior=prior, offer=offer, request_id=name))
    until(llm, lambda: generation.finished)
    return generation.choices[0]


def truth(llm, params=GREEDY, prompt=PROMPT):
    (found,) = llm.generate(prompt, params)[0].outputs
    llm.engine.scheduler.pool.clear_cache()
    return found


def held(llm, number):
    deadline = time.monotonic() + 5
    while llm.moves.counts.held != number:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("after", [1, 7])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0, "seed": 5, "logprobs": 1},
        {"repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 0.5, "min_tokens": 20},
        {"stop": "q"},
        {"grammar": Choices(["a" * 30, "b" * 30])},
    ],
)
def test_it_goes_on_as_if_it_had_stayed(pair, options, after):
    one, other = pair
    params = SamplingParams(**{"max_tokens": 20, "ignore_eos": True} | options)
    stayed = truth(one, params)
    prior, offer = leave(one, params=params, after=after)
    came = go_on(other, prior, offer, params=params)
    assert came.request.output_token_ids == list(stayed.token_ids)
    assert came.request.num_loaded == offer.num_tokens == len(PROMPT) + after - 1
    if params.logprobs is not None:
        expected = [each.logprob for each in stayed.logprobs[after:]]
        assert [each.logprob for each in came.request.logprobs] == pytest.approx(expected, abs=1e-4)
    assert stayed.text.endswith(came.stream.text[-3:])
    one.moves.withdraw("leaver")
    held(one, 0)


def test_only_what_is_missing_is_fetched(pair):
    one, other = pair
    stayed = truth(one)
    prior, offer = leave(one)
    other.generate(PROMPT[:40] + [99] * 9, SamplingParams(max_tokens=1))  # 2 blocks of the prompt, and another end
    before = other.moves.counts.arrived_bytes
    came = go_on(other, prior, offer).request
    assert (came.num_cached, came.num_loaded) == (32, 45)
    assert other.moves.counts.arrived_bytes - before == 3 * other.moves.layout.block_bytes
    assert came.output_token_ids == list(stayed.token_ids)
    one.moves.withdraw("leaver")


@pytest.mark.parametrize("block_size", [8, 24, 64])
def test_blocks_of_another_size_are_converted(pair, tiny_directory, block_size):
    one, _ = pair
    stayed = truth(one)
    prior, offer = leave(one)
    with open_engine(tiny_directory("llama")[0], block_size=block_size) as other:
        other.moves.check(offer)
        other.generate(PROMPT[:65], SamplingParams(max_tokens=1))  # so that some of it is there, of an odd length
        came = go_on(other, prior, offer).request
        assert came.num_loaded == 77 - 65 // block_size * block_size if block_size < 65 else 77
        assert came.output_token_ids == list(stayed.token_ids)
    one.moves.withdraw("leaver")


def test_kv_of_another_model_is_refused_by_name(pair, tiny_directory):
    one, _ = pair
    _, offer = leave(one)
    with open_engine(tiny_directory("smollm2")[0]) as other, pytest.raises(InvalidRequestError) as caught:
        other.moves.check(offer)
    assert "weights is" in str(caught.value)
    assert "head_dim is 32, not 16" in str(caught.value)  # as theirs, not ours
    one.moves.withdraw("leaver")


def test_what_cannot_be_fetched_is_computed(pair):
    """A closed room, which is what a dead peer looks like; and an offer that has expired, which is not even tried."""
    one, other = pair
    stayed = truth(one)
    prior, offer = leave(one)
    one.moves.withdraw("leaver")
    held(one, 0)
    failed = other.moves.counts.failed
    for stale, tries in ((offer, 1), (offer._replace(expires_s=0.0), 0)):
        came = go_on(other, prior, stale).request
        assert (came.num_loaded, came.output_token_ids) == (0, list(stayed.token_ids))
        other.engine.scheduler.pool.clear_cache()
        assert other.moves.counts.failed == (failed := failed + tries)


class Gate(SharedMemory):
    """A transfer that can be stopped in the middle."""

    def __init__(self):
        super().__init__()
        self.open, self.reached = threading.Event(), threading.Event()

    def room(self, num_bytes):
        self._pass()
        return super().room(num_bytes)

    def read(self, place, num_bytes):
        self._pass()
        return super().read(place, num_bytes)

    def _pass(self):
        self.reached.set()
        assert self.open.wait(10)


@pytest.fixture
def gate(pair, monkeypatch):
    gate = Gate()
    for llm in pair:
        monkeypatch.setattr(llm.moves, "_transfer", gate)
        monkeypatch.setattr(llm.moves._rooms, "_transfer", gate)
    yield gate
    gate.open.set()


def test_an_abort_in_the_middle_of_a_transfer_waits_for_its_end(pair, gate):
    one, other = pair
    gate.open.set()
    prior, offer = leave(one)
    gate.open.clear()
    gate.reached.clear()
    text = other.text_engine
    request = text.add(text.make(PROMPT, GREEDY, prior=prior, offer=offer, request_id="comer")).choices[0].request
    other.text_engine.step()
    assert gate.reached.wait(5)
    assert request.status is Status.LOADING
    text.abort("comer")
    pool = other.engine.scheduler.pool
    text.step()
    assert pool.num_free == pool.num_blocks - 5, "somebody still writes there"
    gate.open.set()
    until(other, lambda: pool.num_free == pool.num_blocks)
    one.moves.withdraw("leaver")
    held(one, 0)


def test_who_is_withdrawn_in_the_middle_leaves_nothing(pair, gate):
    one, _ = pair
    text = one.text_engine
    request = text.add(text.make(PROMPT, GREEDY, request_id="leaver")).choices[0].request
    until(one, lambda: request.num_output_tokens)
    text.abort("leaver", FinishReason.MOVED)
    one.moves.withdraw("leaver")
    assert gate.reached.wait(5)
    pool = one.engine.scheduler.pool
    assert pool.num_free == pool.num_blocks - 5, "they are being read"
    gate.open.set()
    until(one, lambda: not one.engine.has_work)
    held(one, 0)
    assert one.moves.answers()[0][0] == "leaver"


def of_its_own(llm, **options):
    """Another connector of the same engine, instead of its own."""
    layout = KVLayout.of(llm.model, 16, "float32")
    return Moves(BlockCopier(llm.engine.executor.cache, layout), SharedMemory(), **options)


def test_what_nobody_comes_for_is_given_up(pair, monkeypatch):
    one, _ = pair
    moves = of_its_own(one, hold_s=0.0)
    monkeypatch.setattr("miniserve.fleet.moves.LOOK_S", 0.01)
    request = one.text_engine.make(PROMPT, GREEDY).choices[0].request
    request.finish_reason, request.num_computed, request.block_table = FinishReason.MOVED, 77, range(5)
    assert list(moves.finished(request)) == [0, 1, 2, 3, 4]
    deadline = time.monotonic() + 5
    while not moves.counts.expired:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ((_, offer),) = moves.answers()
    assert offer.expires_s <= time.monotonic()
    assert (moves.counts.held, moves.counts.held_bytes, moves.counts.num_left) == (0, 0, 1)
    assert sorted(moves.poll(True).released) == [0, 1, 2, 3, 4]
    moves.close()


def test_without_room_only_the_tokens_are_left(pair):
    one, _ = pair
    moves = of_its_own(one, capacity_bytes=5 * one.moves.layout.block_bytes)
    requests = [one.text_engine.make(PROMPT, GREEDY, request_id=name).choices[0].request for name in "abc"]
    for request in requests:
        request.finish_reason, request.num_computed, request.block_table = FinishReason.MOVED, 77, range(5)
    assert [len(moves.finished(request)) for request in requests[:2]] == [5, 0]
    deadline, answers = time.monotonic() + 5, {}
    while len(answers) < 2:
        assert time.monotonic() < deadline
        answers |= dict(moves.answers())
    assert answers["b"] is None
    assert answers["a"].num_bytes == 5 * one.moves.layout.block_bytes
    moves.withdraw("a")
    while moves.counts.held:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert len(moves.finished(requests[2])) == 5, "there is room again"
    moves.close()
    assert moves.counts.refused == 1
    assert moves.counts.held == 0


def test_tiers_go_with_moves(pair, tiny_directory):
    """A prompt's KV comes from a tier where it is computed, moves, and is saved where it arrived."""
    one, _ = pair
    stayed = truth(one)
    with open_engine(tiny_directory("llama")[0], kv_host_mib=4, kv_load="always") as other:
        prior, offer = leave(other)
        other.moves.withdraw("leaver")
        other.tiers.flush()
        other.engine.scheduler.pool.clear_cache()
        prior, offer = leave(other)
        assert other.engine.metrics.tiers["host"].hits == 4
        misses = other.engine.metrics.tiers["host"].misses
        with open_engine(tiny_directory("llama")[0], kv_host_mib=4, kv_load="always") as third:
            came = go_on(third, prior, offer).request
            assert (came.num_loaded, came.output_token_ids) == (77, list(stayed.token_ids))
            assert third.engine.metrics.tiers["host"].misses == 0, "nothing was computed for want of it"
            until(third, lambda: not third.engine.has_work)
            third.tiers.flush()
            third.engine.scheduler.pool.clear_cache()
            (again,) = third.generate([PROMPT], GREEDY)
            assert (again.outputs[0].num_cached_tokens, again.token_ids) == (64, list(stayed.token_ids))
        other.moves.withdraw("leaver")
        held(other, 0)
        until(other, lambda: not other.engine.has_work)
        assert other.engine.metrics.tiers["host"].misses == misses == 4


def test_requests_that_end_here_leave_nothing(pair):
    one, _ = pair
    before = one.moves.counts
    truth(one)
    assert one.moves.counts == before
    assert one.moves.answers() == []


def test_output_that_has_ended_cannot_be_gone_on_with(pair):
    one, _ = pair
    with pytest.raises(InvalidRequestError, match="output token 20 of 20 to go on from ends it already"):
        one.text_engine.make(PROMPT, GREEDY, prior=[9] * 20)


@pytest.mark.parametrize(("options", "message"), [({"moves": "pigeon"}, "must be shared-memory or nixl")])
def test_ways_are_checked(tiny_directory, options, message):
    with pytest.raises(InvalidRequestError, match=message):
        open_engine(tiny_directory("llama")[0], **options)


def test_ranks_are_refused_by_name(tiny_directory, monkeypatch):
    model = load_model(str(tiny_directory("llama")[0]), dtype="float32", device="cpu", backend="torch")
    monkeypatch.setattr(model.decoder, "communicator", SimpleNamespace(rank=0, size=2))
    with pytest.raises(InvalidRequestError, match="does not go with tensor_parallel_size 2"):
        LLM(model, moves="shared-memory", kv_cache_memory=2**21)
