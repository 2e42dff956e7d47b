"""`maskline refused`: what was refused by a real node, listed, shown without numbers, and released once."""

import contextlib
import json
from collections import Counter
from typing import Any

import pytest
from console_kit import NUMBER, PARTITIONS, command
from servers import RedisServer

from maskline.console.redis_reader import RedisReader
from maskline.console.refused import release
from maskline.console.refused.show import NoSuchRefusedCallbackError
from maskline.ingest.auth.signatures import sign_v3
from maskline.ingest.refused import scripts
from maskline.ingest.refused.request import RefusedRequest, encode_refused
from maskline.schemas.callback import decode_callback
from maskline.schemas.errors import ConfigError, RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.parameters import Parameters

AUTH_ID, TOKEN = "MAXXXXXXXXXXXXXXXXXX", "the-right-token"
URL = "https://hooks.example.com/callbacks"
SETTINGS = {
    "MASKLINE_AUTH_TOKENS": f"{AUTH_ID}:{TOKEN}",
    "MASKLINE_PUBLIC_URL": "https://hooks.example.com",
    "MASKLINE_DURABILITY": "memory",
}
"""The mended settings."""
RECEIVED_AT_MS = 1_700_000_000_000


def kept_request(
    number: int, *, token: str = TOKEN, code: str = "signature_wrong", **changes: Any
) -> RefusedRequest:
    """A callback of session `s0` … `s4`, as ingest keeps it."""
    session = f"s{number % 5}"
    pairs = [
        ("EventName", "SessionTimeout"),
        ("SessionUUID", session),
        ("From", NUMBER),
        ("Note", str(number)),
    ]
    body = "&".join(f"{name}={value.replace('+', '%2B')}" for name, value in pairs).encode()
    signature = sign_v3(token, "POST", URL, Parameters([], pairs, None), "n")
    head = (
        "POST /callbacks HTTP/1.1\r\nHost: ingest:8080\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        f"X-Plivo-Signature-V3: {signature}\r\nX-Plivo-Signature-V3-Nonce: n\r\n\r\n"
    )
    values = {
        "key": f"k-{number}",
        "received_at_ms": RECEIVED_AT_MS + number,
        "status": 403,
        "code": code,
        "detail": "no token of ours makes this signature for this URL",
        "peer": "10.0.0.1",
        "client": f"192.0.2.{number % 3}",
        "head": head.encode(),
        "body": body,
    }
    return RefusedRequest(**(values | changes))


class Stage:
    """A namespace with refused callbacks, and commands run on it."""

    def __init__(self, server: RedisServer, namespace: str, monkeypatch: Any, capsys: Any) -> None:
        self.server, self.namespace, self.keys = server, namespace, Keys(namespace)
        self._monkeypatch, self._capsys = monkeypatch, capsys
        with server.client() as client:
            client.hset(self.keys.layout, "partitions", PARTITIONS)

    def keep(self, *requests: RefusedRequest) -> list[str]:
        """Keep them in this order; their IDs."""
        values = [part for each in requests for part in ("192.0.2.1", encode_refused(each))]
        with self.server.client() as client:
            client.eval(scripts._KEEP, 4, *self.keys.refused, 1 << 26, 3_600_000, *values)
            return [entry_id.decode() for entry_id, _ in client.xrange(self.keys.refused.requests)][
                -len(requests) :
            ]

    def run(self, *argv: str, **environ: str) -> tuple[int, Any]:
        """The exit code, and what was printed: read, if it is JSON."""
        self._capsys.readouterr()
        code = command(
            self._monkeypatch, self.server, self.namespace, "refused", *argv, **(SETTINGS | environ)
        )
        out = self._capsys.readouterr().out
        return code, json.loads(out) if "--json" in argv else out

    def kept(self) -> int:
        with self.server.client() as client:
            return int(client.xlen(self.keys.refused.requests))

    def notes(self) -> Counter[str]:
        """The Note of each callback in the streams, which tells them apart."""
        return Counter(body.rpartition("Note=")[2] for body in self.bodies())

    def bodies(self) -> list[str]:
        with self.server.client() as client:
            return [
                decode_callback(fields[b"c"]).body.decode()
                for partition in range(PARTITIONS)
                for _, fields in client.xrange(self.keys.callbacks(partition))
            ]


@pytest.fixture
def stage(redis_server, namespace, monkeypatch, capsys):
    return Stage(redis_server, namespace, monkeypatch, capsys)


FORGED = kept_request(900, token="guessed")


def test_list_groups_by_reason(stage):
    stage.keep(
        *(kept_request(number) for number in range(6)), kept_request(7, code="unknown_account", status=404)
    )
    code, found = stage.run("list", "--json")
    assert code == 0
    wrong, unknown = found["groups"]
    assert (wrong["reason"], wrong["status"], wrong["count"], wrong["clients"]) == (
        "signature_wrong",
        403,
        6,
        3,
    )
    assert (wrong["first_received_at"], wrong["last_received_at"]) == (
        "2023-11-14T22:13:20Z", "2023-11-14T22:13:20.005000Z",
    )  # fmt: skip
    assert (unknown["reason"], unknown["count"]) == ("unknown_account", 1)
    assert len(found["requests"]) == 7
    code, text = stage.run("list")
    assert (code, max(map(len, text.splitlines())) <= 80) == (0, True)
    assert "403 signature_wrong          6" in text
    code, text = stage.run("list", "--reason", "unknown_account")
    assert code == 0
    assert found["requests"][-1]["id"] in text
    assert "s2" in text
    assert "signature_wrong" not in text


