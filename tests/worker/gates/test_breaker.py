"""The circuit breaker of a handler: its table, and what holds through any interleaving."""

from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.gates.breaker import (
    FAILURES_MAX,
    GROWTH_MAX_S,
    GROWTH_MIN_S,
    PROBE_FIRST_S,
    PROBE_MAX_S,
    RECOVERED_AT,
    SESSIONS_MIN,
    UNBOUNDED,
    HandlerBreaker,
)


def down_at(now: float = 0.0) -> HandlerBreaker:
    breaker = HandlerBreaker()
    for number in range(FAILURES_MAX):
        breaker.failed(f"session-{number}", now)
    assert breaker.state == "down"
    return breaker


def probed(breaker: HandlerBreaker, now: float, *, fails: bool, chance: float = 0.0) -> None:
    assert breaker.limit(now) == 1
    breaker.queue_began(now)
    if fails:
        breaker.failed("session", now)
    else:
        breaker.succeeded(now)
    breaker.queue_ended(now, chance)


def recovering_at(now: float) -> HandlerBreaker:
    breaker = down_at(now - PROBE_FIRST_S)
    probed(breaker, now, fails=False)
    assert breaker.state == "recovering"
    return breaker


def test_goes_down_at_the_last_of_failures_running() -> None:
    breaker = HandlerBreaker()
    for number in range(FAILURES_MAX - 1):
        breaker.failed(f"session-{number}", 0.0)
    assert breaker.state == "up"
    breaker.failed("session", 0.0)
    assert breaker.state == "down"


def test_success_between_begins_the_count_anew() -> None:
    breaker = HandlerBreaker()
    for _ in range(3):
        for number in range(FAILURES_MAX - 1):
            breaker.failed(f"session-{number}", 0.0)
        breaker.succeeded(0.0)
    assert breaker.state == "up"
    assert breaker.failures == breaker.sessions == 0


def test_few_sessions_never_take_it_down() -> None:
    breaker = HandlerBreaker()
    for number in range(100 * FAILURES_MAX):
        breaker.failed(f"session-{number % (SESSIONS_MIN - 1)}", 0.0)
    assert breaker.state == "up"
    breaker.failed("one more session", 0.0)
    assert breaker.state == "down"


def test_probes_are_single_and_ever_rarer() -> None:
    breaker, now, waits = down_at(), 0.0, []
    for _ in range(10):
        waits.append(breaker.next_growth_s(now))
        assert breaker.limit(now + waits[-1] - 0.01) == 0
        now += waits[-1]
        assert breaker.limit(now) == 1
        breaker.queue_began(now)
        assert breaker.limit(now) - breaker.running == 0
        breaker.failed("session", now)
        breaker.queue_ended(now, 0.0)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_jitter_never_leaves_the_bounds() -> None:
    for chance in (0.0, 0.5, 1.0):
        breaker, now = down_at(), 0.0
        for _ in range(10):
            now += breaker.next_growth_s(now)
            probed(breaker, now, fails=True, chance=chance)
            assert PROBE_FIRST_S <= breaker.next_growth_s(now) <= PROBE_MAX_S


def test_probe_without_an_outcome_is_repeated_after_the_same_time() -> None:
    breaker = down_at()
    for _ in range(5):
        now = breaker.probe_at
        breaker.queue_began(now)
        breaker.queue_ended(now, 0.0)
        assert breaker.next_growth_s(now) == PROBE_FIRST_S


def test_queues_from_before_end_before_the_first_probe() -> None:
    breaker = HandlerBreaker()
    breaker.queue_began(0.0)
    for number in range(FAILURES_MAX):
        breaker.failed(f"session-{number}", 0.0)
    assert breaker.limit(10.0) - breaker.running <= 0
    breaker.queue_ended(10.0, 0.0)
    assert breaker.limit(10.0) == 1
    assert breaker.probes == 0


def test_stale_failures_put_no_probe_off() -> None:
    breaker = down_at()
    for _ in range(300):
        breaker.failed("session", 0.5)
    assert breaker.next_growth_s(0.5) == PROBE_FIRST_S - 0.5


def test_limit_grows_with_successes_and_ends_the_recovery() -> None:
    breaker, now = recovering_at(100.0), 100.0
    seen = [breaker.limit(now)]
    while breaker.state == "recovering":
        now += GROWTH_MIN_S
        for _ in range(breaker.limit(now)):
            breaker.succeeded(now)
        seen.append(breaker.limit(now))
    assert seen == [1, 2, 4, 8, 16, 32, 64, UNBOUNDED]


