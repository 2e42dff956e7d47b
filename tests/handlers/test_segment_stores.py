"""Where segments are kept: the same tests for a folder, an object store over HTTP, and one in memory."""

import asyncio
import errno
import os
import shutil
import uuid
from pathlib import Path

import pytest
from s3_server import BUCKET, S3Server

from maskline.handlers.segments import stores
from maskline.handlers.segments.errors import ArchiveError, DamagedSegmentError
from maskline.handlers.segments.names import SegmentName, TimeRange
from maskline.handlers.segments.reader import ArchiveReader
from maskline.handlers.segments.record import ArchivedCallback, encode_record
from maskline.handlers.segments.segment import Segment
from maskline.handlers.segments.stores import open_store
from maskline.handlers.segments.writer import SegmentBounds, SegmentWriter
from maskline.schemas.callback import RawCallback
from maskline.schemas.errors import ConfigError

DAY_MS = 86_400_000
NAMES = [SegmentName(1_790_000_000_000 + day * DAY_MS, 1_790_000_000_000, "w", 1) for day in range(3)]
RECORD = encode_record(ArchivedCallback(1, "5-0", RawCallback("POST", b"", "", b"EventName=A", 5, "")))
NO_BOUNDS = SegmentBounds(1 << 30, 60_000, 1 << 30)


@pytest.fixture
def s3(monkeypatch):
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(params=["folder", "file", "s3", "memory"])
def url(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3")
    return {
        "folder": str(tmp_path / "new" / "archive"),
        "file": f"file://{tmp_path}/archive",
        "s3": f"s3://{BUCKET}/some/prefix",
        "memory": f"memory://{uuid.uuid4().hex}",
    }[request.param]


async def paths_of(store, wanted=TimeRange()):  # noqa: B008 - it is frozen
    return [path async for path in ArchiveReader(store).paths(wanted)]


async def test_what_was_put_is_listed_by_time_and_read(url):
    store = open_store(url, write=True)
    for name in reversed(NAMES):
        await store.put(name.path, name.path.encode())
    there = open_store(url, write=False)
    assert await paths_of(there) == [name.path for name in NAMES]
    assert await paths_of(there, TimeRange(since_ms=NAMES[1].closed_ms)) == [name.path for name in NAMES[1:]]
    assert await there.get(NAMES[1].path) == NAMES[1].path.encode()
    with pytest.raises(DamagedSegmentError, match="it is gone"):
        await there.get("2026/11/30/none.segment")


async def test_a_segment_is_written_whole_by_a_writer_and_read_back(url):
    writer = SegmentWriter(open_store(url, write=True), NO_BOUNDS._replace(records_max=3), group="archive")
    await asyncio.gather(*(writer.keep(RECORD, number) for number in range(6)))
    store = open_store(url, write=False)
    paths = await paths_of(store)
    assert len(paths) == 2
    for path in paths:
        name, segment = SegmentName.read(path), Segment(await store.get(path))
        assert (name.writer, name.number) == (segment.head.writer, segment.head.number)
        assert len([*segment.records()]) == 3


# A folder


async def test_a_segment_is_fsynced_before_it_has_its_name_and_then_its_folder(tmp_path, monkeypatch):
    done = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor):
        done.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        real_fsync(descriptor)

    def rename(before, after, **more):
        done.append(("rename", str(after)))
        real_rename(before, after, **more)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    path = NAMES[0].path
    store = open_store(str(tmp_path / "a"), write=True)
    done.clear()
    await store.put(path, b"data")
    folder, name = path.rsplit("/", 1)
    at = tmp_path / "a" / folder
    assert done[-3:] == [
        ("fsync", str(at / f".{name}")),
        ("rename", str(at / name)),
        ("fsync", str(at)),
    ]
    made = [("fsync", str(tmp_path / "a" / one)) for one in ("", folder[:4], folder[:7])]
    assert done[:-3] == made  # each new folder's name
    assert (at / name).stat().st_mode & 0o077 == 0
    done.clear()
    await store.put(NAMES[0]._replace(number=2).path, b"data")
    assert len(done) == 3
    done.clear()
    await open_store(str(tmp_path / "a"), write=True).put(NAMES[0]._replace(number=3).path, b"data")
    assert done[:-3] == made  # who made them may not have come so far


async def test_a_folder_that_vanishes_fails_the_put_and_is_not_begun_anew(tmp_path):
    store = open_store(str(tmp_path / "a"), write=True)
    await store.put(NAMES[0].path, b"data")
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(ArchiveError, match="No such file or directory"):
        await store.put(NAMES[1].path, b"data")
    assert not (tmp_path / "a").exists()


async def test_a_full_disk_fails_the_put_and_leaves_nothing(tmp_path, monkeypatch):
    store = open_store(str(tmp_path), write=True)

    def full(_descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stores.os, "write", full)
    with pytest.raises(ArchiveError, match="No space left on device"):
        await store.put(NAMES[0].path, b"data")
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == []


async def test_what_a_killed_writer_left_is_not_listed_and_removed_later(tmp_path):
    folder = tmp_path / "2026" / "11" / "30"
    folder.mkdir(parents=True)
    old, fresh = folder / ".old.segment", folder / ".fresh.segment"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (1, 1))
    assert await paths_of(open_store(str(tmp_path), write=True)) == []
    assert [one.name for one in folder.iterdir()] == [".fresh.segment"]


