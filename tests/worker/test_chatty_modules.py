"""Handler modules with logging of their own, in real processes: no number of an event gets out of them."""

import os
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from process_kit import callback, fleet
from servers import wait_until

from maskline.worker.poison.sandbox_protocol import SandboxRequest, encode

CHATTY = str(Path(__file__).with_name("chatty_handlers.py"))
TOKEN = re.compile(r"num_[0-9a-f]{10}")
NATIONAL = ("4155550123", "7700900123")


def assert_none(text):
    digits = "".join(filter(str.isdigit, TOKEN.sub("|", text)))
    assert not [number for number in NATIONAL if number[-9:] in digits]


def assert_private(text):
    """No number is in it, and one token for each of the two."""
    assert_none(text)
    assert len(set(TOKEN.findall(text))) == 2


def test_worker_keeps_the_numbers_whatever_its_modules_log_with(redis_server, namespace, tmp_path):
    file = tmp_path / "chatty.log"
    with fleet(redis_server, namespace, tmp_path, partitions=1) as it:
        worker = it.launch(
            handlers=f"maskline.handlers.log,{CHATTY}", CHATTY_FILE=str(file), PYTHONWARNINGS="always"
        )
        for number in (1, 2):
            it.put("session", number)
        wait_until(lambda: "the last 2" in worker.log, within_s=60, what="both events to be handled")
        it.until_drained()
        admin = re.search(r'"admin": "([^"]+)"', worker.log)[1]
        with urllib.request.urlopen(f"{admin}/metrics", timeout=60) as answer:  # noqa: S310 - our own
            metrics = answer.read().decode()
        assert worker.terminate() == 0
        letters = it.dead_letters()
    for text in (
        worker.log,
        file.read_text(),
        *(f"{letter.reason} {letter.traceback}" for letter in letters),
    ):
        digits = "".join(filter(str.isdigit, TOKEN.sub("|", text)))
        assert not [number for number in NATIONAL if number[-9:] in digits]
    assert_private(worker.log)
    assert_private(file.read_text())
    for part in (
        "from_number",
        "users",
        "call from",
        "printed",
        "UserWarning",
        "by default",
        "by basicConfig",
    ):
        assert part in worker.log
    assert len(letters) == 2
    assert re.search(r'^chatty_calls_total\{to="num_[0-9a-f]{10}"\} 4\.0$', metrics, re.MULTILINE)
    assert re.search(r"^process_resident_memory_bytes [0-9.e+]+$", metrics, re.MULTILINE)
    assert NATIONAL[1] not in metrics
    for letter in letters:
        assert TOKEN.search(letter.reason)
        assert_none(f"{letter.reason} {letter.traceback}")


def test_sandbox_keeps_the_numbers_whatever_its_modules_log_with(tmp_path):
    ours, theirs = socket.socketpair()
    request = SandboxRequest(
        modules=(CHATTY,), path=sys.path, log_format="json", log_level="info", token_key=b"a key for this test only",
        handler="chatty_handlers.in_a_thread", entry_id="1700000000000-0", callback=callback("session", 1),
        order="in_order", missing=(), run=0, attempt=1, fencing_token=1, ignored_parameters=frozenset(),
    )  # fmt: skip

    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "maskline.worker.poison.sandbox_main", str(theirs.fileno()), str(os.getpid())],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(theirs.fileno(),), text=True,
            env=os.environ | {"CHATTY_FILE": str(tmp_path / "file")},
        )  # fmt: skip
        ours.sendall(encode(request))
        written, _ = process.communicate(timeout=60)
    assert "the last 1" in written
    assert TOKEN.search(written)
    assert_none(written)
