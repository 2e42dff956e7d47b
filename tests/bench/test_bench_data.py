"""The data: the same every time, valid, a fifth out of order."""

import struct
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qsl

from plivo.utils.signature_v3 import validate_v3_signature

from bench import data
from bench.parts.worker import LIGHT_ENTRIES, PARTITIONS, light_rounds, stream_function
from bench.parts.worker import MASKLINE as WORKER
from maskline.schemas.callback import decode_callback
from maskline.schemas.decode import decode_event
from maskline.schemas.keys import partition_of


def test_events_are_the_same_every_time():
    assert list(data.session_events(30)) == list(data.session_events(30))


def test_every_session_has_its_events_and_a_fifth_come_early():
    sessions = defaultdict(list)
    for event in data.session_events(400, under_way=100):
        sessions[event.session].append(event.number)
    assert len(sessions) == 400
    assert all(sorted(numbers) == [1, 2, 3, 4, 5] for numbers in sessions.values())
    early = sum(any(later < number for later in numbers[place:]) for numbers in sessions.values()
                for place, number in enumerate(numbers))  # fmt: skip
    assert early == 400 * 5 // 5


def test_events_decode_as_what_they_say():
    for event in data.session_events(data.SCRIPTS):
        decoded = decode_event(decode_callback(data.stored(event))).event
        assert decoded.session_uuid == event.session
        assert decoded.sequence_number == event.number
        assert not decoded.problems


def test_numbers_continue_past_the_script():
    event = data.numbered(3, 12, "name")
    assert dict(parse_qsl(event.body.decode()))["SequenceNumber"] == "12"


def test_many_layouts_occur():
    layouts = Counter(
        tuple(name for name, _ in parse_qsl(event.body.decode())) for event in data.session_events(500)
    )
    assert len(layouts) > 20


def requests_in(path: Path) -> list[bytes]:
    stored, requests = path.read_bytes(), []
    while stored:
        (length,) = struct.unpack_from("<I", stored)
        requests.append(stored[4 : 4 + length])
        stored = stored[4 + length :]
    return requests


def is_signed(request: bytes) -> bool:
    """Whether Plivo's SDK finds the request's V3 signature valid."""
    head, _, body = request.partition(b"\r\n\r\n")
    request_line, *lines = head.decode().split("\r\n")
    method, target, _ = request_line.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    assert int(headers.get("Content-Length", "0")) == len(body)
    return validate_v3_signature(
        method, data.URL + target.removeprefix("/callbacks"), headers["X-Plivo-Signature-V3-Nonce"], data.AUTH_TOKEN,
        headers["X-Plivo-Signature-V3"], dict(parse_qsl(body.decode(), keep_blank_values=True)),
    )  # fmt: skip


def test_requests_are_signed_as_plivo_signs(tmp_path):
    requests = requests_in(data.write_requests(tmp_path / "requests.bin", data.session_events(20)))
    assert len(requests) == 100
    assert all(is_signed(request) for request in requests)


def test_every_hundredth_request_of_the_mix_is_odd_in_one_of_three_ways(tmp_path):
    path = data.write_requests(tmp_path / "mixed.bin", data.session_events(120), odd_every=100)
    requests = requests_in(path)
    targets = Counter(request.partition(b" HTTP/1.1")[0].partition(b"?")[0] for request in requests)
    assert targets == {b"POST /callbacks": 596, b"GET /callbacks": 2, b"POST /favicon": 2}
    callbacks = [request for request in requests if not request.startswith(b"POST /favicon")]
    assert Counter(map(is_signed, callbacks)) == {True: 596, False: 2}


def test_light_rounds_have_so_many_of_every_partition_and_go_on_in_order():
    last = {}
    for entries in islice(light_rounds(), 7):
        partitions = Counter(partition_of(event.session, PARTITIONS) for event in entries)
        assert set(partitions.values()) == {LIGHT_ENTRIES}
        assert len(partitions) == PARTITIONS
        for event in entries:
            assert event.number == last.get(event.session, 0) + 1
            last[event.session] = event.number
    assert stream_function(WORKER)("x").endswith(":callbacks")
