"""A small server that speaks as S3 does, for the tests: PUT (also conditional), GET, HEAD and LIST over real HTTP.

It is ours, so it shows that requests, conditions, checksums, retries and errors are dealt with as obstore sends them,
not that every S3 is alike. It verifies no signature; it does verify Content-Length and `x-amz-checksum-sha256`.
"""

import asyncio
import base64
import hashlib
import threading
from collections.abc import Callable
from typing import Self
from xml.sax.saxutils import escape

from aiohttp import web

BUCKET = "bucket"


class S3Server:
    """Objects of one bucket, in memory. `fail`: called with method and key; a status that it returns is answered."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.fail: Callable[[str, str], int | None] = lambda _method, _key: None
        self.lose_answers = 0
        """So many PUTs are stored, and their connections dropped before the answer."""
        self.puts = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def environment(self) -> dict[str, str]:
        """What makes obstore use it."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
        }

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_get(f"/{BUCKET}", self._list)
        app.router.add_put(f"/{BUCKET}/{{key:.+}}", self._put)
        app.router.add_get(f"/{BUCKET}/{{key:.+}}", self._get)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    def _failure(self, request: web.Request, key: str) -> web.Response | None:
        status = self.fail(request.method, key)
        return None if status is None else _error(status, "SlowDown")

    async def _put(self, request: web.Request) -> web.StreamResponse:
        key, data = request.match_info["key"], await request.read()
        self.puts += 1
        if (failure := self._failure(request, key)) is not None:
            return failure
        checksum = request.headers.get("x-amz-checksum-sha256")
        if checksum is None or base64.b64decode(checksum) != hashlib.sha256(data).digest():
            return _error(400, "BadDigest")
        if request.headers.get("If-None-Match") == "*" and key in self.objects:
            return _error(412, "PreconditionFailed")
        self.objects[key] = data
        if self.lose_answers:
            self.lose_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.Response(headers={"ETag": _etag(data)})

    async def _get(self, request: web.Request) -> web.StreamResponse:
        key = request.match_info["key"]
        if (failure := self._failure(request, key)) is not None:
            return failure
        if key not in self.objects:
            return _error(404, "NoSuchKey")
        data = self.objects[key]
        headers = {"ETag": _etag(data), "Last-Modified": "Mon, 30 Nov 2026 08:00:00 GMT"}
        return web.Response(body=data, headers=headers, content_type="application/octet-stream")

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if (failure := self._failure(request, "")) is not None:
            return failure
        prefix, delimiter = request.query.get("prefix", ""), request.query.get("delimiter", "")
        after = request.query.get("continuation-token", request.query.get("start-after", ""))
        page = 2  # small, so that every listing has several
        keys = [key for key in sorted(self.objects) if key.startswith(prefix)]
        folders: list[str] = []
        if delimiter:
            parts = [key[len(prefix) :].partition(delimiter) for key in keys]
            folders = sorted({prefix + head + delimiter for head, found, _ in parts if found})
            keys = [key for key, (_, found, _) in zip(keys, parts, strict=True) if not found]
        left = [key for key in keys if key > after]
        shown = left if delimiter else left[:page]
        more = len(shown) < len(left)
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-30T08:00:00.000Z</LastModified>"
            f"<ETag>{escape(_etag(self.objects[key]))}</ETag><Size>{len(self.objects[key])}</Size></Contents>"
            for key in shown
        )
        prefixes = "".join(
            f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in folders
        )
        token = f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>" if more else ""
        text = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}{prefixes}"
            "</ListBucketResult>"
        )
        return web.Response(text=text, content_type="application/xml")


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _error(status: int, code: str) -> web.Response:
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code></Error>'
    return web.Response(status=status, text=text, content_type="application/xml")
