"""Commands find the `maskline dev` of their directory by itself, and never one that is gone."""

import signal
import subprocess
import sys

import pytest

from maskline.console.running_dev import announced, find_dev_url
from maskline.console.target_arguments import DEFAULT_URL
from maskline.console.trigger import command
from maskline.schemas.settings import Settings

URL = "http://127.0.0.1:8123/callbacks"


def test_url_is_found_while_dev_runs(tmp_path):
    assert find_dev_url(tmp_path / "none") is None
    with announced(URL, tmp_path) as is_found:
        assert is_found
        assert find_dev_url(tmp_path) == URL
        with announced("http://127.0.0.1:8124/callbacks", tmp_path) as other_is_found:
            assert not other_is_found
        assert find_dev_url(tmp_path) == URL
    assert find_dev_url(tmp_path) is None


def test_killed_dev_leaves_nothing_to_find(tmp_path):
    text = (
        "import sys, time\nfrom pathlib import Path\nfrom maskline.console.running_dev import announced\n"
        f"with announced({URL!r}, Path(sys.argv[1])):\n    print('on', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", text, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"on\n"
        assert find_dev_url(tmp_path) == URL
        process.send_signal(signal.SIGKILL)
    assert URL in (tmp_path / "dev.url").read_text()
    assert find_dev_url(tmp_path) is None


def test_where_nothing_can_be_written_nothing_is_found(tmp_path):
    (tmp_path / "file").touch()
    with announced(URL, tmp_path / "file") as is_found:
        assert not is_found
    assert find_dev_url(tmp_path / "file") is None


@pytest.mark.parametrize(
    ("argv", "url"), [([], URL), (["--url", "http://10.0.0.1/callbacks"], "http://10.0.0.1/callbacks")]
)
def test_url_of_the_command_line_comes_first(tmp_path, monkeypatch, argv, url):
    monkeypatch.chdir(tmp_path)
    arguments = command._parser().parse_intermixed_args(["SessionTimeout", "--auth-token", "t", *argv])
    with announced(URL):
        target = command.read_target(arguments, Settings(), "trigger")
    assert str(target.url.with_user(None)) == url
    if not argv:
        assert str(command.read_target(arguments, Settings(), "trigger").url) == DEFAULT_URL
