"""The engine's process, in a thread here: grammars are compiled beside the steps."""

import threading
from multiprocessing import Pipe

import pytest

from miniserve import LLM, SamplingParams
from miniserve.core.grammar import Choices, Regex
from miniserve.server.messages import Abort, Accepted, Ask, Deleted, DeleteKV, Ready, Refused, Report, Stepped, Submit
from miniserve.server.worker import Worker


class Engine:
    """A worker, and what it sends."""

    def __init__(self, llm):
        self.pipe, theirs = Pipe()
        self.thread = threading.Thread(target=Worker(theirs, llm).run)
        self.thread.start()
        self.seen = []
        assert isinstance(self.next(), Ready)

    def next(self):
        assert self.pipe.poll(60), "nothing comes"
        self.seen.append(self.pipe.recv())
        return self.seen[-1]

    def until(self, kind, key=None):
        """The first such message, which may have come already."""
        at = 0
        while True:
            while at == len(self.seen):
                self.next()
            message = self.seen[at]
            if isinstance(message, kind) and key in (None, getattr(message, "key", None)):
                return message
            at += 1

    def text(self, key):
        pieces = [
            piece for message in self.seen if isinstance(message, Stepped) for k, piece in message.pieces if k == key
        ]
        return "".join(piece.text for piece in pieces), pieces[-1].finish_reason if pieces else None

    def close(self):
        self.pipe.send(None)
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def gate():
    """Opens the compiler."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def engine(tiny_chat_model, gate, monkeypatch):
    with LLM(tiny_chat_model, dtype="float32", device="cpu", backend="torch", kv_cache_memory=2**22) as llm:
        compile_it = llm.text_engine.grammars.compile

        def late(grammar, salt):
            assert threading.current_thread() is not engine.thread
            assert gate.wait(60)
            return compile_it(grammar, salt)

        monkeypatch.setattr(llm.text_engine.grammars, "compile", late)
        engine = Engine(llm)
        yield engine
        engine.close()


def submit(key, grammar=None, tokens=400):
    return Submit(key, [[5, 6]], SamplingParams(max_tokens=tokens, grammar=grammar, ignore_eos=True), "")


def test_streams_go_on_while_a_grammar_is_compiled(engine, gate):
    for message in (submit(0), submit(1, Choices(["yes", "no"])), submit(2, Regex("a("))):
        engine.pipe.send(message)
    engine.until(Accepted, 0)
    while sum(isinstance(message, Stepped) for message in engine.seen) < 20:
        engine.next()
    assert engine.text(1) == ("", None)
    gate.set()
    while engine.text(1)[1] is None:
        engine.next()
    assert engine.text(1) in (("yes", "stop"), ("no", "stop"))
    assert "unclosed group" in engine.until(Refused, 2).message
    engine.pipe.send(submit(3, Choices(["yes", "no"])))  # known by now
    gate.clear()
    engine.until(Accepted, 3)


def test_who_leaves_while_it_is_compiled_leaves_nothing(engine, gate):
    engine.pipe.send(submit(0, Choices(["yes"])))
    engine.pipe.send(Abort(0))
    engine.pipe.send(submit(1, tokens=5))
    engine.until(Accepted, 1)
    gate.set()
    engine.pipe.send(submit(2, Choices(["no"])))
    engine.until(Accepted, 2)
    while not all(engine.text(key)[1] for key in (1, 2)):
        engine.next()
    engine.pipe.send(Ask())
    report = engine.until(Report)
    assert (report.num_running, report.num_waiting) == (0, 0)
    assert not [message for message in engine.seen if isinstance(message, Accepted | Refused) and message.key == 0]


def test_what_a_tier_brings_counts_as_cached(tiny_chat_model):
    how = {"dtype": "float32", "device": "cpu", "backend": "torch", "kv_cache_memory": 2**22, "block_size": 16}
    with LLM(tiny_chat_model, **how, kv_host_mib=4, kv_load="always", moves="shared-memory") as llm:
        engine = Engine(llm)
        for key, moves, cached in ((0, False, 0), (1, False, 48), (2, True, 48)):
            engine.pipe.send(Submit(key, [[*range(3, 60)]], SamplingParams(max_tokens=2, ignore_eos=True), "", moves))
            while engine.text(key)[1] is None:
                engine.next()
            pieces = [
                piece for each in engine.seen if isinstance(each, Stepped) for k, piece in each.pieces if k == key
            ]
            assert {piece.num_cached for piece in pieces} == {cached}
            engine.pipe.send(Abort(key))
            engine.pipe.send(Ask())
            engine.until(Report)
            assert llm.tiers.flush()
            llm.engine.scheduler.pool.clear_cache()  # it computes nothing now
        engine.close()


def test_a_tenants_kv_is_deleted_and_another_ones_is_not(engine):
    def cached(key, salt):
        engine.pipe.send(Submit(key, [list(range(5, 25))], SamplingParams(max_tokens=2, ignore_eos=True), salt))
        engine.until(Accepted, key)
        while True:
            message = engine.next()
            pieces = [piece for k, piece in message.pieces if k == key] if isinstance(message, Stepped) else []
            if pieces and pieces[-1].finish_reason:
                return pieces[-1].num_cached

    assert [cached(1, "a"), cached(2, "b"), cached(3, "a")] == [0, 0, 16]
    engine.pipe.send(DeleteKV(4, "a"))
    assert engine.until(Deleted, 4) == Deleted(4, {"device": 1})
    assert [cached(5, "a"), cached(6, "b")] == [0, 16]
