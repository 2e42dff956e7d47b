"""Handler modules as files in an empty working directory, for the tests of `maskline check` and `maskline new`."""

import os
import sys

import pytest


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module into an empty working directory; what was imported is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(name, source):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def clean_environment(**changes):
    """The environment without settings of maskline's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MASKLINE_")} | changes
