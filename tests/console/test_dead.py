import asyncio
import re
from typing import get_type_hints

import msgspec
import pytest
from console_kit import (
    NUMBER,
    PARTITIONS,
    command,
    dead_letters,
    handler_module,
    publish,
    put_letter,
    put_letters,
    settings_for,
)
from servers import wait_until

from maskline import Reject
from maskline.console.dead.letters import PAGE_LETTERS_MAX, ROUND_TRIP_MAX_BYTES, LetterHead
from maskline.console.dead.show import NoSuchDeadLetterError
from maskline.console.main import main
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.schemas.errors import ConfigError
from maskline.schemas.keys import Keys
from maskline.worker.entries.dead_letter import DeadLetter
from maskline.worker.node import WorkerNode

CONTRACT = {
    "id",
    "session_uuid",
    "event_name",
    "sequence_number",
    "handler",
    "reason",
    "attempts",
    "received_at",
    "failed_at",
}


def refuse(event, _ctx):
    raise Reject(f"no fare for {NUMBER}")


@pytest.fixture
def letters(redis_server, namespace):
    """Four dead letters made by a real worker: rejected, without a session, not decodable, foreign."""
    publish(
        redis_server,
        namespace,
        ("EventName", "SessionParamUpdate"),
        ("SessionUUID", "s1"),
        ("From", NUMBER),
        ("Note", f"call {NUMBER} back\x1b[2J"),
    )
    publish(redis_server, namespace, ("EventName", "SessionTimeout"), ("To", NUMBER))
    publish(redis_server, namespace, body=b"EventName=%ff&From=%2B14155550123")
    publish(redis_server, namespace, fields={"who": f"knows {NUMBER}"})

    async def work():
        worker = WorkerNode(settings_for(redis_server, namespace), handler_modules=[handler_module(refuse)])
        await worker.start()
        try:
            await asyncio.to_thread(wait_until, lambda: dead_letters(redis_server, namespace) == 4)
        finally:
            await worker.stop()

    asyncio.run(work())


@pytest.fixture
def run(redis_server, namespace, monkeypatch, capsys):
    def run(*argv, code=0):
        assert command(monkeypatch, redis_server, namespace, "dead", *argv) == code
        return capsys.readouterr()

    return run


def rows(run, *argv):
    return msgspec.json.decode(run("list", "--json", *argv).out)


def test_empty_list_says_so(run):
    assert rows(run) == []
    assert "no dead letters" in run("list").out


@pytest.mark.usefixtures("letters")
def test_list_has_the_fields_of_the_contract(run):
    listed = rows(run)
    assert len(listed) == 4
    assert all(set(row) >= CONTRACT for row in listed)
    assert [row["failed_at"] for row in listed] == sorted(row["failed_at"] for row in listed)
    by_code = {row["code"]: row for row in listed}
    assert set(by_code) == {"rejected", "no_session_uuid", "not_decodable", "foreign_entry"}
    rejected = by_code["rejected"]
    assert rejected["session_uuid"] == "s1"
    assert rejected["event_name"] == "SessionParamUpdate"
    assert rejected["handler"] == "the handler"
    assert rejected["attempts"] == 1
    assert rejected["sequence_number"] is None
    assert rejected["received_at"] == "2023-11-14T22:13:20Z"
    assert rejected["group"] == "workers"
    assert by_code["no_session_uuid"]["handler"] is None
    assert by_code["foreign_entry"]["received_at"] is None
    assert re.match(r"rejected: no fare for num_\w+\Z", rejected["reason"])

    assert [row["id"] for row in rows(run, "--session", "s1")] == [rejected["id"]]
    assert rows(run, "--limit", "2") == listed[-2:]
    shown = run("list").out
    assert "4 dead letters" in shown
    assert all(row["id"] in shown for row in listed)


