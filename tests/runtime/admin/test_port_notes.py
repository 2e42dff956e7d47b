"""Notes of where admin ports are: whose they are, that they outlive nobody, and that nothing stands in their way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from maskline.runtime.admin import port_notes
from maskline.runtime.admin.port_notes import Note, dialable, read_notes, write_note
from maskline.schemas.settings import Settings

ADDRESSES = (("127.0.0.1", 9090), ("::1", 9090))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The only place for notes."""
    monkeypatch.setattr(port_notes, "_places", lambda: [tmp_path])
    return tmp_path / f"maskline-{os.geteuid()}"


def note(command: str = "ingest", **changes) -> Note:
    return msgspec.structs.replace(Note.of(command, Settings(**changes)), addresses=ADDRESSES)


def test_note_is_read_until_it_is_removed(place):
    left = write_note(note())
    other = write_note(note("worker"))
    assert sorted(read_notes(), key=lambda one: one.command) == [note(), note("worker")]
    left.remove()
    assert read_notes() == [note("worker")]
    other.remove()
    assert read_notes() == []
    assert list(place.iterdir()) == []


def test_note_of_a_killed_process_is_removed(place):
    program = (
        f"import os, signal; from pathlib import Path; from maskline.runtime.admin import port_notes; "
        f"port_notes._places = lambda: [Path({str(place.parent)!r})]; from maskline.schemas.settings import Settings; "
        "port_notes.write_note(port_notes.Note.of('worker', Settings())); "
        "print(len(port_notes.read_notes()), flush=True); "
        "signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "1\n"
        (found,) = read_notes()
        assert found.pid == process.pid
        process.send_signal(signal.SIGSTOP)
        assert read_notes() == [found]  # it lives, whatever it does
    finally:
        process.kill()
        process.communicate()
    left = write_note(note())  # the next one clears up as well
    assert len(list(place.iterdir())) == 1
    left.remove()


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"port": 1, "redis_url": "redis://other"}, True),
        ({"namespace": "other"}, False),
        ({"admin_host": "::"}, False),
        ({"admin_port": 9090}, False),
    ],
)
def test_note_is_told_apart_by_command_and_settings(changes, same):
    for command, group_matters in (("ingest", False), ("worker", True)):
        assert note(command).is_of(command, Settings(**changes)) is same
        assert note(command).is_of(command, Settings(group="other", **changes)) is (
            same and not group_matters
        )
    assert not note("ingest").is_of("worker", Settings())


def test_note_is_written_to_the_first_writable_place(tmp_path, monkeypatch):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / f"maskline-{os.geteuid()}").mkdir()
    (foreign / f"maskline-{os.geteuid()}").chmod(0o777)  # anybody could write notes there
    file = tmp_path / "file"
    file.touch()
    link = tmp_path / "link"
    link.mkdir()
    (link / f"maskline-{os.geteuid()}").symlink_to(foreign)
    good = tmp_path / "good"
    good.mkdir()
    monkeypatch.setattr(port_notes, "_places", lambda: [tmp_path / "none", file, foreign, link, good])
    left = write_note(note())
    assert len(list((good / f"maskline-{os.geteuid()}").iterdir())) == 1
    assert read_notes() == [note()]
    left.remove()
    monkeypatch.setattr(port_notes, "_places", lambda: [tmp_path / "none", foreign])
    with pytest.raises(OSError, match="none"):
        write_note(note())
    assert read_notes() == []


def test_other_files_are_no_notes(place):
    left = write_note(note())
    (place / "a.json").write_text("{")
    (place / "b.json").mkdir()
    (place / "c.json").symlink_to("/dev/zero")
    os.mkfifo(place / "d.json")
    (place / "e").write_text("something else")
    assert read_notes() == [note()]
    left.remove()


def test_dialable_addresses_of_listening_sockets():
    sockets = [("0.0.0.0", 1), ("::", 1, 0, 0), ("10.0.0.7", 1), ("fe80::1", 1, 0, 2)]  # noqa: S104 - no socket
    assert dialable(sockets) == (("127.0.0.1", 1), ("::1", 1), ("10.0.0.7", 1), ("fe80::1%2", 1))
