"""Modules of handlers, made by a test, and what is said of those that are wrong."""

from types import ModuleType

import pytest

from maskline import on
from maskline.events import SessionTimeout
from maskline.schemas.errors import ConfigError
from maskline.worker.api.binding import bind
from maskline.worker.api.loading import load_handlers


def module(**names):
    made = ModuleType("orders")
    vars(made).update(names)
    return made


def names_for(kind, *modules):
    return [handler.name for handler in bind(load_handlers(modules), {})[kind]]


def refused(*modules):
    with pytest.raises(ConfigError) as caught:
        load_handlers(modules)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def handler(kind=SessionTimeout, **options):
    @on(kind, **options)
    async def handle(event, ctx):
        pass

    return handle


A_HANDLER = """
    from maskline.events import SessionTimeout
    from maskline import on

    @on(SessionTimeout)
    async def handle(event, ctx):
        pass
"""
