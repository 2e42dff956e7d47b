"""What the console's tests share: settings for a real server, callbacks in its streams, a real worker."""

from types import ModuleType
from urllib.parse import urlencode

from maskline import on
from maskline.console.main import main
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.events import Event
from maskline.schemas.keys import Keys, partition_of
from maskline.schemas.settings import Settings
from maskline.worker.entries.dead_letter import DEAD_FIELD, DeadLetter, encode_dead_letter

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


def letter_value(**changes):
    """The value of a dead letter's field, with these fields changed."""
    values = {
        "group": "workers", "entry_id": "1-1", "code": "late", "reason": "late",
        "failed_at_ms": 1_700_000_000_000, "callback": b"", "session_uuid": "s1",
    } | changes  # fmt: skip
    return encode_dead_letter(DeadLetter(**values))


def put_letter(server, namespace, partition, **changes):
    """A dead letter; its id."""
    with server.client() as client:
        entry_id = client.xadd(Keys(namespace).dead(partition), {DEAD_FIELD: letter_value(**changes)})
    return f"{partition}-{entry_id.decode()}"


def put_letters(server, namespace, *, count, size=10, first_ms=1_700_000_000_000, **changes):
    """Dead letters over all partitions, one a millisecond; their ids by age."""
    ids = []
    with server.client() as client, client.pipeline(transaction=False) as pipe:
        for at in range(count):
            partition, entry_id = at % PARTITIONS, f"{first_ms + at}-0"
            values = {
                "failed_at_ms": first_ms + at, "callback": bytes(size), "session_uuid": f"s{at % 50}"
            } | changes  # fmt: skip
            pipe.xadd(Keys(namespace).dead(partition), {DEAD_FIELD: letter_value(**values)}, id=entry_id)
            ids.append(f"{partition}-{entry_id}")
        pipe.execute()
    return ids
