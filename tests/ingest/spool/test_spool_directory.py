"""Slots: nobody shares one, nothing that was left is overlooked."""

import errno
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest

from maskline.ingest.spool.directory import SpoolDirectory, _describe_unusable, permission_fix
from maskline.schemas.errors import ConfigError


def test_process_acquires_the_lowest_free_slot(tmp_path):
    directory = SpoolDirectory(tmp_path / "not" / "there" / "yet", "ns")
    slots = [directory.acquire_slot() for _ in range(3)]
    assert [slot.number for slot in slots] == [0, 1, 2]
    slots[1].release()
    again = directory.acquire_slot()
    assert (again.number, again.path.name) == (1, "spool-ns-1.db")
    for slot in (slots[0], slots[2], again):
        slot.release(remove=True)
    assert list(directory.path.iterdir()) == []


def test_directory_is_made_for_its_owner_only(tmp_path):
    SpoolDirectory(tmp_path / "spool", "ns").acquire_slot().release()
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0


def test_leftovers_are_files_that_no_process_holds(tmp_path):
    directory = SpoolDirectory(tmp_path, "ns")
    slots = [directory.acquire_slot() for _ in range(5)]
    for slot in slots[:4]:
        slot.path.write_bytes(b"x")
    for slot in slots[1:]:
        slot.release()
    found = list(directory.leftovers())
    assert [slot.number for slot in found] == [1, 2, 3]
    assert list(SpoolDirectory(tmp_path, "ns").leftovers()) == []  # they are held now
    found[0].release()
    assert [slot.number for slot in directory.leftovers()] == [1]


@pytest.mark.parametrize("namespace", ["n", "ns-1", "ns-2", "s"])
def test_files_of_another_namespace_are_not_acquired(tmp_path, namespace):
    slot = SpoolDirectory(tmp_path, "ns").acquire_slot()
    slot.path.write_bytes(b"12345")
    slot.release()
    other = SpoolDirectory(tmp_path, namespace)
    assert list(other.leftovers()) == []
    own = other.acquire_slot()
    assert own.path != slot.path
    assert other.other_bytes(own.path) == 5


def test_other_bytes_count_all_files_but_the_own_and_damaged_ones(tmp_path):
    directory = SpoolDirectory(tmp_path, "ns")
    own = directory.acquire_slot().path
    for name, size in (
        (own.name, 1),
        (f"{own.name}-wal", 10),
        ("spool-ns-1.db", 100),
        ("spool-ns-1.db-wal", 1000),
        ("spool-ns-1.db.damaged-17", 10_000),
        ("something else", 100_000),
    ):
        (tmp_path / name).write_bytes(bytes(size))
    assert directory.other_bytes(own) == 1100
    assert directory.damaged() == ["spool-ns-1.db.damaged-17"]


def test_set_aside_keeps_the_log_with_the_file_and_earlier_damaged_files(tmp_path):
    directory = SpoolDirectory(tmp_path, "ns")
    slot = directory.acquire_slot()
    names = []
    for content in (b"first", b"second"):
        slot.path.write_bytes(content)
        slot.path.with_name(f"{slot.path.name}-wal").write_bytes(content)
        names.append(slot.set_aside())
        assert not slot.path.exists()
    for name, content in zip(names, (b"first", b"second"), strict=True):
        assert (tmp_path / name).read_bytes() == (tmp_path / f"{name}-wal").read_bytes() == content
    assert directory.damaged() == sorted(names)


@pytest.mark.parametrize("path", ["file", "file/below", "/proc/nowhere"])
def test_unusable_directory_is_a_config_error(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="^MASKLINE_SPOOL_DIR: "):
        SpoolDirectory(tmp_path / path, "ns").acquire_slot()


@pytest.mark.parametrize(
    ("owner", "writable", "mend"),
    [
        (None, False, "mkdir -p '/a b' && chown 10001:10002 '/a b'"),
        (0, False, "chown -R 10001:10002 '/a b'"),
        (10001, False, "chmod u+rwx '/a b'"),
        (10001, True, "chown -R 10001:10002 '/a b'"),  # a file in it is another user's
    ],
)
def test_permission_fix_is_the_command_that_grants_access(owner, writable, mend):
    assert permission_fix("'/a b'", owner, 10001, 10002, writable=writable) == mend


def test_read_only_file_system_asks_for_a_volume():
    error = OSError(errno.EROFS, "Read-only file system")
    assert _describe_unusable(Path("spool"), error) == (
        "spool cannot be used: Read-only file system: mount a volume there"
    )


def test_directory_of_another_user_names_the_user_and_the_command():
    base = Path(tempfile.mkdtemp()).resolve()
    directory, redis = base / "spool", base / "link"
    directory.mkdir()
    redis.symlink_to(directory)
    base.chmod(0o755)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65_534)
            mend = f"chown -R 65534:{os.getegid()} {directory}"
        else:
            directory.chmod(0o500)
            mend = f"chmod u+rwx {directory}"
        with pytest.raises(ConfigError) as caught:
            SpoolDirectory(redis, "ns").acquire_slot()
        assert str(caught.value) == (
            f"MASKLINE_SPOOL_DIR: {redis} cannot be used: Permission denied: "
            f"this process is uid {os.geteuid()}; as root: {mend}"
        )
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(base)


def test_link_to_a_directory_works_like_the_directory(tmp_path):
    (tmp_path / "volume").mkdir()
    (tmp_path / "spool").symlink_to(tmp_path / "volume")
    SpoolDirectory(tmp_path / "spool", "ns").acquire_slot()
    assert [path.name for path in (tmp_path / "volume").iterdir()] == ["spool-ns-0.lock"]


def test_slot_removed_while_others_acquire_it_is_never_held_twice(tmp_path):
    bucket_counts: set[int] = set()
    problems: list[int] = []
    guard = threading.Lock()

    def use() -> None:
        directory = SpoolDirectory(tmp_path, "ns")
        for _ in range(200):
            slot = directory.acquire_slot()
            with guard:
                if slot.number in bucket_counts:
                    problems.append(slot.number)
                bucket_counts.add(slot.number)
            with guard:
                bucket_counts.discard(slot.number)
            slot.release(remove=True)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
