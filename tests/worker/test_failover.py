"""A failover loses the end of the stream: what the worker had read of it is let go of, and what is there is read again.

Every callback here is one that was answered 200 at a durability that the failover kept: where the old primary had it
alone, it comes again, as from a spool.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from process_kit import PATIENCE_S, Fleet, fleet
from replicated_kit import Replicated
from servers import binary_of, wait_until
from system_kit import ingest, post_all

pytestmark = [pytest.mark.server, pytest.mark.storage]

SESSIONS = [f"s{number}" for number in range(12)]


@pytest.fixture
def pair(server_kind: str, tmp_path: Path) -> Iterator[Replicated]:
    it = Replicated(tmp_path, binary=binary_of(server_kind)).start()
    yield it
    it.kill()


@pytest.fixture
def crew(pair: Replicated, namespace: str, tmp_path: Path) -> Iterator[Fleet]:
    with fleet(pair.primary, namespace, tmp_path) as it:
        yield it


def read(crew: Fleet, count: int) -> None:
    worker = crew.workers[-1]
    wait_until(lambda: worker.metric("callbacks_read_total") >= count, within_s=PATIENCE_S, what="reading")


def stop_replication(pair: Replicated, crew: Fleet, *, ahead: bool) -> None:
    """Nothing reaches the replica any more, and the primary's clock may be ahead of its own."""
    pair.wait_in_sync()
    pair.stop_replication()
    if ahead:
        pair.advance_clock(crew.keys.callbacks(number) for number in range(crew.partitions))


def fail_over(pair: Replicated, crew: Fleet) -> None:
    pair.fail_over_at_the_same_address()
    crew.server = pair.primary


def start_with_the_first_event(crew: Fleet) -> None:
    """A worker that has handled and committed event 1 of every session."""
    crew.start()
    for session in SESSIONS:
        crew.put(session, 1)
    crew.until_calls(len(SESSIONS))
    crew.until_drained()


def until_handled(crew: Fleet, expected: list[int]) -> None:
    for session in SESSIONS:
        wait_until(
            lambda session=session: numbers(crew, session) == expected,
            within_s=PATIENCE_S, what=f"all of {session}",
        )  # fmt: skip


def numbers(crew: Fleet, session: str) -> list[int | None]:
    """Numbers of the session's events that were handled, each once, in the order in which they were first."""
    return list(dict.fromkeys(call.number for call in crew.calls(session) if call.outcome == "done"))


@pytest.mark.parametrize("ahead", [False, True], ids=["same clock", "old primary's clock ahead"])
@pytest.mark.parametrize("killed", [False, True], ids=["worker lives", "worker is killed"])
def test_held_event_that_only_the_old_primary_had_is_handled_from_its_copy(
    pair: Replicated, crew: Fleet, ahead: bool, killed: bool
):
    start_with_the_first_event(crew)
    stop_replication(pair, crew, ahead=ahead)
    for session in SESSIONS:
        crew.put(session, 3)
    read(crew, 2 * len(SESSIONS))
    fail_over(pair, crew)
    for session in SESSIONS:
        crew.put(session, 3)
    read(crew, 3 * len(SESSIONS))
    if killed:
        crew.workers[-1].kill()
        crew.start()
    for session in SESSIONS:
        crew.put(session, 2)
        crew.put(session, 4)
    until_handled(crew, [1, 2, 3, 4])
    crew.until_drained()


@pytest.mark.parametrize("ahead", [False, True], ids=["same clock", "old primary's clock ahead"])
def test_no_entry_is_skipped_if_the_new_stream_ends_before_the_last_entry_read(
    pair: Replicated, crew: Fleet, ahead: bool
):
    start_with_the_first_event(crew)
    stop_replication(pair, crew, ahead=ahead)
    for session in SESSIONS:
        crew.put(session, 2)
    crew.until_calls(2 * len(SESSIONS))
    fail_over(pair, crew)
    for session in SESSIONS:
        for number in (2, 3):
            crew.put(session, number)
    until_handled(crew, [1, 2, 3])
    crew.until_drained()
    for number in range(crew.partitions):
        info = crew.client.xinfo_stream(crew.keys.callbacks(number))
        group = crew.group(number)
        assert group is not None
        assert place(group["last-delivered-id"]) <= place(info["last-generated-id"])


def test_primary_that_takes_over_another_s_data_behind_an_open_connection_is_read_again(
    pair: Replicated, crew: Fleet
):
    start_with_the_first_event(crew)
    stop_replication(pair, crew, ahead=True)
    for session in SESSIONS:
        crew.put(session, 3)
    read(crew, 2 * len(SESSIONS))
    crew.client.replicaof("127.0.0.1", pair.replica.port)
    wait_until(
        lambda: crew.client.info("replication")["master_link_status"] == "up",
        within_s=PATIENCE_S, what="the other's data",
    )  # fmt: skip
    crew.client.replicaof("no", "one")
    for session in SESSIONS:
        crew.put(session, 2)
        crew.put(session, 3)
    until_handled(crew, [1, 2, 3])


def test_callback_that_was_spooled_while_its_first_copy_was_held_survives_the_failover_and_a_kill(
    pair: Replicated, crew: Fleet
):
    """MASKLINE_DURABILITY=replicas:1: the primary has a copy that is not confirmed, and the worker waits with it."""
    crew.start()
    with ingest(crew, durability="replicas:1") as url:
        assert post_all(url, SESSIONS, 1) == {200}
        crew.until_calls(len(SESSIONS))
        stop_replication(pair, crew, ahead=True)
        assert post_all(url, SESSIONS, 3) == {200}
        read(crew, len(SESSIONS) + 1)
        fail_over(pair, crew)
        pair.attach_replica()
        streams = [crew.keys.callbacks(number) for number in range(crew.partitions)]
        wait_until(
            lambda: sum(map(crew.client.xlen, streams)) >= 2 * len(SESSIONS),
            within_s=PATIENCE_S, what="the spool to be drained",
        )  # fmt: skip
        crew.workers[-1].kill()
        crew.start()
        assert post_all(url, SESSIONS, 2) == {200}
        until_handled(crew, [1, 2, 3])


def place(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, counter = entry_id.decode().partition("-")
    return int(milliseconds), int(counter)
