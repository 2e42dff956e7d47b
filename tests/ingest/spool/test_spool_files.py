"""The spool's files removed, moved or replaced under the process: a new file, nothing lost, nobody else's unlinked."""

import asyncio
import contextlib
import resource
import shutil

import pytest
from delivery_kit import delivering, streams
from ingest_kit import Request, ask, node_settings, until
from ingest_processes import marks
from servers import wait_until

from maskline.ingest.metrics import Metrics
from maskline.ingest.outcome import InFlight
from maskline.ingest.spool.directory import SpoolDirectory, wal_of
from maskline.ingest.spool.errors import SpoolError
from maskline.ingest.spool.spool import Spool
from maskline.ingest.spool.sqlite_file import FileState, SpoolFile
from maskline.runtime.tasks import BackgroundTasks

FILE = "spool-ns-0.db"


@contextlib.asynccontextmanager
async def spooling():
    tasks, in_flight = BackgroundTasks(), InFlight()
    spool = Spool(node_settings("", "ns"), Metrics(), in_flight, tasks)
    spool.tasks = tasks
    await spool.start()
    try:
        yield spool
    finally:
        await spool.stop()
        await tasks.stop()
        assert in_flight.callbacks == 0


def found(directory, copy):
    """What the next start would find, were the process killed now."""
    shutil.rmtree(copy, ignore_errors=True)
    with contextlib.suppress(shutil.Error, FileNotFoundError):  # it changes meanwhile
        shutil.copytree(directory, copy, symlinks=True)
    if not copy.exists():
        return []
    for redis in [path for path in copy.iterdir() if path.is_symlink()]:
        redis.unlink()  # it leads to what is open here
    values = []
    for slot in SpoolDirectory(copy, "ns").leftovers():
        file = SpoolFile(slot.path, 64)
        with contextlib.suppress(SpoolError):  # the file and its log were copied one after the other
            file.open(1 << 30)
            values += [row.value for row in file.page(0, 10_000, 1 << 30)]
        file.close()
        slot.release()
    return sorted(values)


def remove_the_file(directory):
    (directory / FILE).unlink()


def remove_the_log(directory):
    wal_of(directory / FILE).unlink()


def remove_everything(directory):
    shutil.rmtree(directory)


def remove_what_is_in_it(directory):
    for path in directory.iterdir():
        path.unlink()


def move_the_file(directory):
    (directory / FILE).rename(directory.parent / "elsewhere.db")


def move_the_directory(directory):
    directory.rename(directory.parent / "moved")


def put_another_directory(directory):
    directory.rename(directory.parent / "moved")
    directory.mkdir()


def put_a_link_to_another_directory(directory):
    directory.rename(directory.parent / "moved")
    (directory.parent / "other").mkdir()
    directory.symlink_to(directory.parent / "other")


def put_a_copy(directory):
    shutil.copy(directory / FILE, directory / "copy")
    (directory / "copy").rename(directory / FILE)


def put_a_link(directory):
    target = directory.parent / "elsewhere.db"
    (directory / FILE).rename(target)
    (directory / FILE).symlink_to(target)


def put_another_log(directory):
    wal_of(directory / FILE).unlink()
    wal_of(directory / FILE).write_bytes(b"somebody's")


def remove_the_lock(directory):
    (directory / FILE).with_suffix(".lock").unlink()


WAYS = [
    remove_the_file,
    remove_the_log,
    remove_everything,
    remove_what_is_in_it,
    move_the_file,
    move_the_directory,
    put_another_directory,
    put_a_link_to_another_directory,
    put_a_copy,
    put_a_link,
    put_another_log,
    remove_the_lock,
]


@pytest.mark.parametrize("way", WAYS)
async def test_callbacks_after_the_displacement_are_found_by_the_next_start(spool_of_its_own, tmp_path, way):
    async with spooling() as spool:
        way(spool_of_its_own)
        for number in range(3):
            await spool.write("x", 1, b"%d" % number)
            wanted = [b"%d" % it for it in range(number + 1)]
            assert found(spool_of_its_own, tmp_path / "copy") == wanted
        assert spool.error is None
        assert spool.callbacks == 3