@pytest.mark.usefixtures("letters")
def test_show_has_tokens_for_phone_numbers(run):
    for row in rows(run):
        for argv in (["show", row["id"]], ["show", row["id"], "--json"]):
            shown = run(*argv)
            assert row["reason"].split()[-1] in shown.out
            assert row["code"] in shown.out
            assert not re.search(r"4155550123", re.sub(r"\D+", "", shown.out.split("request")[-1]))
            assert "4155550123" not in shown.out + shown.err
            assert "\x1b" not in shown.out


@pytest.mark.usefixtures("letters")
def test_show_has_traceback_and_request(run):
    (row,) = rows(run, "--session", "s1")
    whole = msgspec.json.decode(run("show", row["id"], "--json").out)
    assert set(whole) >= {*row, "traceback", "request", "entry_id"}
    parameters = dict(whole["request"]["parameters"])
    assert parameters["EventName"] == "SessionParamUpdate"
    assert parameters["From"] in parameters["Note"]  # the same token for the same number
    assert parameters["From"] in whole["reason"]
    assert "Reject" in whole["traceback"]
    assert whole["request"]["method"] == "POST"


@pytest.mark.usefixtures("letters")
def test_reveal_shows_numbers_and_is_logged(run):
    (row,) = rows(run, "--session", "s1")
    shown = run("show", row["id"], "--reveal")
    assert f"From = {NUMBER}" in shown.out
    assert "\x1b" not in shown.out
    assert row["id"] in shown.err
    assert "dead letter revealed" in shown.err
    assert "4155550123" not in shown.err


@pytest.mark.usefixtures("letters")
def test_undecodable_callback_is_shown_raw(run):
    by_code = {row["code"]: row["id"] for row in rows(run)}
    whole = msgspec.json.decode(run("show", by_code["not_decodable"], "--json", "--reveal").out)
    assert whole["request"]["body"] == "EventName=%ff&From=%2B14155550123"
    whole = msgspec.json.decode(run("show", by_code["foreign_entry"], "--json", "--reveal").out)
    assert whole["request"] is None
    assert whole["foreign_entry"] == {"who": f"knows {NUMBER}"}


@pytest.mark.parametrize(
    "text", ["0-1-1", "0-1700000000000-0", "x", f"{PARTITIONS + 99}-1-1", "", "-1-1-1", "0-1"]
)
def test_unknown_id_is_an_error(run, text):
    with pytest.raises(NoSuchDeadLetterError, match="there is no dead letter"):
        run("show", "--", text)


def test_wrong_usage_is_a_config_error():
    for argv in (["dead"], ["dead", "bury"], ["dead", "show"], ["dead", "list", "--limit", "0"]):
        with pytest.raises(ConfigError):
            main(argv)


# Many of them


CALLBACK_BYTES = 10_000
MANY = 400


def sent_bytes(server):
    with server.client() as client:
        return client.info("stats")["total_net_output_bytes"]


@pytest.mark.parametrize("limit", [1, 5, 30])
def test_limit_reads_little_more_than_it_shows(run, redis_server, namespace, limit):
    ids = put_letters(redis_server, namespace, count=MANY, size=CALLBACK_BYTES)
    before = sent_bytes(redis_server)
    found = rows(run, "--limit", str(limit))
    read = sent_bytes(redis_server) - before
    assert [row["id"] for row in found] == ids[-limit:]
    assert read < (2 * limit + 2 * PARTITIONS) * CALLBACK_BYTES + 50_000