def test_status_says_that_some_are_kept(stage):
    def told() -> tuple[int, list[str]]:
        stage.run("list")
        command(stage._monkeypatch, stage.server, stage.namespace, "status", "--json", **SETTINGS)
        status = json.loads(stage._capsys.readouterr().out)
        return status["refused"], [line for line in status["warnings"] if "refused" in line]

    assert told() == (0, [])
    stage.keep(kept_request(1), kept_request(2))
    refused, (warning,) = told()
    assert refused == 2
    assert "2 refused callbacks" in warning
    assert "maskline refused list" in warning


def test_list_of_nothing(stage):
    assert stage.run("list") == (0, "no refused callbacks\n")
    assert stage.run("list", "--json") == (0, {"groups": [], "requests": []})


@pytest.mark.parametrize(
    ("selectors", "numbers"),
    [
        (["--reason", "signature_wrong"], {0, 1}),
        (["--since", "2023-11-14T22:13:20.002"], {2, 3}),
        (["--reason", "nonce_missing", "--since", "2023-11-14T22:13:20.002"], {2, 3}),
        (["--reason", "nonce_missing", "--since", "2023-11-14T22:13:21"], set()),
        (["--all"], {0, 1, 2, 3}),
    ],
)
def test_selection(stage, selectors, numbers):
    ids = stage.keep(
        kept_request(0), kept_request(1),
        kept_request(2, code="nonce_missing"), kept_request(3, code="nonce_missing"),
    )  # fmt: skip
    _, found = stage.run("list", "--json", *selectors)
    assert {row["id"] for row in found["requests"]} == {ids[number] for number in numbers}
    code, report = stage.run("release", "--yes", "--json", *selectors)
    assert (code, report["released"]) == (0, len(numbers))
    assert set(stage.notes()) == set(map(str, numbers))


def test_ids_select_and_unknown_ones_are_counted(stage):
    ids = stage.keep(*(kept_request(number) for number in range(40)))
    code, report = stage.run("release", *ids[3:30], "1-1", "rubbish", ids[3], "--yes", "--json")
    assert (code, report["released"], report["gone"]) == (1, 27, 2)
    assert set(stage.notes()) == set(map(str, range(3, 30)))


def test_what_is_too_old_is_not_listed(stage):
    with stage.server.client() as client:
        client.xadd(
            stage.keys.refused.requests,
            {"s": "a", "r": encode_refused(kept_request(1))},
            id="1600000000000-1",
        )
    assert stage.run("list")[1] == "no refused callbacks\n"
    assert stage.run("release", "1600000000000-1", "--yes", "--json")[1]["gone"] == 1


def test_nothing_selected_and_nobody_to_ask_is_wrong_usage(stage):
    stage.keep(kept_request(1))
    for argv in ([], ["--all", "--reason", "x"], ["--all"]):
        with pytest.raises(ConfigError):
            stage.run("release", *argv)
    with pytest.raises(ConfigError, match="MASKLINE_AUTH_TOKENS"):
        stage.run("release", "--all", "--yes", MASKLINE_AUTH_TOKENS="")
    assert (stage.kept(), stage.bodies()) == (1, [])


def test_show_hides_numbers_and_says_what_verification_says_now(stage):
    (entry_id,) = stage.keep(kept_request(3))
    code, whole = stage.run("show", entry_id, "--json")
    assert code == 0
    assert (whole["reason"], whole["now"], whole["checked_url"]) == ("signature_wrong", "good", URL)
    assert whole["signature_headers"] == ["X-Plivo-Signature-V3", "X-Plivo-Signature-V3-Nonce"]
    assert ["SessionUUID", "s3"] in whole["parameters"]
    _, text = stage.run("show", entry_id, MASKLINE_PUBLIC_URL="https://wrong.example.com")
    assert "signature_wrong" in text
    assert "https://wrong.example.com/callbacks" in text
    for shown in (json.dumps(whole), text):
        assert "num_" in shown
        assert NUMBER.removeprefix("+1") not in shown
    assert stage.run("show", entry_id, "--json", MASKLINE_AUTH_TOKENS="")[1]["now"] is None
    with pytest.raises(NoSuchRefusedCallbackError):
        stage.run("show", "1-1")


def test_bytes_that_are_no_utf_8_are_shown_as_such(stage):
    """One odd request does not keep an operator from seeing the others."""
    head = b"POST /callbacks HTTP/1.1\r\nHost: \xff\r\nX-Plivo-Signature-V3: x\r\nContent-Type: \xff/json\r\n\r\n"
    (odd,) = stage.keep(kept_request(1, head=head, body=b"\xff"))
    code, shown = stage.run("show", odd, "--json", MASKLINE_PUBLIC_URL="")
    assert (code, shown["checked_url"]) == (0, "http://\\udcff/callbacks")
    assert shown["headers"] == {"Host": "\\udcff", "Content-Type": "\\udcff/json"}
    assert stage.run("list", odd, "--json")[0] == stage.run("list", odd)[0] == stage.run("show", odd)[0] == 0