def test_quick_handler_takes_its_time_to_recover() -> None:
    breaker, now = recovering_at(100.0), 100.0
    while breaker.state == "recovering":
        now += 0.001
        breaker.succeeded(now)
        assert breaker.state == "up" or breaker.limit(now) <= 2 ** ((now - 100.0) / GROWTH_MIN_S)
    assert now - 100.0 >= 7 * GROWTH_MIN_S - 0.001


def test_failures_shrink_the_limit_but_a_tenth_of_them_does_not_stop_it() -> None:
    breaker, now = recovering_at(0.0), 0.0
    for _ in range(60):
        now += 0.1
        breaker.succeeded(now)
    grown = breaker.limit(now)
    breaker.failed("session", now)
    assert breaker.limit(now) < grown
    calls = 0
    while breaker.state == "recovering":
        calls += 1
        now += 0.05
        if calls % 10:
            breaker.succeeded(now)
        else:
            breaker.failed("session", now)
        assert calls < 1_000


def test_handler_with_many_bad_events_recovers_too() -> None:
    breaker, now = recovering_at(0.0), 0.0
    while breaker.state == "recovering":
        now += 1.0
        for number in range(FAILURES_MAX - 1):
            breaker.failed(f"session-{number}", now)
        breaker.succeeded(now)
    assert now <= 7 * GROWTH_MAX_S + 1


def test_goes_down_again_and_probes_no_sooner_than_before() -> None:
    breaker = recovering_at(0.0)
    for number in range(FAILURES_MAX):
        breaker.failed(f"session-{number}", 1.0)
    assert breaker.state == "down"
    assert breaker.next_growth_s(1.0) == 2 * PROBE_FIRST_S


def test_recovery_ends_when_nothing_is_due_and_nothing_runs() -> None:
    breaker = recovering_at(0.0)
    breaker.queue_began(0.1)
    breaker.nothing_due()
    assert breaker.state == "recovering"
    breaker.queue_ended(0.2, 0.0)
    breaker.nothing_due()
    assert breaker.state == "up"
    down = down_at()
    down.nothing_due()
    assert down.state == "down"


def test_end_of_a_pause_begins_a_recovery_or_a_probe() -> None:
    fresh = HandlerBreaker()
    fresh.resumed(5.0)
    assert (fresh.state, fresh.limit(5.0)) == ("recovering", 1)
    down = down_at()
    down.resumed(0.1)
    assert (down.state, down.limit(0.1)) == ("down", 1)
    recovering = recovering_at(0.0)
    recovering.resumed(1_000.0)
    assert (recovering.state, recovering.limit(1_000.0)) == ("recovering", 1)


STEP = st.tuples(
    st.sampled_from(["failed", "succeeded", "began", "ended", "nothing_due", "resumed", "settle"]),
    st.integers(0, 7),
    st.sampled_from([0.0, 0.001, 0.3, 1.0, 31.0]),
    st.floats(0, 1),
)


def _take_step(breaker: HandlerBreaker, what: str, session: str, now: float, chance: float) -> None:
    match what:
        case "failed":
            breaker.failed(session, now)
        case "succeeded":
            breaker.succeeded(now)
        case "began" if breaker.limit(now) > breaker.running:
            breaker.queue_began(now)
        case "ended":
            breaker.queue_ended(now, chance)
        case "nothing_due":
            breaker.nothing_due()
        case "resumed":
            breaker.resumed(now)
        case "settle":
            breaker.settle(now)


@given(st.lists(STEP, max_size=200))
def test_any_interleaving_stays_within_the_bounds(steps: list[tuple[str, int, float, float]]) -> None:
    breaker, now = HandlerBreaker(), 100.0
    failures, sessions = 0, set[str]()
    for what, number, passed_s, chance in steps:
        now += passed_s
        before = breaker.state
        _take_step(breaker, what, f"session-{number}", now, chance)
        if what == "failed":
            failures += 1
            sessions.add(f"session-{number}")
        elif what == "succeeded":
            failures, sessions = 0, set()
            assert breaker.state != "down"
        if breaker.state == "down" and before != "down":
            assert what == "failed"
            assert failures >= FAILURES_MAX
            assert len(sessions) >= SESSIONS_MIN
        if breaker.state == "up" and before != "up":
            failures, sessions = 0, set()
        assert len(breaker._sessions) <= SESSIONS_MIN
        assert breaker.running >= 0
        limit = breaker.limit(now)
        assert limit == UNBOUNDED if breaker.state == "up" else 0 <= limit <= RECOVERED_AT
        if breaker.state == "down":
            assert limit <= 1
            wait_s = breaker.next_growth_s(now)
            assert breaker.running or (wait_s is not None and 0 <= wait_s <= PROBE_MAX_S)
        if (wait_s := breaker.next_growth_s(now)) is not None:
            assert breaker.limit(now + wait_s) > limit or wait_s == 0 or limit >= RECOVERED_AT