def test_list_is_in_the_order_of_time_over_all_partitions(run, redis_server, namespace):
    ids = put_letters(redis_server, namespace, count=1_500)
    assert [row["id"] for row in rows(run)] == ids


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        ((), "abc"),
        (("--all",), "abc"),
        (("--handler", "fares"), "ab"),
        (("--event", "SessionTimeout"), "bc"),
        (("--session", "s1"), "ac"),
        (("--reason", "rejected"), "c"),  # the code
        (("--reason", "NO FARE"), "ab"),  # a part of the reason
        (("--handler", "fares", "--session", "s1"), "a"),
        (("--since", "2023-11-14T22:13:21Z"), "bc"),
        (("--until", "2023-11-14T22:13:21"), "a"),
        (("--since", "15m"), ""),
        (("--handler", "nobody"), ""),
    ],
)
def test_letters_are_selected_by_what_they_have(run, redis_server, namespace, argv, wanted):
    at_ms = 1_700_000_000_000  # 2023-11-14T22:13:20Z
    for name, changes in {
        "a": {
            "handler": "fares",
            "session_uuid": "s1",
            "reason": "KeyError: no fare",
            "event_name": "SessionRing",
        },
        "b": {"handler": "fares", "session_uuid": "s2", "reason": "no fare", "event_name": "SessionTimeout"},
        "c": {"handler": "crm", "session_uuid": "s1", "code": "rejected", "event_name": "SessionTimeout"},
    }.items():
        at_ms += 1_000 * (name == "b")
        put_letter(redis_server, namespace, 1, failed_at_ms=at_ms, entry_id=name, **changes)
    listed = rows(run, *argv)
    by_id = {row["id"]: entry_id for row, entry_id in zip(rows(run), "abc", strict=True)}
    assert "".join(by_id[row["id"]] for row in listed) == wanted
    if wanted and argv != ("--all",):
        assert rows(run, *argv, listed[0]["id"]) == listed[:1]
        assert sum(group["count"] for group in groups(run, *argv)) == len(listed)


def test_ids_select_in_their_order(run, redis_server, namespace):
    ids = put_letters(redis_server, namespace, count=40)
    wanted = [ids[30], ids[3], ids[17], ids[3], "1-1-1", "nonsense"]
    assert [row["id"] for row in rows(run, *wanted)] == [ids[30], ids[3], ids[17]]
    assert [row["id"] for row in rows(run, *wanted, "--limit", "2")] == [ids[17], ids[30]]


def test_all_is_not_narrowed(run):
    with pytest.raises(ConfigError, match="--all"):
        run("list", "--all", "--handler", "fares")


def test_waiting_counts_what_stands_behind_a_parked_letter(run, redis_server, namespace):
    keys = Keys(namespace, "workers")
    parked = put_letter(redis_server, namespace, 1, handler="réglage: fares", session_uuid="s1", parked=True)
    skipped = put_letter(redis_server, namespace, 1, handler="crm", session_uuid="s1")
    with redis_server.client() as client:
        client.rpush(keys.retry_queue(1, "réglage: fares", "s1"), *"abc")
        client.rpush(keys.retry_queue(1, "crm", "s1"), "a")  # waits for a retry, not behind the letter
    by_id = {row["id"]: row for row in rows(run)}
    assert (by_id[parked]["waiting"], by_id[parked]["parked"]) == (3, True)
    assert (by_id[skipped]["waiting"], by_id[skipped]["parked"]) == (0, False)
    assert msgspec.json.decode(run("show", parked, "--json").out)["waiting"] == 3
    assert sum(group["waiting"] for group in groups(run)) == 3


# Groups


def groups(run, *argv):
    return msgspec.json.decode(run("groups", "--json", *argv).out)


def test_letters_of_three_bugs_are_three_groups(run, redis_server, namespace):
    for bug, count in ("reject", 10), ("timeout", 20), ("keyerror", 30):
        put_letters(
            redis_server, namespace, count=count, handler="fares", group_key=bug, first_ms=count * 1_000,
            reason=f"{bug}: no fare for {NUMBER}", error_type="KeyError", frame="fares.py:settle",
        )  # fmt: skip
    found = groups(run)
    assert [(group["group_key"], group["count"], group["sessions"]) for group in found] == [
        ("keyerror", 30, 30),
        ("timeout", 20, 20),
        ("reject", 10, 10),
    ]
    first = found[0]
    assert (first["handler"], first["error_type"], first["frame"]) == ("fares", "KeyError", "fares.py:settle")
    assert (first["first_failed_at"], first["last_failed_at"]) == (
        "1970-01-01T00:00:30Z",
        "1970-01-01T00:00:30.029000Z",
    )
    assert "4155550123" not in first["reason"]
    assert [row["id"] for row in rows(run, "--group", "keyerror")][-1] == first["sample_id"]
    shown = run("groups", "--limit", "2").out
    assert "keyerror  fares: KeyError in fares.py:settle" in shown
    assert "reject" not in shown
    assert "4155550123" not in shown