def test_a_folder_that_is_not_there_or_is_a_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"there is no archive at {tmp_path}/none"):
        open_store(str(tmp_path / "none"), write=False)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"):
        open_store(str(tmp_path / "file" / "below"), write=True)


async def test_torn_and_foreign_files_are_named_and_passed_over(tmp_path):
    store = open_store(str(tmp_path), write=True)
    writer = SegmentWriter(store, NO_BOUNDS._replace(records_max=1), group="g")
    await writer.keep(RECORD, 1)
    (path,) = await paths_of(store)
    whole = (tmp_path / path).read_bytes()
    torn = path.replace("-000001.", "-000002.")
    (tmp_path / torn).write_bytes(whole[:-1])
    (tmp_path / path).with_name("notes.txt").write_text("hello")
    reader = ArchiveReader(store)
    found = [await reader.read(one) async for one in reader.paths(TimeRange())]
    assert [(len(one.records), one.problem) for one in found] == [
        (1, ""),
        (0, "it is torn, or was changed"),
        (0, "it has not the name of a segment"),
    ]


async def test_what_is_no_file_or_gone_is_named_and_passed_over(tmp_path):
    store = open_store(str(tmp_path), write=True)
    await SegmentWriter(store, NO_BOUNDS._replace(records_max=1), group="g").keep(RECORD, 1)
    (whole,) = await paths_of(store)
    folder, link, pipe, gone = (whole.replace("-000001.", f"-00000{number}.") for number in range(2, 6))
    (tmp_path / folder).mkdir()
    (tmp_path / link).symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / pipe)
    (tmp_path / gone).touch()
    reader = ArchiveReader(store)
    found = []
    async for path in reader.paths(TimeRange()):
        (tmp_path / gone).unlink(missing_ok=True)
        found.append(await reader.read(path))
    assert [(len(one.records), one.problem) for one in found] == [
        (1, ""),
        (0, "it is no file"),
        (0, stores.GONE),
        (0, "it is no file"),
        (0, stores.GONE),
    ]
    shutil.rmtree(tmp_path / whole[:10])
    assert await store.names(whole[:10]) == []


# An object store


async def test_a_put_whose_answer_was_lost_counts_once(s3):
    s3.lose_answers = 1
    store = open_store(f"s3://{BUCKET}", write=True)
    await store.put(NAMES[0].path, b"data")
    assert (s3.puts, [*s3.objects.values()]) == (2, [b"data"])


async def test_an_object_of_somebody_else_is_never_overwritten(s3):
    s3.objects[NAMES[0].path] = b"theirs"
    store = open_store(f"s3://{BUCKET}", write=True)
    with pytest.raises(ArchiveError, match="there already, with other bytes"):
        await store.put(NAMES[0].path, b"ours")
    assert s3.objects[NAMES[0].path] == b"theirs"


async def test_an_object_store_that_refuses_fails_the_put_in_one_line(s3, monkeypatch):
    monkeypatch.setattr(stores, "RETRIES_MAX", 1)
    store = open_store(f"s3://{BUCKET}", write=True)
    s3.fail = lambda _method, _key: 503
    with pytest.raises(ArchiveError, match="was not stored") as caught:
        await store.put(NAMES[0].path, b"data")
    assert "\n" not in str(caught.value)
    s3.fail = lambda _method, _key: 403
    for attempt in (store.put(NAMES[0].path, b"data"), store.names("2026/11/30"), paths_of(store)):
        with pytest.raises(ArchiveError):
            await attempt
    s3.fail = lambda _method, _key: None
    await store.put(NAMES[0].path, b"data")
    assert [*s3.objects] == [NAMES[0].path]


@pytest.mark.parametrize("url", ["s3://", "gs://user@bucket/x", "ftp://host/x", "s3://b?x=1", "http://a/b"])
def test_urls_that_no_archive_can_have_are_wrong_settings(url):
    from maskline.schemas.settings import load_settings

    with pytest.raises(ConfigError, match="MASKLINE_ARCHIVE_URL"):
        load_settings({"MASKLINE_ARCHIVE_URL": url})


def test_keys_are_read_from_base64_and_never_shown():
    from maskline.schemas.settings import SETTINGS, load_settings

    key = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="
    loaded = load_settings({"MASKLINE_ARCHIVE_KEY": f"{key},{'Qg' * 21 + 'Q='}"})
    assert loaded.archive_key[0] == b"A" * 32
    assert len(loaded.archive_key) == 2
    assert "QUFB" not in repr(loaded)
    assert "AAAA" not in repr(loaded)
    (setting,) = (one for one in SETTINGS if one.field == "archive_key")
    assert setting.show(loaded.archive_key) == "***,***"
    for wrong in ("QUFB", "not base64!", key + "A"):
        with pytest.raises(ConfigError, match="MASKLINE_ARCHIVE_KEY must be 32 bytes in base64") as caught:
            load_settings({"MASKLINE_ARCHIVE_KEY": wrong})
        assert wrong not in str(caught.value)