def test_dry_run_changes_nothing(stage):
    stage.keep(kept_request(1), FORGED)
    code, report = stage.run("release", "--all", "--dry-run", "--json")
    assert (code, report) == (
        1,
        {
            "dry_run": True,
            "good": 1,
            "released": 0,
            "released_before": 0,
            "still_refused": {"signature_wrong": 1},
            "gone": 0,
        },
    )
    assert (stage.kept(), stage.bodies()) == (2, [])


def test_only_what_is_good_is_released_and_it_keeps_its_time_of_receipt(stage):
    stage.keep(*(kept_request(number) for number in range(30)), FORGED)
    code, report = stage.run("release", "--all", "--yes", "--json")
    assert (code, report["released"], report["still_refused"]) == (1, 30, {"signature_wrong": 1})
    assert stage.notes() == dict.fromkeys(map(str, range(30)), 1)
    assert stage.kept() == 1
    with stage.server.client() as client:
        for partition in range(PARTITIONS):
            entries = client.xrange(stage.keys.callbacks(partition))
            times = [decode_callback(fields[b"c"]).received_at_ms for _, fields in entries]
            assert times == sorted(times)
            assert all(RECEIVED_AT_MS <= time < RECEIVED_AT_MS + 30 for time in times)
    assert stage.run("release", "--all", "--yes", "--json")[1]["released"] == 0


def test_request_that_is_kept_twice_goes_in_once(stage):
    """As when Redis took a batch whose reply was lost."""
    stage.keep(kept_request(1))
    stage.keep(kept_request(1))
    _, report = stage.run("release", "--all", "--yes", "--json")
    assert (report["good"], report["released"], report["released_before"]) == (2, 1, 1)
    assert (stage.notes(), stage.kept()) == ({"1": 1}, 0)


@pytest.mark.parametrize("step", range(1, 12))
def test_release_that_is_cut_off_is_completed_by_the_next(stage, monkeypatch, step):
    """The connection is cut after each of its round trips in turn."""
    stage.keep(*(kept_request(number) for number in range(7)))
    sent = 0
    send = RedisReader.send

    async def cut_off(self, queries):
        nonlocal sent
        replies = await send(self, queries)
        sent += 1
        if sent == step:
            raise RedisUnavailableError("cut off")
        return replies

    with monkeypatch.context() as patched:
        patched.setattr(RedisReader, "send", cut_off)
        with contextlib.suppress(RedisUnavailableError):  # it may have fewer round trips
            stage.run("release", "--all", "--yes")
    code, report = stage.run("release", "--all", "--yes", "--json")
    assert code == 0
    assert report["good"] == report["released"] + report["released_before"]
    assert stage.notes() == dict.fromkeys(map(str, range(7)), 1)
    assert stage.kept() == 0


def test_releases_at_the_same_time_release_once(stage, monkeypatch):
    """One is overtaken by another one, at each page that it has read."""
    stage.keep(*(kept_request(number) for number in range(7)))
    inner = release._release_page

    async def overtaken(reader, good, report):
        await inner(reader, good, release.Report(dry_run=False))
        await inner(reader, good, report)

    monkeypatch.setattr(release, "_release_page", overtaken)
    _, report = stage.run("release", "--all", "--yes", "--json")
    assert (report["released"], report["released_before"]) == (0, 7)
    assert stage.notes() == dict.fromkeys(map(str, range(7)), 1)


def test_refusal_of_redis_ends_the_release_with_one_line_and_removes_nothing(stage):
    stage.keep(kept_request(1), kept_request(2))
    partition = Keys(stage.namespace)
    with stage.server.client() as client:
        for number in range(PARTITIONS):
            client.set(partition.callbacks(number), "something else")
        with pytest.raises(RedisUnavailableError, match="none is released twice"):
            stage.run("release", "--all", "--yes")
        assert stage.kept() == 2
        for number in range(PARTITIONS):
            client.delete(partition.callbacks(number))
    assert stage.run("release", "--all", "--yes", "--json")[1]["released"] == 2


def test_release_waits_for_the_durability_that_is_asked_for(stage):
    stage.keep(kept_request(1))
    with pytest.raises(RedisUnavailableError, match="replicas:1"):  # there is none
        stage.run(
            "release", "--all", "--yes", MASKLINE_DURABILITY="replicas:1", MASKLINE_PUBLISH_TIMEOUT_MS="4"
        )
    assert stage.kept() == 1
    assert stage.run("release", "--all", "--yes", "--json")[1]["released_before"] == 1


def test_no_means_no(stage, monkeypatch):
    stage.keep(kept_request(1))
    monkeypatch.setattr("maskline.console.refused.release.confirmed", lambda *_, **__: False)
    assert stage.run("release", "--all")[0] == 1
    assert (stage.kept(), stage.bodies()) == (1, [])