def test_letters_of_older_releases_are_grouped_by_their_reasons(run, redis_server, namespace):
    for at in range(4):
        put_letter(redis_server, namespace, at, handler="fares", reason=f"KeyError: no fare for call {at}")
    put_letter(redis_server, namespace, 1, handler="crm", reason="KeyError: no fare for call 9")
    first, second = groups(run)
    assert (first["count"], second["count"]) == (4, 1)
    assert len(rows(run, "--group", first["group_key"])) == 4


def test_heads_have_the_fields_of_dead_letters():
    fields = get_type_hints(DeadLetter)
    assert {name: fields[name] for name in LetterHead.__struct_fields__} == get_type_hints(LetterHead)


def test_a_session_counts_once_in_each_group(run, redis_server, namespace):
    put_letters(redis_server, namespace, count=30, group_key="b", handler="h", first_ms=5_000)
    put_letters(redis_server, namespace, count=100, group_key="a", handler="h")  # 50 sessions
    assert [group["sessions"] for group in groups(run)] == [50, 30]


def test_groups_are_bounded(run, redis_server, namespace, monkeypatch):
    monkeypatch.setattr("maskline.console.dead.groups.GROUPS_MAX", 3)
    monkeypatch.setattr("maskline.console.dead.groups.SESSIONS_HELD_MAX", 2)
    for at in range(5):
        put_letter(redis_server, namespace, 0, group_key=f"group{at}")
    assert len(groups(run)) == 3
    said = run("groups")
    assert "2 dead letters are not in these" in said.err
    assert "at least 0 sessions" in said.out


def test_limit_counts_the_letters_of_the_session(run, redis_server, namespace):
    ids = put_letters(redis_server, namespace, count=MANY, size=CALLBACK_BYTES)
    assert [row["id"] for row in rows(run, "--session", "s7", "--limit", "3")] == ids[7::50][-3:]
    assert [row["id"] for row in rows(run, "--session", "s7")] == ids[7::50]
    assert rows(run, "--session", "nobody", "--limit", "3") == []


@pytest.mark.parametrize(("count", "size"), [(2_000, 10), (60, 64_000)])
def test_pages_keep_to_their_bytes_whatever_the_size_of_letters(
    redis_server, namespace, run, monkeypatch, count, size
):
    ids = put_letters(redis_server, namespace, count=count, size=size)
    pages = []
    real = PipelinedConnection.send

    def send(self, packed, replies, **named):
        future = real(self, packed, replies, **named)
        future.add_done_callback(lambda done: pages.append(len(msgspec.msgpack.encode(done.result()))))
        return future

    monkeypatch.setattr(PipelinedConnection, "send", send)
    assert [row["id"] for row in rows(run)] == ids
    assert max(pages) < 1.5 * ROUND_TRIP_MAX_BYTES
    assert (
        len(pages)
        < 3 + PARTITIONS * 2 + 2 * count * size / ROUND_TRIP_MAX_BYTES + 2 * count / PAGE_LETTERS_MAX
    )


@pytest.mark.parametrize("odd_ms", [-(10**18), 10**18, 2**62])
def test_letter_with_an_impossible_time_is_shown(run, redis_server, namespace, odd_ms):
    (letter_id,) = put_letters(redis_server, namespace, count=1, failed_at_ms=odd_ms, received_at_ms=odd_ms)
    (row,) = rows(run)
    assert (row["id"], row["received_at"]) == (letter_id, None)
    assert run("show", letter_id).out
