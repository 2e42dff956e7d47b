"""How modules of handlers are found, by name and by path, and refused."""

import sys
import textwrap

import pytest
from registry_kit import A_HANDLER, handler, module, names_for, refused

from maskline import Context
from maskline.schemas.events import Event, SessionTimeout
from maskline.worker.api.binding import bind
from maskline.worker.api.loading import load_handlers


def test_module_is_loaded_by_dotted_name_from_the_working_directory(write):
    write("shop/__init__.py", "")
    write("shop/fares.py", A_HANDLER)
    assert names_for(SessionTimeout, "shop.fares") == ["shop.fares.handle"]


def test_module_is_loaded_by_path_and_imports_from_the_working_directory(write):
    write("rates.py", "RATE = 3")
    path = write("elsewhere/settle.py", "from rates import RATE\n" + textwrap.dedent(A_HANDLER))
    assert names_for(SessionTimeout, str(path)) == ["settle.handle"]


def test_one_module_named_twice_handles_once(write):
    path = write("twice.py", A_HANDLER)
    assert names_for(SessionTimeout, "twice", "twice.py", str(path)) == ["twice.handle"]


def test_files_of_one_name_or_of_a_library_s_stay_apart(write):
    paths = [write(f"{folder}/hooks.py", A_HANDLER) for folder in "abc"]
    library = write("d/sched.py", A_HANDLER)
    found = names_for(SessionTimeout, *map(str, paths), str(library))
    assert len(set(found)) == 4
    import sched

    assert hasattr(sched, "scheduler")


def test_a_file_that_failed_leaves_nothing_behind(write):
    path = write("flaky.py", "1 / 0")
    refused(str(path))
    assert "flaky" not in sys.modules
    path.write_text(textwrap.dedent(A_HANDLER) + "#" * 100)
    assert names_for(SessionTimeout, str(path)) == ["flaky.handle"]


def test_no_module_at_all_is_refused():
    assert "there is no handler" in refused()


def test_object_that_claims_every_attribute_is_no_handler():
    class Everything:
        def __getattr__(self, name):
            return ["?"]

    assert len(load_handlers([module(h=handler(), odd=Everything())]).specs) == 1


def test_default_module_loads():
    (spec,) = load_handlers(["maskline.handlers.log"]).specs
    assert spec.name == "maskline.handlers.log.log"
    assert spec.types == (Event,)
    assert Context.__name__ == "Context"


@pytest.mark.parametrize(
    "future", ["from __future__ import annotations", ""], ids=["strings", "evaluated late"]
)
def test_names_for_a_type_checker_alone_keep_no_handler_from_being_loaded(tmp_path, future):
    """Without the import from the future, Python 3.14 evaluates them only when somebody looks, and then they raise."""
    if not future and sys.version_info < (3, 14):
        pytest.skip("before Python 3.14 the module itself would not load")
    path = tmp_path / f"annotated_{bool(future)}.py"
    path.write_text(
        textwrap.dedent(f"""
            {future}
            from typing import TYPE_CHECKING, AsyncIterator
            from maskline import on, resource

            if TYPE_CHECKING:
                from nowhere import Odd

            class Pool: ...

            @resource
            async def pool() -> AsyncIterator[Pool]:
                yield Pool()

            @resource
            async def odd() -> AsyncIterator[Odd]:
                yield 1

            @on.every(name="h")
            async def handle(event: Odd, ctx: Odd, by_type: Pool, odd: Odd) -> None: ...
        """)
    )
    handlers = load_handlers([str(path)])
    (handler,) = bind(handlers, {"pool": "the pool", "odd": "the odd one"})[SessionTimeout]
    assert handler.call.keywords == {"by_type": "the pool", "odd": "the odd one"}
