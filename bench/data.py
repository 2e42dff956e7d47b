"""Makes the events and requests of the benchmark from a seed: the same bytes for every variant.

The sessions are the simulator's (`console.simulate`): both vocabularies, nulls in every spelling, attributes that come
and go. They are copies of a stock of scripts, so that a million of them are made in seconds.
"""

import hashlib
import hmac
import os
import random
import struct
import time
import uuid
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

from maskline.console.simulate.sessions import SessionOptions, make_session
from maskline.schemas.callback import RawCallback, encode_callback
from maskline.schemas.parameters import FORM_TYPE

SEED: Final = 20_260_105
HOST: Final = "hooks.example.com"
URL: Final = f"http://{HOST}/callbacks"
AUTH_ID: Final = "MAXXXXXXXXXXXXXXXXXX"
AUTH_TOKEN: Final = "a-token-of-nobody"  # noqa: S105 - of nobody
REQUESTS: Final = 4_096
SESSION_EVENTS: Final = 5
"""Numbered events of every session: 20,000 sessions have 100,000."""
SCRIPTS: Final = 512
UNDER_WAY: Final = 2_000
"""Sessions under way at the same time, so the number of events between two of a session."""

_PLACEHOLDER: Final = b"SessionUUID-of-a-script-000000000000"


class NumberedEvent(NamedTuple):
    """One event of one session."""

    session: str
    number: int
    body: bytes
    """The form, as Plivo posts it."""


@cache
def scripts() -> list[list[bytes]]:
    """The bodies of SCRIPTS sessions: the first SESSION_EVENTS numbered events, with a placeholder for the session."""
    found: list[list[bytes]] = []
    for index in count():
        events = [event for event in make_session(SEED, index, SessionOptions()) if event.lane == "status"]
        if len(events) >= SESSION_EVENTS:
            found.append(
                [
                    urlencode(event.parameters | {"SessionUUID": _PLACEHOLDER.decode()}).encode()
                    for event in events[:SESSION_EVENTS]
                ]
            )
        if len(found) == SCRIPTS:
            break
    return found


def session_uuid(index: int, *, salt: int = 0) -> str:
    """A session's UUID, as Plivo makes them: the same for the same index."""
    return str(uuid.UUID(int=random.Random(f"{SEED}:{salt}:{index}").getrandbits(128), version=4))


def numbered(index: int, number: int, name: str) -> NumberedEvent:
    """Event `number` of session `index` (whose name is `name`), its body from the session's script."""
    script = scripts()[index % SCRIPTS]
    template = script[(number - 1) % SESSION_EVENTS]
    body = template.replace(_PLACEHOLDER, name.encode())
    if number > SESSION_EVENTS:
        scripted = (number - 1) % SESSION_EVENTS + 1
        body = body.replace(b"SequenceNumber=%d" % scripted, b"SequenceNumber=%d" % number)
    return NumberedEvent(name, number, body)


def session_events(
    sessions: int, *, out_of_order: bool = True, under_way: int = UNDER_WAY
) -> Iterator[NumberedEvent]:
    """SESSION_EVENTS events of each of `sessions` sessions, in order of arrival.

    `under_way` sessions at a time take turns. Out of order, one event of each session changes places with the next:
    a fifth of all come before one with a smaller number.
    """
    rng = random.Random(SEED)
    orders = [[*range(1, SESSION_EVENTS + 1)]]
    if out_of_order:
        orders = [_swapped(place) for place in range(SESSION_EVENTS - 1)]
    for start in range(0, sessions, under_way):
        block = [
            (index, session_uuid(index), rng.choice(orders))
            for index in range(start, min(start + under_way, sessions))
        ]
        for turn in range(SESSION_EVENTS):
            for index, name, order in block:
                yield numbered(index, order[turn], name)


def _swapped(place: int) -> list[int]:
    order = [*range(1, SESSION_EVENTS + 1)]
    order[place], order[place + 1] = order[place + 1], order[place]
    return order


def stored(event: NumberedEvent) -> bytes:
    """The stream value that ingest would write for the event now."""
    return encode_callback(
        RawCallback("POST", b"", FORM_TYPE, event.body, time.time_ns() // 1_000_000, AUTH_ID)
    )


def sign_v3(body: bytes, nonce: str) -> str:
    """Plivo's V3 signature of a form posted to URL, made without maskline for the peers' environment."""
    pairs = parse_qsl(body.decode(), keep_blank_values=True)
    text = f"{URL}?{''.join(name + value for name, value in sorted(pairs))}.{nonce}"
    return b64encode(hmac.digest(AUTH_TOKEN.encode(), text.encode(), hashlib.sha256)).decode()


def request(body: bytes, nonce: str, signature: str | None = None) -> bytes:
    """A whole request as Plivo sends it, validly signed unless another signature is given."""
    signature = signature or sign_v3(body, nonce)
    head = (
        "POST /callbacks HTTP/1.1\r\n"
        f"Host: {HOST}\r\n"
        "User-Agent: Plivo\r\n"
        "Accept: */*\r\n"
        f"Content-Type: {FORM_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"X-Plivo-Signature-V3: {signature}\r\n"
        f"X-Plivo-Signature-Ma-V3: {signature}\r\n"
        f"X-Plivo-Signature-V3-Nonce: {nonce}\r\n"
        "\r\n"
    )
    return head.encode() + body


def signed_get(body: bytes, nonce: str) -> bytes:
    """The same callback as Plivo sends it by GET, validly signed: its parameters in the query."""
    pairs = sorted(parse_qsl(body.decode(), keep_blank_values=True))
    text = f"{URL}?{'&'.join(map('='.join, pairs))}.{nonce}"
    signature = b64encode(hmac.digest(AUTH_TOKEN.encode(), text.encode(), hashlib.sha256)).decode()
    head = (
        f"GET /callbacks?{body.decode()} HTTP/1.1\r\n"
        f"Host: {HOST}\r\n"
        "User-Agent: Plivo\r\n"
        f"X-Plivo-Signature-V3: {signature}\r\n"
        f"X-Plivo-Signature-V3-Nonce: {nonce}\r\n"
        "\r\n"
    )
    return head.encode()


def odd_request(number: int, body: bytes, nonce: str) -> bytes:
    """A request off ingest's fast path: in turn a GET (200), an unknown path (404) and a wrong signature (403)."""
    match number % 3:
        case 0:
            return signed_get(body, nonce)
        case 1:
            return request(body, nonce).replace(b"POST /callbacks ", b"POST /favicon ", 1)
        case _:
            return request(body, nonce, sign_v3(body, nonce[::-1]))


def write_requests(path: Path, events: Iterable[NumberedEvent], *, odd_every: int = 0) -> Path:
    """Requests for the load generator: each after its length in four bytes. An existing file is kept.

    `odd_every`: every so many, one is an `odd_request`; 0: none.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = random.Random(SEED)
        part = path.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            for number, event in enumerate(events, 1):
                nonce = f"{rng.getrandbits(64):020d}"
                is_odd = odd_every and number % odd_every == 0
                whole = (
                    odd_request(number // odd_every, event.body, nonce)
                    if is_odd
                    else request(event.body, nonce)
                )
                file.write(struct.pack("<I", len(whole)) + whole)
        part.rename(path)
    return path
