"""What the console's tests share: settings for a real server, callbacks in its streams, a real worker."""

from types import ModuleType
from urllib.parse import urlencode

from maskline import on
from maskline.console.main import main
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.events import Event
from maskline.schemas.keys import Keys, partition_of
from maskline.schemas.settings import Settings

PARTITIONS = 4
NUMBER = "+14155550123"


def settings_for(server, namespace, **changes):
    values = {
        "redis_url": server.url,
        "namespace": namespace,
        "partitions": PARTITIONS,
        "admin_port": 0,
        "handlers": (),
        "lease_ttl_ms": 2000,
    }
    return Settings(**(values | changes))


def publish(server, namespace, *pairs, fields=None, body=None):
    """Put one callback into its stream as ingest does, or the raw `fields`."""
    parameters = dict(pairs)
    partition = partition_of(parameters.get("SessionUUID", ""), PARTITIONS)
    if fields is None:
        encoded = urlencode(pairs).encode() if body is None else body
        callback = RawCallback(
            "POST", b"", "application/x-www-form-urlencoded", encoded, 1_700_000_000_000, "MA"
        )
        fields = {CALLBACK_FIELD: encode_callback(callback)}
    with server.client() as client:
        client.xadd(Keys(namespace).callbacks(partition), fields)
    return partition


def handler_module(handle):
    module = ModuleType("handlers_of_the_test")

    @on(Event, name="the handler", retries=0)
    async def handler(event, ctx):
        handle(event, ctx)

    module.handler = handler
    return module


def command(monkeypatch, server, namespace, *argv, **environ):
    """Run a command line of `maskline` in this process; its exit code."""
    for name, value in {
        "MASKLINE_REDIS_URL": server.url,
        "MASKLINE_NAMESPACE": namespace,
        **environ,
    }.items():
        monkeypatch.setenv(name, value)
    return main(list(argv))


def dead_letters(server, namespace):
    with server.client() as client:
        return sum(client.xlen(Keys(namespace).dead(number)) for number in range(PARTITIONS))
