"""Heads by their layout: what fits one is read the same as by the reader of any head."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_kit import Request

from maskline.ingest.fastpath import head_templates
from maskline.ingest.fastpath.head_templates import GROUPS, HeadTemplate, HeadTemplates, is_ordinary
from maskline.ingest.parser.aiohttp_parser import HEAD_END
from maskline.ingest.parser.request_head import RequestHead, read_head

HEAD = Request(body=b"a=b", pairs=[("a", "b")]).encode().removesuffix(b"a=b")


def ordinary_head(head: bytes) -> RequestHead | None:
    """A head, if it is an ordinary one."""
    found = head.find(HEAD_END) + len(HEAD_END)
    if found != len(head):
        return None
    read = read_head(head)
    return read if isinstance(read, RequestHead) and is_ordinary(read) else None


def learned(*given_heads: bytes) -> HeadTemplates:
    layouts = HeadTemplates()
    for head in given_heads:
        ordinary = ordinary_head(head)
        assert ordinary is not None
        for _ in range(head_templates.LEARN_AFTER):
            layouts.learn(ordinary)
    return layouts


@pytest.mark.parametrize(
    "head",
    [
        HEAD.replace(b"POST", b"GET"), HEAD.replace(b"POST", b"post"), HEAD.replace(b"1.1", b"1.0"),
        HEAD.replace(b"Content-Length: 3\r\n", b""), HEAD.replace(b": 3", b": +3"), HEAD.replace(b": 3", b": 3, 3"),
        HEAD.replace(b"Content-Length: 3", b"Content-Length: 3\r\nContent-Length: 3"),
        HEAD.replace(b"Content-Length: 3", b"Transfer-Encoding: chunked"),
        HEAD.replace(b"Content-Length: 3", b"Content-Length: 3\r\nTransfer-Encoding: chunked"),
        *(HEAD[:-2] + line + HEAD_END for line in (
            b"Connection: close", b"Expect: 100-continue",
            b"Content-Encoding: gzip", b"Content-Encoding: x", b"no colon", b"X Y: z", b"X-Folded: a\r\n b", b"X: a\0b",
            b"X: a\nY: b", b"X: a\rY: b",
        )),
        b"\r\n" + HEAD, HEAD + HEAD, HEAD[:-2], HEAD.replace(b"\r\n", b"\n"), b"\r\n\r\n", b"",
        HEAD.replace(b"Content-Length: 3", b"Content-Length: 0\n\nPOST / HTTP/1.1"),
        HEAD.replace(b"Host:", b"X:"),
    ],
)  # fmt: skip
def test_heads_that_are_not_ordinary(head):
    assert ordinary_head(head) is None


def test_a_layout_is_learned_after_a_while():
    layouts = HeadTemplates()
    ordinary = ordinary_head(HEAD)
    for _ in range(head_templates.LEARN_AFTER - 1):
        layouts.learn(ordinary)
        assert layouts.find(HEAD) is None
    layouts.learn(ordinary)
    layout = layouts.find(HEAD)
    assert layout is not None
    match = layout.match(HEAD + b"a=b&whatever")
    assert match.end() == len(HEAD)
    captured = dict(zip(GROUPS, match.group(*layout.groups), strict=True))
    assert (captured["target"], captured["length"], captured["main_signature"]) == (b"/callbacks", b"3", b"")
    assert captured["nonce"] == b"05429567804466091622"


def test_what_is_learned_is_bounded(monkeypatch):
    monkeypatch.setattr(head_templates, "LEARN_AFTER", 1)
    layouts = HeadTemplates()
    for number in range(3 * head_templates.KNOWN_MAX):
        layouts.learn(ordinary_head(HEAD[:-2] + b"X-%d: 1" % number + HEAD_END))
        assert 0 < len(layouts.known) <= head_templates.KNOWN_MAX
    assert layouts.find(HEAD[:-2] + b"X-%d: 2" % number + HEAD_END) is layouts.known[0]
    monkeypatch.setattr(head_templates, "LEARN_AFTER", 2)
    for number in range(3 * head_templates.SEEN_MAX):
        layouts.learn(ordinary_head(HEAD[:-2] + b"Y-%d: 1" % number + HEAD_END))
        assert 0 < len(layouts._seen) <= head_templates.SEEN_MAX


def test_lines_of_one_name_that_is_captured_are_no_layout(monkeypatch):
    monkeypatch.setattr(head_templates, "LEARN_AFTER", 1)
    layouts = HeadTemplates()
    layouts.learn(ordinary_head(HEAD[:-2] + b"X-Plivo-Signature-V3: another" + HEAD_END))
    layouts.learn(ordinary_head(HEAD.replace(b"Host: ", b"Host:")))
    layouts.learn(ordinary_head(HEAD[:-2] + "X-Some: é".encode() + HEAD_END))
    assert not layouts.known


LEARNED = learned(
    HEAD,
    HEAD[:-2] + b"X-Request-Id: 1\r\nUser-Agent: Plivo" + HEAD_END,
    HEAD[:-2] + b"Connection: keep-alive" + HEAD_END,
)
bits = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b"\0", b"\x80", b"\xc3\xa9", b"a", b"0", b"12", b"?a=b", b"#",
     b"Host: x\r\n", b"Connection: close\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n",
     b"Expect: 100-continue\r\n", b"X-Request-Id: 7\r\n", b"keep-alive", b"close", b"gzip", b"HTTP/1.0", b"GET "]
)  # fmt: skip
originals = st.sampled_from([HEAD, HEAD[:-2] + b"X-Request-Id: 1\r\nUser-Agent: Plivo" + HEAD_END,
                             HEAD[:-2] + b"Connection: keep-alive" + HEAD_END])  # fmt: skip


@st.composite
def mutated(draw):
    head = draw(originals)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(
            st.integers(0, len(head))
            | st.sampled_from([m.end() for m in re.finditer(rb"\r\n|: ", head)] or [0])
        )
        cut = draw(st.sampled_from([0, 0, 0, 1, 2, 5, 20]))
        head = head[:at] + draw(bits) + head[at + cut :]
    return head


@given(mutated())
def test_a_head_that_fits_a_layout_is_read_the_same_by_the_parser(head):
    layout = LEARNED.find(head)
    if layout is None:
        return
    match = layout.match(head)
    ordinary = ordinary_head(head[: match.end()])
    assert ordinary is not None
    target, length, signature, main_signature, nonce = (part.decode() for part in match.group(*layout.groups))
    assert (target, int(length)) == (ordinary.target, ordinary.content_length)
    assert ordinary.headers.getall("X-Plivo-Signature-V3", [""]) == [signature]
    assert ordinary.headers.getall("X-Plivo-Signature-Ma-V3", [""]) == [main_signature]
    assert ordinary.headers.getall("X-Plivo-Signature-V3-Nonce", ()) == [nonce]
    assert ordinary.headers.get("Host", "") == "hooks.example.com"
    assert ordinary.headers.get("Content-Type", "") == "application/x-www-form-urlencoded"


@given(st.sampled_from(["Host", "Content-Type", "Connection", "X-Forwarded-Host"]))
def test_what_decides_is_compared_byte_by_byte(name):
    head = HEAD[:-2] + b"Connection: keep-alive\r\nX-Forwarded-Host: h" + HEAD_END
    layouts = learned(head)
    changed = re.sub(rb"%b: [^\r]*" % name.encode(), b"%b: other" % name.encode(), head)
    assert changed != head
    assert layouts.find(head) is not None
    assert layouts.find(changed) is None


def test_a_layout_reads_nothing_before_or_after():
    layout = HeadTemplate(head_templates._pattern(ordinary_head(HEAD)))
    assert layout.match(b" " + HEAD) is None
    assert layout.match(HEAD[:-1]) is None


def test_a_head_that_its_own_layout_does_not_match_takes_no_place(monkeypatch):
    monkeypatch.setattr(head_templates, "LEARN_AFTER", 2)
    layouts = HeadTemplates()
    for _ in range(2):
        layouts.learn(ordinary_head(HEAD))
    for _ in range(50):
        layouts.learn(ordinary_head(HEAD[:-2] + b"X-Tab: a\tb" + HEAD_END))
    assert len(layouts.known) == 1
    assert layouts.find(HEAD) is layouts.known[0]


def test_signatures_may_be_listed_with_blanks(monkeypatch):
    monkeypatch.setattr(head_templates, "LEARN_AFTER", 1)
    layouts = HeadTemplates()
    head = HEAD.replace(b"X-Plivo-Signature-V3: ", b"X-Plivo-Signature-V3: aaa=, ")
    assert head != HEAD
    layouts.learn(ordinary_head(head))
    assert layouts.find(head) is not None