@pytest.mark.parametrize("way", WAYS)
async def test_callbacks_before_the_displacement_are_rescued_without_another_callback(
    spool_of_its_own, tmp_path, way, monkeypatch
):
    monkeypatch.setattr("maskline.ingest.spool.file_set.MOVED_GRACE_S", 0.5)
    values = [b"%04d" % number for number in range(2000)]
    async with spooling() as spool:
        await asyncio.gather(*(spool.write("x", 1, value) for value in values))
        way(spool_of_its_own)
        await until(lambda: set(found(spool_of_its_own, tmp_path / "copy")) == set(values))
        await until(lambda: not spool._writer.files.displaced)
        assert spool.callbacks in {2000, 4000}  # twice, where somebody made a copy of the file
        assert spool.holds(1)
        await spool.write("x", 1, b"after")
        assert b"after" in found(spool_of_its_own, tmp_path / "copy")


@pytest.mark.parametrize("way", WAYS)
async def test_stop_right_after_the_displacement_leaves_everything_to_the_next_start(spool_of_its_own, way):
    async with spooling() as spool:
        await spool.write("x", 1, b"a")
        way(spool_of_its_own)
    async with spooling() as spool:
        rows = [row.value for taken in spool.files() for row in await spool.page(taken, 0, 100)]
        assert set(rows) == {b"a"}


@pytest.mark.parametrize("filled", [False, True])
async def test_stop_unlinks_no_file_of_a_later_process(spool_of_its_own, filled):
    async with spooling() as first:
        if filled:
            await first.write("x", 1, b"first")
        remove_everything(spool_of_its_own)
        async with spooling() as second:
            await second.write("x", 1, b"second")
            own = second.files()[0].slot
            paths = [own.path, wal_of(own.path), own.lock_path]
            before = [path.stat().st_ino for path in paths]
            await first.stop()
            assert [path.stat().st_ino for path in paths] == before
            await second.write("x", 1, b"third")


async def test_foreign_file_at_the_path_of_the_log_is_not_unlinked(spool_of_its_own):
    async with spooling() as spool:
        await spool.write("x", 1, b"a")
        put_another_log(spool_of_its_own)
        await spool.write("x", 1, b"b")
    assert wal_of(spool_of_its_own / FILE).read_bytes() == b"somebody's"


async def test_directory_moved_away_and_back_is_used_on(spool_of_its_own, tmp_path):
    async with spooling() as spool:
        await spool.write("x", 1, b"a")
        own = spool.files()[0]
        spool_of_its_own.rename(tmp_path / "moved")
        await until(lambda: own.missing_since is not None)
        assert not spool_of_its_own.exists()
        (tmp_path / "moved").rename(spool_of_its_own)
        await until(lambda: own.missing_since is None)
        await spool.write("x", 1, b"b")
        assert spool.files() == [own]
        assert found(spool_of_its_own, tmp_path / "copy") == [b"a", b"b"]


async def test_callbacks_are_refused_while_no_new_file_can_be_made(spool_of_its_own, tmp_path):
    async with spooling() as spool:
        await spool.write("x", 1, b"a")
        remove_everything(spool_of_its_own)
        spool_of_its_own.write_text("a file where the directory was")
        with pytest.raises(Exception, match="spool_failed"):
            await spool.write("x", 1, b"b")
        assert spool.error is not None
        spool_of_its_own.unlink()
        await until(lambda: spool.error is None)
        await spool.write("x", 1, b"c")
        await until(lambda: set(found(spool_of_its_own, tmp_path / "copy")) >= {b"a", b"c"})


async def test_displaced_file_that_cannot_be_rescued_is_drained(own_redis, namespace, spool_of_its_own):
    settings = node_settings(own_redis.url, namespace)
    own_redis.kill()
    async with delivering(settings) as it:
        assert await it.store_all("s", [b"a", b"b"]) == {""}
        remove_everything(spool_of_its_own)
        spool_of_its_own.write_text("a file where the directory was")
        await until(lambda: it.spool.error is not None or it.metrics.spool_files_gone)
        await asyncio.to_thread(own_redis.start)
        with own_redis.client() as client:
            await until(lambda: streams(client, settings) == [b"a", b"b"])
        await until(lambda: not it.spool.callbacks)


