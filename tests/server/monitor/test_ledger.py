"""Which requests are good, which say nothing, and what comes together of them; on a clock that the test moves."""

import pytest

from miniserve.server.messages import Piece
from miniserve.server.monitor.ledger import CLASSES, Ledger, status_class
from miniserve.server.monitor.meter import Meter
from miniserve.server.replies import PromptDetails, Usage
from miniserve.workloads.service import SLO, Service

SLOS = SLO(ttft_s=1.0, itl_s=0.5, tpot_s=0.3, e2e_s=3.0)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def meter(clock, *moments, ends=True, choice=0, made=None):
    """Of a request whose tokens came at these moments after its arrival."""
    made, begun = made or Meter(clock), 100.0
    for index, moment in enumerate(moments):
        clock.now = begun + moment
        last = ends and index == len(moments) - 1
        made.count(Piece(choice, "a", [1], None, "length" if last else None, spent_s=0.25))
    return made


@pytest.mark.parametrize(
    ("moments", "good"),
    [
        ((1.0, 1.25, 1.5), True),
        ((1.25,), False),  # the first token
        ((0.5, 1.25), False),  # a gap
        ((0.5, 0.875, 1.25), False),  # 0.375 s a token
        ((1.0, *(1 + 0.25 * step for step in range(1, 10))), False),  # longer than 3 s
    ],
)
def test_a_request_is_good_if_every_limit_held_as_the_benchmark_says_too(clock, moments, good):
    assert meter(clock, *moments).met(SLOS, 200, was_taken=True) is good
    as_client = Service(0.0, 0.0, list(moments), output_tokens=len(moments), ended_s=moments[-1])
    assert SLOS.met_by(as_client) is good


def test_every_choice_has_to_be_good(clock):
    slow = meter(clock, 0.5, 0.75)
    meter(clock, 0.5, 1.5, choice=1, made=slow)
    assert slow.met(SLOS, 200, was_taken=True) is False


def test_several_tokens_at_once_are_one_part(clock):
    many = Meter(clock)
    clock.now += 0.5
    many.count(Piece(0, "abc", [1, 2, 3]))
    clock.now += 0.5
    many.count(Piece(0, "def", [4, 5, 6], finish_reason="stop"))
    assert many.met(SLOS, 200, was_taken=True) is True


def test_the_clock_runs_from_the_whole_request_s_arrival(clock):
    late = Meter(clock)
    clock.now += 50  # its body was on its way
    late.arrived()
    clock.now += 0.5
    late.count(Piece(0, "a", [1], finish_reason="stop"))
    assert late.met(SLOS, 200, was_taken=True) is True
    assert late.seconds == 0.5


@pytest.mark.parametrize(
    ("status", "was_taken", "good"),
    [
        (500, True, False),
        (503, False, False),
        (429, True, False),
        (429, False, None),
        (400, True, None),
        (401, False, None),
    ],
)
def test_failures_count_and_what_is_wrong_with_a_request_does_not(clock, status, was_taken, good):
    assert Meter(clock).met(SLOS, status, was_taken=was_taken) is good


def test_who_leaves_is_judged_by_what_had_been_due(clock):
    early = Meter(clock)
    clock.now += 0.9
    assert early.met(SLOS, 499, was_taken=True) is None
    clock.now += 0.2
    assert early.met(SLOS, 499, was_taken=True) is False
    clock.now = 100.0
    served = meter(clock, 0.5, 0.75, ends=False)
    assert served.met(SLOS, 499, was_taken=True) is True
    clock.now += 0.6  # nothing came, and then it left
    assert served.met(SLOS, 499, was_taken=True) is False


def test_classes_of_status():
    statuses = (200, 400, 404, 431, 429, 499, 500, 503)
    assert [status_class(each) for each in statuses] == ["2xx", "4xx", "4xx", "4xx", "429", "499", "5xx", "5xx"]
    assert {status_class(each) for each in range(200, 600) if not 300 <= each < 400} == set(CLASSES)


def test_accounts_by_tenant_and_version(clock):
    ledger = Ledger(SLOS)
    for tenant, version, moment in (("a", "1", 0.5), ("a", "2", 2.0), ("b", "2", 0.5)):
        clock.now = 100.0
        one = meter(clock, moment)
        one.usage = Usage(10, 5, 15, PromptDetails(8))
        ledger.enter(tenant, version, 200, one, was_taken=True)
    clock.now = 100.0
    broken = meter(clock, 0.5)
    broken.failure = 500  # its stream had begun
    ledger.enter("b", "2", 200, broken, was_taken=True)
    ledger.enter("", "", 401, Meter(clock), was_taken=False)
    by_version = ledger.by_version()
    assert [(name, each.judged, each.good) for name, each in by_version.items()] == [
        ("1", 1, 1),
        ("2", 3, 1),
        ("", 0, 0),
    ]
    assert (by_version["2"].requests["2xx"], by_version["2"].requests["5xx"]) == (2, 1)
    a = ledger.by_tenant()["a"]
    assert (a.prompt_tokens, a.cached_tokens, a.output_tokens, a.spent_s) == (20, 16, 10, 0.5)
    assert (a.seconds.count, sum(a.seconds.counts), a.seconds.sum) == (2, 2, 2.5)
    assert ledger.accounts["a", "1"].judged == 1, "to look at them together changes none"
    assert sum(each.requests.total() for each in ledger.accounts.values()) == 5
