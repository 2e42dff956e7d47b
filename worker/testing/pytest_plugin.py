"""The pytest plugin, which pytest loads by its entry point: the fixture `harness`, and order tables in reports.

    pytestmark = pytest.mark.maskline_handlers("my_fares")

    async def test_fare_is_settled_once(harness: Harness) -> None:
        await harness.feed(callback("SessionSecondPartyHangup", sequence_number=1, amount="0.0170"))
        assert [call.error for call in harness.calls] == [None]

- The modules are chosen by the marker `maskline_handlers`, which takes what `Harness` takes, or by the ini option of
  the same name. The harness is entered and left in the event loop of the test.
- An `async def` test with a harness among its fixtures runs without any plugin for asyncio. One that pytest-asyncio or
  anyio runs is left to it.
- The report of a failed test that has entered a harness, by the fixture or by `async with`, has its order table.

Every project in whose environment maskline is installed loads this module, so it imports nothing of maskline's, and a
test run that uses no harness pays for two sets of hooks.
"""

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Generator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import pytest

from maskline.worker.testing.in_use import HARNESSES, HasOrderTable

if TYPE_CHECKING:
    from maskline.testing import Harness

MARKER: Final = "maskline_handlers"
"""The marker and the ini option that name handler modules."""

HARNESS_MODULE: Final = "maskline.worker.testing.harness"

SECTION: Final = "maskline: what arrived, and what the handlers got"
"""The headline of the order table in a report."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option."""
    parser.addini(
        MARKER,
        "handler modules of the fixture `harness`: dotted names, or paths of .py files from the root directory",
        type="args",
        default=[],
    )


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(*modules, **settings): the handler modules and the settings of the fixture `harness`; "
        "takes what maskline.testing.Harness takes",
    )


@pytest.fixture
def harness(request: pytest.FixtureRequest) -> "Harness":
    """A harness with the handler modules of the marker `maskline_handlers`, or of the ini option of that name.

    It is open while the test runs, which is an `async def`.
    """
    from maskline.testing import Harness  # noqa: PLC0415 - only tests that ask for it pay for it

    root = request.config.rootpath
    if str(root) not in sys.path:
        sys.path.append(str(root))  # as a worker has its working directory
    if (marker := request.node.get_closest_marker(MARKER)) is not None:
        return Harness(*marker.args, **marker.kwargs)
    modules: list[str] = request.config.getini(MARKER)
    if not modules:
        raise pytest.UsageError(
            f'the fixture `harness` needs handler modules: mark the test with @pytest.mark.{MARKER}("my_module"), '
            f"or set {MARKER} in the ini file"
        )
    return Harness(*(str(root / name) if name.endswith(".py") else name for name in modules))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Forget the harnesses of the test before."""
    HARNESSES.clear()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Enter the test's harnesses in its own event loop, whoever runs that."""
    if not isinstance(item, pytest.Function) or not (harnesses := _not_entered(item)):
        return (yield)
    if (place := _async_function(item)) is None:
        pytest.fail("the fixture `harness` is for `async def` tests", pytrace=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*place, _entering(getattr(*place), harnesses))
        return (yield)


@pytest.hookimpl
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test that has a harness, unless somebody else does: pytest itself would refuse it."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test) or not _not_entered(pyfuncitem):
        return None
    names = pyfuncitem._fixtureinfo.argnames  # noqa: SLF001 - as pytest itself, and every such plugin, does
    asyncio.run(test(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Add the order tables of the harnesses that the test has entered to the report of its failure.

    Also where a fixture fails, as one that compares what was billed after the test.
    """
    report: pytest.TestReport = yield
    if report.failed:
        # Of a property test that made its example smaller, the last ones are often alike.
        for table in dict.fromkeys(map(_order_table, HARNESSES)):
            add_section = getattr(report.longrepr, "addsection", None)
            if add_section is not None:
                add_section(SECTION, table)
            else:
                report.sections.append((SECTION, table))
    return report


def _order_table(entered: HasOrderTable) -> str:
    """The order table; a line that says why, where it cannot be drawn: the report must not suffer."""
    try:
        return entered.order_table()
    except Exception as error:  # noqa: BLE001 - whatever it is, the test has failed for another reason
        return f"no order table: {type(error).__name__}"


def _not_entered(item: pytest.Function) -> "list[Harness]":
    """The harnesses among the values of a test's fixtures that nobody has entered yet."""
    if (module := sys.modules.get(HARNESS_MODULE)) is None:
        return []
    values = [value for value in item.funcargs.values() if isinstance(value, module.Harness)]
    return [value for value in values if not value.entered]


def _async_function(item: pytest.Function) -> tuple[Any, str] | None:
    """Where the test's coroutine function stands: object and attribute; None if it has none."""
    if inspect.iscoroutinefunction(item.obj):
        return item, "obj"
    by_hypothesis = getattr(item.obj, "hypothesis", None)
    if by_hypothesis is not None and inspect.iscoroutinefunction(by_hypothesis.inner_test):
        return by_hypothesis, "inner_test"
    return None


def _entering(test: Callable[..., Any], harnesses: "list[Harness]") -> Callable[..., Any]:
    """The coroutine function, with the harnesses open around its body."""

    @functools.wraps(test)
    async def entered(*args: Any, **kwargs: Any) -> Any:
        async with AsyncExitStack() as stack:
            for one in harnesses:
                await stack.enter_async_context(one)
            return await test(*args, **kwargs)

    return entered
