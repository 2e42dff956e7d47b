"""`maskline.handlers.archive` in the harness: what it keeps, and what its settings change."""

from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from maskline.handlers.segments.names import TimeRange
from maskline.handlers.segments.reader import ArchiveReader
from maskline.handlers.segments.stores import open_store
from maskline.schemas.callback import RawCallback
from maskline.schemas.errors import ConfigError
from maskline.schemas.parameters import FORM_TYPE
from maskline.testing import Harness, callback

MODULE = "maskline.handlers.archive"
NUMBER = "+14155550123"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKLINE_ARCHIVE_URL", str(tmp_path / "archive"))
    monkeypatch.setenv("MASKLINE_ARCHIVE_SEGMENT_MAX_AGE_MS", "5")
    return tmp_path / "archive"


async def kept_in(folder: Path, *keys: bytes):
    """All records of an archive; every file in it must be a segment."""
    reader = ArchiveReader(open_store(str(folder), write=False), keys)
    files = [await reader.read(path) async for path in reader.paths(TimeRange())]
    assert [file.problem for file in files if file.problem] == []
    return [record for file in files for record in file.records]


def ring(number, **more):
    return callback("SessionFirstPartyRinging", sequence_number=number, from_number=NUMBER, **more)


async def test_every_callback_is_kept_as_it_came_those_included_that_no_handler_gets(folder):
    given = RawCallback("GET", b"EventName=Odd%20One&SessionUUID=s&x=%7e", "", b"", 77, "MA1")
    unread = RawCallback("POST", b"", FORM_TYPE, b"EventName=SessionTimeout&From=%ff", 88, "MA1")
    async with Harness(MODULE) as harness:
        await harness.feed(given, given, ring(1), unread)
        assert [(letter.handler, letter.code) for letter in harness.dead_letters] == [(None, "not_decodable")]
        assert harness.duplicates == 1  # which is not kept: it says nothing new
    kept = await kept_in(folder)
    assert sorted(record.callback.received_at_ms for record in kept)[:2] == [77, 88]
    assert {given, unread} < {record.callback for record in kept}
    assert len(kept) == 3
    assert len({record.entry_id for record in kept}) == 3


async def test_encrypted_with_a_key_and_without_numbers_where_settings_say_so(folder, monkeypatch):
    monkeypatch.setenv("MASKLINE_ARCHIVE_KEY", "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=")
    monkeypatch.setenv("MASKLINE_ARCHIVE_NUMBERS", "tokens")
    async with Harness(MODULE) as harness:
        await harness.feed(ring(1))
    (record,) = await kept_in(folder, b"A" * 32)
    assert b"14155550123" not in record.callback.body
    assert b"From=num_" in record.callback.body
    assert "Ringing" not in repr(record)


async def test_without_a_url_it_does_not_start(monkeypatch):
    monkeypatch.delenv("MASKLINE_ARCHIVE_URL", raising=False)
    with pytest.raises(ConfigError, match="MASKLINE_ARCHIVE_URL is not set"):
        async with Harness(MODULE):
            pass


@pytest.mark.parametrize(
    ("settings", "events"),
    [
        ({"MASKLINE_CONCURRENCY": "4096", "MASKLINE_HANDLERS": MODULE}, []),
        ({"MASKLINE_CONCURRENCY": "1000", "MASKLINE_HANDLERS": MODULE}, ["archive segments will be small"]),
        ({"MASKLINE_CONCURRENCY": "4096", "MASKLINE_HANDLERS": f"{MODULE},x"}, ["archive shares its group"]),
    ],
)
async def test_what_makes_it_slow_is_said_at_the_start(folder, monkeypatch, settings, events):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with capture_logs() as lines:
        async with Harness(MODULE):
            pass
    assert [line["event"] for line in lines] == events


async def test_a_folder_that_takes_nothing_fails_the_handler_and_nothing_is_lost(folder):
    async with Harness(MODULE) as harness:
        (folder / "2026").mkdir(parents=True, exist_ok=True)
        blocked = folder / "2026"
        blocked.rmdir()
        blocked.write_text("in the way")  # also for root, who may write anywhere
        await harness.feed(ring(1))
        assert {type(call.error).__name__ for call in harness.calls} == {"ArchiveError"}
        assert [msgspec.structs.asdict(letter)["handler"] for letter in harness.dead_letters] == ["archive"]
