"""Modules of handlers as files, for the tests of how they are found."""

import sys
import textwrap

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
        path.write_text(textwrap.dedent(source))
        return path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]
