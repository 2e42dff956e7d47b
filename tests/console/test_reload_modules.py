"""What a reload imports anew, what a change is worth, and that a load that fails leaves everything as it was."""

import asyncio
import os
import sys
from contextlib import aclosing
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from maskline.console.reload.fresh_import import SetAside, default_metrics, sources_compiled
from maskline.console.reload.own_modules import OwnModules
from maskline.console.reload.sources import Source, read_sources, worth_a_reload
from maskline.console.reload.watcher import Watcher
from maskline.schemas.errors import ConfigError
from maskline.worker.api.loading import load_handlers

HANDLER = (
    "from maskline import on\nfrom reloaded_fares.price import PRICE\n@on.every\ndef h(event, ctx): ...\n"
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A package of the user's below the working directory; nothing of it is left afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "reloaded_fares"
    package.mkdir()
    (package / "__init__.py").write_text(HANDLER)
    (package / "price.py").write_text("PRICE = 1\n")
    before = {*sys.modules}
    metrics = default_metrics()
    yield tmp_path
    for name in {*sys.modules} - before:
        del sys.modules[name]
    for metric in default_metrics():
        if metric not in metrics:
            REGISTRY.unregister(metric)


def load(own, name="reloaded_fares"):
    with sources_compiled(own):
        return load_handlers([name])


def test_modules_below_the_working_directory_are_the_users_own(project):
    own = OwnModules(["reloaded_fares", "elsewhere/more.py"])
    load(own)
    assert own.loaded().keys() == {"reloaded_fares", "reloaded_fares.price"}
    assert own.files() == {project / "reloaded_fares/__init__.py", project / "reloaded_fares/price.py"}
    assert own.owns("more", project / "elsewhere/more.py")
    assert not own.owns("installed", project / ".venv/lib/python3.12/site-packages/installed.py")
    assert not own.owns("os", Path(os.__file__).resolve())
    assert not own.owns("maskline.worker.node", project / "maskline/worker/node.py")
    assert own.owns("maskline.handlers.log", project / "maskline/handlers/log.py")


def test_a_package_installed_in_place_is_the_users_own(project, monkeypatch):
    below = project / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    own = OwnModules(["reloaded_fares"])
    load(own)
    assert not own.loaded()
    own.find_folders()
    assert own.loaded().keys() == {"reloaded_fares", "reloaded_fares.price"}


def test_a_change_of_the_same_size_within_a_second_is_seen(project, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    own = OwnModules(["reloaded_fares"])
    price = project / "reloaded_fares/price.py"
    os.utime(price, (1_000_000_000, 1_000_000_000))
    __import__("reloaded_fares")  # as another process would: with bytecode
    assert [*(project / "reloaded_fares/__pycache__").iterdir()]
    price.write_text("PRICE = 2\n")
    os.utime(price, (1_000_000_000, 1_000_000_000))
    SetAside(own, default_metrics())
    load(own)
    assert sys.modules["reloaded_fares"].PRICE == 2


def test_a_module_of_masklines_has_the_users_function_in_its_new_version(project, monkeypatch):
    monkeypatch.setenv("MASKLINE_EXPIRE_FUNCTION", "reloaded_fares.rules:ends")
    monkeypatch.delitem(sys.modules, "maskline.handlers.expire", raising=False)
    rules = project / "reloaded_fares/rules.py"
    rules.write_text("def ends(event, ctx): return 'before'\n")
    own = OwnModules(["maskline.handlers.expire"])
    load(own, "maskline.handlers.expire")
    before = sys.modules["maskline.handlers.expire"]
    assert rules in own.files()

    rules.write_text("def ends(event, ctx): return 'after'\n")
    aside = SetAside(own, default_metrics())
    load(own, "maskline.handlers.expire")
    assert sys.modules["maskline.handlers.expire"].RULES.decider(None, None) == "after"
    aside.put_back()
    assert sys.modules["maskline.handlers.expire"] is before
    assert before.RULES.decider(None, None) == "before"


@pytest.mark.parametrize("broken", ["PRICE = 1 / 0\n", "PRICE = (\n", "import sys; sys.exit()\n", None])
def test_a_load_that_fails_leaves_the_version_before(project, broken):
    own = OwnModules(["reloaded_fares"])
    library_metrics = default_metrics()
    price = project / "reloaded_fares/price.py"
    counting = 'from prometheus_client import Counter\nN = Counter("reloaded_fares_n", "")\n'
    price.write_text("PRICE = 1\n" + counting)
    load(own)
    module, metric = sys.modules["reloaded_fares"], sys.modules["reloaded_fares.price"].N
    metric.inc(3)

    aside = SetAside(own, library_metrics)
    (project / "reloaded_fares/new.py").write_text("")
    (project / "reloaded_fares/__init__.py").write_text("from reloaded_fares import new\n" + HANDLER)
    if broken is None:
        price.unlink()
    else:
        price.write_text(counting + broken)
    with pytest.raises(Exception, match="reloaded_fares"):
        load(own)
    aside.put_back()
    assert own.loaded().keys() == {"reloaded_fares", "reloaded_fares.price"}
    assert sys.modules["reloaded_fares"] is module
    assert module.price is sys.modules["reloaded_fares.price"]
    assert REGISTRY.get_sample_value("reloaded_fares_n_total") == 3


def test_metrics_that_a_module_registers_again_take_the_old_ones_place(project):
    own = OwnModules(["reloaded_fares"])
    library_metrics = default_metrics()
    price = project / "reloaded_fares/price.py"
    counting = 'from prometheus_client import Counter\nPRICE = 1\nN = Counter("reloaded_{}", "", ["{}"])\n'
    price.write_text(counting.format("a", "one") + counting.format("b", "one"))
    load(own)
    old = sys.modules["reloaded_fares.price"].N
    old.labels("x").inc(2)

    aside = SetAside(own, library_metrics)
    price.write_text(counting.format("a", "other"))
    load(own)
    aside.drop()
    sys.modules["reloaded_fares.price"].N.labels("y").inc()
    assert REGISTRY.get_sample_value("reloaded_a_total", {"other": "y"}) == 1
    # Nobody has registered it again, as nobody imports a library again: it stays.
    assert REGISTRY.get_sample_value("reloaded_b_total", {"one": "x"}) == 2


def source(digest):
    return Source((0, 0, 0, 0), digest)


def test_what_a_change_is_worth(tmp_path):
    a, b, new, test = (tmp_path / name for name in ("a.py", "b.py", "new.py", "test_new.py"))
    before = {a: source(b"1"), b: source(b"1")}

    def worth(now, *, failed=False):
        return worth_a_reload(before, now, {a}, failed=failed)

    assert worth(before) == []
    assert worth({a: source(b"2"), b: source(b"1")}) == [a]
    assert worth({b: source(b"1")}) == [a]  # removed
    assert worth({a: source(b"1"), b: source(b"2")}) == []  # nobody imports it
    assert worth({**before, new: source(b"1")}) == [new]
    assert worth({**before, test: source(b"1")}) == []
    assert worth({**before, test: source(b"1")}, failed=True) == [test]
    assert worth(before, failed=True) == []


def test_content_decides_whether_a_file_has_changed(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("1")
    (tmp_path / "a.txt").write_text("1")
    os.utime(file, (1, 1))
    first = read_sources([tmp_path, tmp_path / "gone"], {})
    assert first.keys() == {file}
    os.utime(file, (2, 2))  # touched
    assert worth_a_reload(first, read_sources([tmp_path], first), {file}, failed=False) == []
    known = {file: Source(first[file].stat, b"another")}
    os.utime(file, (1, 1))
    known = {file: Source(read_sources([tmp_path], {})[file].stat, b"another")}
    assert read_sources([tmp_path], known) == known  # not read again
    assert read_sources([tmp_path], known, {file})[file].digest == first[file].digest  # unless it is named


def test_a_package_without_its_init_is_imported_anew_once_it_has_one(project):
    own = OwnModules(["reloaded_fares"])
    load(own)
    (project / "reloaded_fares/tariffs").mkdir()
    init = project / "reloaded_fares/__init__.py"
    init.write_text("from reloaded_fares.tariffs import TARIFF\n" + HANDLER)
    aside = SetAside(own, default_metrics())
    with pytest.raises(ConfigError, match="TARIFF"):
        load(own)
    aside.put_back()
    assert "reloaded_fares.tariffs" not in sys.modules
    (project / "reloaded_fares/tariffs/__init__.py").write_text("TARIFF = 1\n")
    SetAside(own, default_metrics())
    load(own)
    assert sys.modules["reloaded_fares"].TARIFF == 1


async def test_a_folder_that_is_made_while_it_watches_is_watched(project):
    own = OwnModules(["reloaded_fares"])
    load(own)
    watcher = Watcher(own)
    assert watcher.folders() == {project, project / "reloaded_fares"}
    async with asyncio.timeout(60), aclosing(watcher.changes()) as changes:
        until = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)  # it has begun to watch, or looks again by itself
        below = project / "tariffs" / "night"
        below.mkdir(parents=True)
        (project / "tariffs/__pycache__").mkdir()
        while not await until:
            until = asyncio.ensure_future(anext(changes))
        assert watcher.folders() >= {project / "tariffs", below}
        assert project / "tariffs/__pycache__" not in watcher.folders()
        while True:
            file = below / "price.py"
            file.write_text("PRICE = 1\n")
            if file in await anext(changes):
                break
