import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from maskline.console.commands import COMMANDS
from maskline.console.main import main
from maskline.schemas.errors import ConfigError

MASKLINE = Path(sys.executable).with_name("maskline")


def maskline(*argv, cwd=None, **environ):
    return subprocess.run(
        [MASKLINE, *argv],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environ},
        check=False,
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["--nonsense"],
        ["simulate", "--nonsense"],
        ["simulate", "--rate", "fast"],
        ["simulate", "--rate", "-1"],
        ["simulate", "--rate", "nan"],
        ["simulate", "--shuffle", "1.5"],
        ["simulate", "--shuffle", "120%"],
        ["simulate", "--losses", "nan"],
        ["simulate", "--calls", "3-1"],
        ["simulate", "--calls", "0"],
        ["simulate", "--sessions", "0"],
        ["simulate", "--sessions", "-3"],
        ["simulate", "--seed", "x"],
        ["simulate", "--vocabulary", "french"],
        ["simulate", "--url", "ftp://127.0.0.1/callbacks", "--auth-token", "t"],
        ["simulate", "--url", "http:///callbacks", "--auth-token", "t"],
        ["simulate", "--url", "http://h:99999/", "--auth-token", "t"],
        ["simulate", "--expect", "/nonexistent/file", "--auth-token", "t"],
        ["simulate"],
        ["simulate", "--auth-id", "MAUNKNOWN"],
        ["dev", "--exit"],
        ["dev", "now"],
        ["status", "--nonsense"],
        ["status"],
        ["dead"],
        ["dead", "list"],
    ],
)
def test_wrong_usage_is_a_config_error(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        main(argv)
    assert str(error.value)
    assert "\n" not in str(error.value)


def test_simulate_repeats_no_password_of_a_url(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    secret = "s3cr3t-w0rd"
    for url in (
        f"ftp://user:{secret}@127.0.0.1/callbacks",
        f"http://user:{secret}",
        f"http://u:{secret}@h:99999/",
    ):
        with pytest.raises(ConfigError) as error:
            main(["simulate", "--url", url, "--auth-token", "t"])
        assert secret not in str(error.value)
    for more in ([], ["--json"]):
        options = ["--auth-token", "t", "--sessions", "1", "--timeout", "1", "--rate", "0", *more]
        assert main(["simulate", "--url", f"http://user:{secret}@127.0.0.1:1/callbacks", *options]) == 1
        shown = capsys.readouterr()
        assert secret not in shown.out + shown.err
        assert "127.0.0.1:1/callbacks" in shown.out


def test_wrong_usage_exits_2_with_one_line(tmp_path):
    for argv in (["nonsense"], ["simulate", "--rate", "fast"], ["status"]):
        done = maskline(*argv, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("maskline: ")
    done = maskline("simulate", cwd=tmp_path, MASKLINE_PRT="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "MASKLINE_PRT" in done.stderr
    done = maskline("status", cwd=tmp_path, MASKLINE_REDIS_URL="redis://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1


def test_help_and_version_exit_0():
    done = maskline("--version")
    assert (done.returncode, done.stdout) == (0, f"maskline {version('maskline')}\n")
    for argv in ([], ["--help"]):
        done = maskline(*argv)
        assert done.returncode == 0
        assert all(f"  {name}" in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_main_and_a_help(name, capsys):
    assert callable(import_module(COMMANDS[name].module).main)
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"maskline {name}" in capsys.readouterr().out


def test_command_imports_only_what_it_needs():
    code = (
        "import sys, maskline.console.commands, maskline.console.main\n"
        "names = ('aiohttp', 'maskline.console.dev', 'maskline.worker', 'maskline.ingest')\n"
        "print(*(m for m in names if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
