"""aiohttp's parser: what is taken from it, and what happens where it is another one."""

import pytest
from aiohttp.http_parser import HttpRequestParserPy
from ingest_kit import node_settings

from maskline.ingest.node import IngestNode
from maskline.ingest.parser import aiohttp_parser
from maskline.ingest.parser.aiohttp_parser import check_parser, parse_head
from maskline.schemas.errors import ConfigError

LINES = [b"POST /callbacks?a=%20b HTTP/1.1", b"Host: h", b"X: \xc3\xa9 ", b"X:y"]


class Closing(HttpRequestParserPy):
    """A parser to come: it says that each connection ends."""

    def feed_data(self, data, *arguments):
        messages, upgraded, rest = super().feed_data(data, *arguments)
        return [(message._replace(should_close=True), body) for message, body in messages], upgraded, rest


class Narrower(HttpRequestParserPy):
    """Another: it takes other arguments."""

    def __init__(self):
        super().__init__()


@pytest.mark.parametrize("parser", [aiohttp_parser._make, HttpRequestParserPy], ids=["c", "python"])
def test_a_head_is_parsed(parser, monkeypatch):
    monkeypatch.setattr(aiohttp_parser, "_make", parser)
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
def test_what_is_no_head_is_none(lines):
    assert parse_head(lines) is None


@pytest.mark.parametrize("parser", [None, Closing, Narrower])
async def test_with_another_parser_a_node_says_so_rather_than_start(parser, monkeypatch):
    monkeypatch.setattr(aiohttp_parser, "_make", parser)
    with pytest.raises(ConfigError, match=r"aiohttp \S+ has another parser"):
        IngestNode(node_settings("redis://127.0.0.1:1", "maskline"))
