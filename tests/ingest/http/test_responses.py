"""Responses: their bytes, with the Date of the second in which they are written."""

import json

import pytest

from maskline.ingest.http import responses
from maskline.ingest.http.responses import OK, OK_AND_CLOSE, refusal_response
from maskline.ingest.refusal import Refusal

REFUSAL = Refusal(403, "signature_wrong", 'no token of ours: "é"')


def test_date_is_that_of_the_second_in_which_a_response_is_written(monkeypatch):
    response = responses.Response(200)
    for now, time in ((1.2, b"00:00:01"), (1.9, b"00:00:01"), (59.9, b"00:00:59")):
        monkeypatch.setattr(responses, "time", lambda now=now: now)
        date = b"Date: Thu, 01 Jan 1970 " + time + b" GMT\r\n"
        assert response.encode() == b"HTTP/1.1 200 OK\r\n" + date + b"Content-Length: 0\r\n\r\n"


def test_last_answer_says_that_the_connection_ends():
    assert b"\r\nConnection: close\r\n" in OK_AND_CLOSE.encode()
    assert b"Connection" not in OK.encode()


@pytest.mark.parametrize("close", [True, False])
def test_refusal_is_json_and_its_head_announces_the_body(close):
    response = refusal_response(REFUSAL, close=close)
    head, _, body = response.encode().partition(b"\r\n\r\n")
    assert json.loads(body) == {"error": "signature_wrong", "detail": REFUSAL.detail}
    assert b"\r\nContent-Type: application/json\r\n" in head
    assert b"\r\nContent-Length: %d" % len(body) in head
    assert (b"\r\nConnection: close" in head) is close
    assert response.encode_head() == head + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("status", "header"), [(405, b"\r\nAllow: GET, POST\r\n"), (503, b"\r\nRetry-After: 1\r\n")]
)
def test_status_brings_its_header(status, header):
    assert header in refusal_response(REFUSAL._replace(status=status), close=False).encode()
    assert header not in refusal_response(REFUSAL, close=False).encode()