async def test_wrong_count_unlinks_no_callbacks(spool_of_its_own):
    async with spooling() as spool:
        await asyncio.gather(*(spool.write("x", 1, b"%d" % number) for number in range(10)))
        spool.files()[0].file.state = FileState()
    async with spooling() as spool:
        own = spool.files()[0]
        assert spool.callbacks == 10
        rows = await spool.page(own, 0, 10)
        own.file.state = FileState(1, 4096, 1)
        await spool.delete(own, rows[:1])
        assert spool.callbacks == 9  # it was to be shrunk, and was asked


async def test_drainer_survives_a_directory_that_cannot_be_listed(
    own_redis, namespace, spool_of_its_own, tmp_path, monkeypatch
):
    monkeypatch.setattr("maskline.ingest.delivery.drainer.ADOPT_INTERVAL_S", 0.05)
    own_redis.kill()
    async with delivering(node_settings(own_redis.url, namespace)) as it:
        assert await it.store_all("s", [b"a", b"b"]) == {""}
        it.drainer._adopt_at = 0.0
        spool_of_its_own.rename(tmp_path / "moved")
        await until(lambda: it.tasks.failures["spool adoption"] > 1)
        assert it.tasks.failing == {"spool adoption": "SpoolError"}
        (tmp_path / "moved").rename(spool_of_its_own)
        await asyncio.to_thread(own_redis.start)
        await until(lambda: it.metrics.drained == 2)


async def test_drainer_survives_a_moment_without_descriptors(own_redis, namespace, monkeypatch):
    monkeypatch.setattr("maskline.ingest.delivery.drainer.ADOPT_INTERVAL_S", 0.05)
    settings = node_settings(own_redis.url, namespace)
    own_redis.kill()
    async with delivering(settings) as it:
        assert await it.store_all("s", [b"a", b"b"]) == {""}
        it.drainer._adopt_at = 0.0
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            await until(lambda: it.tasks.failures["spool adoption"] > 1)
            assert await it.store_all("s", [b"c"]) == {""}  # what is open is enough
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await asyncio.to_thread(own_redis.start)
        await until(lambda: it.metrics.drained == 3)


async def test_error_in_the_writer_thread_ends_neither_it_nor_the_probe():
    async with spooling() as spool:

        def end():
            raise SystemExit

        with pytest.raises(Exception, match="SystemExit"):
            await spool._writer.call(end)
        await until(lambda: spool.tasks.failures["spool writer"] == 1)
        await spool.write("x", 1, b"a")
        spool._writer.files.probe_room = None  # no function: an error that nobody foresaw
        spool._give_up(spool._new_request("x"))
        await until(lambda: spool.tasks.failures["spool test"])
        del spool._writer.files.probe_room
        await until(lambda: spool.error is None)


async def test_failing_completion_does_not_keep_others_from_their_outcome():
    class Broken:
        def done(self):
            raise OSError("as if its connection were in a state that nobody foresaw")

    async with spooling() as spool:
        spool.write_for(Broken(), "one reason", 1, b"a")
        await spool.write("another", 1, b"b")
        assert spool.tasks.failures == {"spool answers": 1}
        assert not spool.waiting


async def test_file_removed_while_idle_loses_no_callback_at_a_kill(
    own_redis, namespace, run_ingest, spool_of_its_own
):
    process = run_ingest(redis_url=own_redis.url, namespace=namespace)
    port = await asyncio.to_thread(process.port)
    shutil.rmtree(spool_of_its_own)
    own_redis.kill()
    sent = {f"s{number}" for number in range(50)}
    for session in sent:
        request = Request(pairs=[("SessionUUID", session), ("EventName", "e")])
        assert (await ask(port, request)).status == 200
    await asyncio.to_thread(process.kill)
    await asyncio.to_thread(own_redis.start)
    process = run_ingest(redis_url=own_redis.url, namespace=namespace)
    await asyncio.to_thread(process.port)
    with own_redis.client() as client:
        await asyncio.to_thread(
            wait_until,
            lambda: marks(client, node_settings(own_redis.url, namespace)) == sent,
            what="all of them",
        )
