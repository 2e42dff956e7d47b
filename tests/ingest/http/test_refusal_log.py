"""The log of refusals: what it says of one, and how often."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from structlog.testing import capture_logs

from maskline.ingest.auth.dialled_url import DialledUrl
from maskline.ingest.auth.verifier import SIGNATURE_WRONG
from maskline.ingest.http import refusal_log
from maskline.ingest.http.refusal_log import RefusalLog
from maskline.ingest.refusal import Refusal

HEADERS = CIMultiDictProxy(CIMultiDict({"Host": "h"}))
PEER = "192.0.2.1"
UNKNOWN_PATH = Refusal(404, "unknown_path", "callbacks go to /callbacks")


@pytest.fixture
def log() -> RefusalLog:
    return RefusalLog(DialledUrl("", ()))


def test_refusal_with_a_hint_is_logged_though_scanners_cause_the_same_reason(log):
    with capture_logs() as lines:
        for refusal in (UNKNOWN_PATH, UNKNOWN_PATH._replace(hint="strip /hooks")) * 2:
            log.record(refusal, "/hooks/callbacks", HEADERS, PEER)
    assert [(line["reason"], line.get("hint", "")) for line in lines] == [
        ("unknown_path", ""),
        ("unknown_path", "strip /hooks"),
    ]


def test_each_reason_has_one_line_an_interval_which_counts_the_others(log, monkeypatch):
    now = 100.0
    monkeypatch.setattr(refusal_log, "monotonic", lambda: now)
    with capture_logs() as lines:
        for _ in range(3):
            log.record(UNKNOWN_PATH, "/x", HEADERS, PEER)
        log.record(SIGNATURE_WRONG, "/callbacks", HEADERS, PEER)
        now += refusal_log.INTERVAL_S
        log.record(UNKNOWN_PATH, "/x", HEADERS, PEER)
    assert [(line["reason"], line["unlogged_before"]) for line in lines] == [
        ("unknown_path", 0),
        ("signature_wrong", 0),
        ("unknown_path", 2),
    ]
    assert [line["client"] for line in lines] == [PEER] * 3
    assert "MASKLINE_PUBLIC_URL" in lines[1]["hint"]


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("/x/callbacks?From=%2B14155550123", "http://h/x/callbacks"), ("/x#tenant=secret", "http://h/x"), ("", ""),
        ("http://dialled.example/x?a=b", "http://dialled.example/x"),
        ("HTTPS://user:secret@dialled.example/x/@y", "https://dialled.example/x/@y"),
        ("/x" * 500, "http://h" + "/x" * 96),
    ],
)  # fmt: skip
def test_line_has_the_checked_url_without_secrets(log, target, url):
    with capture_logs() as lines:
        log.record(UNKNOWN_PATH, target, HEADERS, PEER)
    assert [line["url"] for line in lines] == [url]
