"""The breaker against every sequence of events: one probe at a time, a bounded back-off, and a way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.breaker import BACKOFF_FIRST_S, BACKOFF_MAX_S, Breaker
from ingest.outcomes import OF_THE_SERVER

SERVER_CODES = sorted(OF_THE_SERVER)


@pytest.mark.parametrize("code", SERVER_CODES)
def test_a_failure_of_the_whole_server_opens_it(code):
    breaker = Breaker()
    breaker.failed(code, 10.0)
    assert (breaker.state, breaker.reason) == ("open", code)
    assert not breaker.try_probe(10.0)


@pytest.mark.parametrize(
    "code", ["redis_wrongtype", "redis_error", "redis_moved", "redis_ask", "redis_tryagain"]
)
def test_a_refusal_of_one_stream_does_not(code):
    breaker = Breaker()
    breaker.failed(code, 10.0)
    assert breaker.state == "closed"


@pytest.mark.parametrize("code", ["redis_wrongtype", ""])
def test_a_probe_that_the_server_answered_closes_it(code):
    breaker = Breaker()
    breaker.failed("redis_oom", 0.0)
    assert breaker.try_probe(BACKOFF_FIRST_S)
    if code:
        breaker.failed(code, 1.0)
    else:
        breaker.succeeded()
    assert (breaker.state, breaker.reason) == ("closed", "")


def test_what_was_sent_before_it_opened_does_not_close_it():
    breaker = Breaker()
    breaker.failed("redis_oom", 0.0)
    breaker.succeeded()
    assert breaker.state == "open"


def test_a_new_connection_closes_it_only_where_the_connection_was_all_that_failed():
    away, silent = Breaker(), Breaker()
    away.failed("redis_away", 0.0)
    silent.failed("redis_timeout", 0.0)
    silent.failed("redis_away", 0.1)  # the connection that was cut for it
    for breaker in (away, silent):
        breaker.connected()
    assert (away.state, silent.state, silent.reason) == ("closed", "open", "redis_timeout")


def test_the_back_off_doubles_up_to_its_bound_and_starts_again():
    breaker = Breaker()
    waits = []
    now = 0.0
    breaker.failed("redis_oom", now)
    for _ in range(6):
        waits.append(breaker.retry_at - now)
        now = breaker.retry_at
        assert breaker.try_probe(now)
        breaker.failed("redis_oom", now)
    assert waits == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0]
    assert breaker.try_probe(breaker.retry_at)
    breaker.succeeded()
    breaker.failed("redis_oom", 100.0)
    assert breaker.retry_at == 100.0 + BACKOFF_FIRST_S


EVENTS = st.one_of(
    st.tuples(st.just("failed"), st.sampled_from([*SERVER_CODES, "redis_wrongtype", "redis_error"])),
    st.tuples(st.sampled_from(["succeeded", "connected", "probe"]), st.none()),
    st.tuples(st.just("wait"), st.floats(0, 3)),
)


@given(st.lists(EVENTS, max_size=60))
def test_whatever_happens(events):
    breaker, now, probing = Breaker(), 0.0, False
    for event, value in events:
        before = breaker.state
        if event == "wait":
            now += value
        elif event == "probe":
            due = breaker.probe_due(now)
            granted = breaker.try_probe(now)
            assert granted == due
            assert not (granted and (probing or before != "open"))
            probing = probing or granted
        elif event == "failed":
            breaker.failed(value, now)
        else:
            getattr(breaker, event)()
        probing = probing and breaker.state == "half_open"
        assert (breaker.state == "half_open") == probing
        assert (breaker.reason == "") == (breaker.state == "closed")
        if breaker.state == "open":
            assert breaker.retry_at <= now + BACKOFF_MAX_S
    # From wherever it got to: once whatever is under way has failed, one good probe closes it.
    if breaker.state != "closed":
        breaker.failed("redis_oom", now)
        assert breaker.try_probe(now + BACKOFF_MAX_S)
        breaker.succeeded()
    assert breaker.state == "closed"
