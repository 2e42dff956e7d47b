"""The breaker against every sequence of events: one probe at a time, a bounded back-off, and a way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.ingest.outcome import SERVER_FAILURES
from maskline.ingest.publish.circuit_breaker import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    IN_TIME_MIN,
    CircuitBreaker,
)

SERVER_CODES = sorted(SERVER_FAILURES)


@pytest.mark.parametrize("code", SERVER_CODES)
def test_server_failure_opens_the_breaker(code):
    breaker = CircuitBreaker()
    breaker.failed(code, 10.0)
    assert (breaker.state, breaker.reason) == ("open", code)
    assert not breaker.try_probe(10.0)


@pytest.mark.parametrize(
    "code", ["redis_wrongtype", "redis_error", "redis_moved", "redis_ask", "redis_tryagain"]
)
def test_refusal_of_one_stream_does_not_open_the_breaker(code):
    breaker = CircuitBreaker()
    breaker.failed(code, 10.0)
    assert breaker.state == "closed"


@pytest.mark.parametrize("code", ["redis_wrongtype", ""])
def test_answered_probe_closes_the_breaker(code):
    breaker = CircuitBreaker()
    breaker.failed("redis_oom", 0.0)
    assert breaker.try_probe(BACKOFF_FIRST_S)
    if code:
        breaker.failed(code, 1.0)
    else:
        breaker.succeeded()
    assert (breaker.state, breaker.reason) == ("closed", "")


def test_batch_from_before_it_opened_does_not_close_the_breaker():
    breaker = CircuitBreaker()
    breaker.failed("redis_oom", 0.0)
    breaker.succeeded()
    assert breaker.state == "open"


def test_new_connection_closes_the_breaker_only_after_a_lost_connection():
    away, silent = CircuitBreaker(), CircuitBreaker()
    away.failed("redis_away", 0.0)
    silent.failed("redis_timeout", 0.0)
    silent.failed("redis_away", 0.1)  # the connection that was cut for it
    for breaker in (away, silent):
        breaker.connected()
    assert (away.state, silent.state, silent.reason) == ("closed", "open", "redis_timeout")


def test_backoff_doubles_up_to_its_bound_and_starts_again():
    breaker = CircuitBreaker()
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


def test_late_replies_after_a_timeout_make_the_breaker_slow_until_they_come_in_time():
    breaker = CircuitBreaker()
    breaker.failed("redis_timeout", 0.0)
    breaker.succeeded(0.9)  # from before
    assert breaker.state == "open"
    breaker.succeeded(1.2)
    assert (breaker.state, breaker.reason) == ("slow", "redis_timeout")
    assert not breaker.probe_due(100.0)
    for share in (*[0.9] * (IN_TIME_MIN - 1), 1.1, *[0.9] * (IN_TIME_MIN - 1)):
        breaker.succeeded(share)
        assert breaker.state == "slow"
    breaker.succeeded(0.9)
    assert breaker.state == "closed"


def test_one_reply_clearly_in_time_closes_a_slow_breaker():
    breaker = CircuitBreaker()
    breaker.failed("redis_timeout", 0.0)
    breaker.succeeded(3.0)
    breaker.succeeded(0.1)
    assert (breaker.state, breaker.reason) == ("closed", "")


@pytest.mark.parametrize(("code", "reason"), [("redis_away", "redis_timeout"), ("redis_oom", "redis_oom")])
def test_failure_opens_a_slow_breaker_and_a_new_connection_does_not_close_it(code, reason):
    breaker = CircuitBreaker()
    breaker.failed("redis_timeout", 0.0)
    breaker.succeeded(3.0)
    breaker.failed(code, 10.0)
    breaker.connected()
    assert (breaker.state, breaker.reason) == ("open", reason)


@pytest.mark.parametrize("code", sorted(SERVER_FAILURES - {"redis_timeout"}))
def test_late_replies_after_another_failure_do_not_change_the_breaker(code):
    breaker = CircuitBreaker()
    breaker.failed(code, 0.0)
    breaker.succeeded(2.0)
    assert breaker.state == "open"


EVENTS = st.one_of(
    st.tuples(st.just("failed"), st.sampled_from([*SERVER_CODES, "redis_wrongtype", "redis_error"])),
    st.tuples(st.just("succeeded"), st.sampled_from([0.1, 0.8, 1.5])),
    st.tuples(st.sampled_from(["connected", "probe"]), st.none()),
    st.tuples(st.just("wait"), st.floats(0, 3)),
)


@given(st.lists(EVENTS, max_size=60))
def test_breaker_grants_one_probe_at_a_time_and_can_always_close(events):
    breaker, now, probing = CircuitBreaker(), 0.0, False
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
        elif event == "succeeded":
            breaker.succeeded(value)
        else:
            getattr(breaker, event)()
        probing = probing and breaker.state == "half_open"
        assert (breaker.state == "half_open") == probing
        assert (breaker.reason == "") == (breaker.state == "closed")
        if breaker.state == "open":
            assert breaker.retry_at <= now + BACKOFF_MAX_S
    # From wherever it got to: once whatever is under way has failed, one good probe closes it.
    if breaker.state != "closed":
        if breaker.state != "open":
            breaker.failed("redis_oom", now)
        assert breaker.try_probe(now + BACKOFF_MAX_S)
        breaker.succeeded()
    assert breaker.state == "closed"
