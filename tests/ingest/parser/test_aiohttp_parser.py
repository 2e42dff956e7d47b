"""aiohttp's parser: what is read from its messages, and what happens where another parser is installed."""

import pytest
from aiohttp import http
from aiohttp.http_parser import HttpRequestParserPy
from ingest_kit import node_settings

from maskline.ingest.node import IngestNode
from maskline.ingest.parser.aiohttp_parser import check_parser, parse_head
from maskline.schemas.errors import ConfigError

LINES = [b"POST /callbacks?a=%20b HTTP/1.1", b"Host: h", b"X: \xc3\xa9 ", b"X:y"]


class AlwaysClosingParser(HttpRequestParserPy):
    """A future parser: it says of every request that its connection ends."""

    def feed_data(self, data, *arguments):
        messages, upgraded, rest = super().feed_data(data, *arguments)
        return [(message._replace(should_close=True), body) for message, body in messages], upgraded, rest


class OtherArgumentsParser(HttpRequestParserPy):
    """A future parser that takes other arguments."""

    def __init__(self):
        super().__init__()


@pytest.mark.parametrize("parser", [http.HttpRequestParser, HttpRequestParserPy], ids=["c", "python"])
def test_a_head_is_parsed(parser, monkeypatch):
    monkeypatch.setattr(http, "HttpRequestParser", parser)
    check_parser()
    head = parse_head(LINES)
    assert head is not None
    assert head[:3] == ("POST", "/callbacks?a=%20b", (1, 1))
    assert head.headers.getall("x") == ["\xe9", "y"]
    assert (head.chunked, head.closes) == (False, False)


@pytest.mark.parametrize(
    "lines",
    [[b"POST /"], [*LINES, b"no header"], [*LINES, b""], [*LINES, b"Y: a\nZ: b"], [LINES[0] + b" "], [b" " + LINES[0]],
     [LINES[0], b" folded"], [*LINES, b"Content-Length: 1", b"Transfer-Encoding: chunked"]],
)  # fmt: skip
def test_lines_that_are_no_head_are_none(lines):
    assert parse_head(lines) is None


@pytest.mark.parametrize("parser", [None, AlwaysClosingParser, OtherArgumentsParser])
async def test_node_does_not_start_with_another_parser(parser, monkeypatch):
    monkeypatch.setattr(http, "HttpRequestParser", parser)
    with pytest.raises(ConfigError, match=r"aiohttp \S+ has another parser"):
        IngestNode(node_settings("redis://127.0.0.1:1", "maskline"))
