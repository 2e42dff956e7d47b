"""Environment, event loop and signature check that the Python servers share."""

import asyncio
import hashlib
import hmac
import os
from base64 import b64encode
from collections.abc import Coroutine, Mapping
from typing import Any

PORT = int(os.environ.get("BENCH_PORT", "0"))
REDIS_URL = os.environ.get("BENCH_REDIS_URL", "")
PUBLIC_URL = os.environ.get("BENCH_URL", "")
AUTH_TOKEN = os.environ.get("BENCH_AUTH_TOKEN", "")


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a server on uvloop, as maskline runs."""
    import uvloop  # noqa: PLC0415 - peers that bring their own loop do without

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def verified(headers: Mapping[str, str], pairs: list[tuple[str, str]]) -> bool:
    """Whether the V3 signature of a form is right: as one would write it after reading Plivo's page."""
    nonce = headers.get("X-Plivo-Signature-V3-Nonce", "")
    text = f"{PUBLIC_URL}?{''.join(name + value for name, value in sorted(pairs))}.{nonce}"
    expected = b64encode(hmac.new(AUTH_TOKEN.encode(), text.encode(), hashlib.sha256).digest())
    given = headers.get("X-Plivo-Signature-V3", "").split(",")
    return any(hmac.compare_digest(expected, value.strip().encode()) for value in given)
