"""A wrong token for a while, then the right one: what was refused is released once, in order, and nothing forged."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from process_kit import PATIENCE_S, Fleet, assert_complete_and_in_order
from servers import wait_until
from system_kit import AUTH_ID, AUTH_TOKEN, ingest, post_all

from maskline.schemas.callback import decode_callback

SESSIONS = [f"s{number}" for number in range(40)]
NUMBERS = range(1, 6)

pytestmark = pytest.mark.server


def release(crew: Fleet) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("maskline")), "refused", "release", "--all", "--yes", "--json"],
        env=crew.environment(auth_tokens=f"{AUTH_ID}:{AUTH_TOKEN}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_streams(crew: Fleet) -> Counter[tuple[str, int]]:
    """Session and number of everything in the streams."""
    found: Counter[tuple[str, int]] = Counter()
    for partition in range(crew.partitions):
        for _, fields in crew.client.xrange(crew.keys.callbacks(partition)):
            values = parse_qs(decode_callback(fields[b"c"]).body.decode())
            found[values["SessionUUID"][0], int(values["SequenceNumber"][0])] += 1
    return found


def test_wrong_token_for_a_while_loses_nothing_and_lets_nothing_forged_in(crew: Fleet):
    with ingest(crew, name="mistaken", auth_tokens=f"{AUTH_ID}:mistaken") as url:
        for number in NUMBERS:
            assert post_all(url, SESSIONS, number) == {403}
        assert post_all(url, SESSIONS, 9, token="guessed") == {403}
    assert crew.client.xlen(crew.keys.refused.requests) == len(SESSIONS) * 6
    killed = release(crew)
    wait_until(lambda: in_streams(crew), within_s=PATIENCE_S, what="the first released callback")
    killed.kill()
    killed.communicate()
    both: list[Any] = [release(crew), release(crew)]
    reports = [json.loads(each.communicate(timeout=PATIENCE_S)[0]) for each in both]
    assert [each.returncode for each in both] == [1, 1]  # the forged ones are still refused
    assert {tuple(report["still_refused"].items()) for report in reports} == {
        (("signature_wrong", len(SESSIONS)),)
    }
    events = [(session, number) for number in NUMBERS for session in SESSIONS]
    assert in_streams(crew) == Counter(events)
    assert crew.client.xlen(crew.keys.refused.requests) == len(SESSIONS)
    crew.start()
    crew.until_drained()
    assert_complete_and_in_order(crew.calls(), events)
    assert {call.order for call in crew.calls()} == {"in_order"}
