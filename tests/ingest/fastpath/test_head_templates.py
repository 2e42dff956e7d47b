"""Heads by a template: what a template captures is what the parser reads."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ingest_kit import Request

from maskline.ingest.fastpath import head_templates
from maskline.ingest.fastpath.head_templates import GROUPS, HeadTemplates, fits_fast_path
from maskline.ingest.parser.aiohttp_parser import HEAD_END
from maskline.ingest.parser.request_head import RequestHead, read_head

HEAD = Request(body=b"a=b", pairs=[("a", "b")]).encode().removesuffix(b"a=b")


def fast_head(head: bytes) -> RequestHead | None:
    """The head as the parser reads it, if it fits the fast path."""
    end = head.find(HEAD_END) + len(HEAD_END)
    if end != len(head):
        return None
    read = read_head(head)
    return read if isinstance(read, RequestHead) and fits_fast_path(read) else None


def learned(*given_heads: bytes) -> HeadTemplates:
    templates = HeadTemplates()
    for head in given_heads:
        parsed = fast_head(head)
        assert parsed is not None
        for _ in range(head_templates.LEARN_AFTER):
            templates.learn(parsed)
    return templates


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
def test_heads_that_do_not_fit_the_fast_path(head):
    assert fast_head(head) is None


def test_template_is_compiled_once_its_head_has_come_often():
    templates = HeadTemplates()
    parsed = fast_head(HEAD)
    for _ in range(head_templates.LEARN_AFTER - 1):
        templates.learn(parsed)
        assert templates.find(HEAD) is None
    templates.learn(parsed)
    template = templates.find(HEAD)
    assert template is not None
    match = template.match(HEAD + b"a=b&c=d")
    assert match.end() == len(HEAD)
    captured = dict(zip(GROUPS, match.group(*template.groups), strict=True))
    assert (captured["target"], captured["length"], captured["main_signature"]) == (b"/callbacks", b"3", b"")
    assert captured["nonce"] == b"05429567804466091622"


def test_templates_and_candidates_are_bounded(monkeypatch):
    monkeypatch.setattr(head_templates, "LEARN_AFTER", 1)
    templates = HeadTemplates()
    for number in range(3 * head_templates.HEAD_TEMPLATES_MAX):
        templates.learn(fast_head(HEAD[:-2] + b"X-%d: 1" % number + HEAD_END))
        assert 0 < len(templates.templates) <= head_templates.HEAD_TEMPLATES_MAX
    assert templates.find(HEAD[:-2] + b"X-%d: 2" % number + HEAD_END) is templates.templates[0]
    monkeypatch.setattr(head_templates, "LEARN_AFTER", 2)
    for number in range(3 * head_templates.CANDIDATES_MAX):
        templates.learn(fast_head(HEAD[:-2] + b"Y-%d: 1" % number + HEAD_END))
        assert 0 < len(templates._candidates) <= head_templates.CANDIDATES_MAX


def test_heads_written_otherwise_than_expected_are_not_learned(monkeypatch):
    monkeypatch.setattr(head_templates, "LEARN_AFTER", 1)
    templates = HeadTemplates()
    templates.learn(fast_head(HEAD[:-2] + b"X-Plivo-Signature-V3: another" + HEAD_END))
    templates.learn(fast_head(HEAD.replace(b"Host: ", b"Host:")))
    templates.learn(fast_head(HEAD[:-2] + "X-Some: é".encode() + HEAD_END))
    assert not templates.templates


TEMPLATES = learned(
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


@example(HEAD.replace(b"Content-Length: 3", b"Content-Length: 03"))
@given(mutated())
def test_template_captures_what_the_parser_reads(head):
    template = TEMPLATES.find(head)
    if template is None:
        return
    match = template.match(head)
    parsed = fast_head(head[: match.end()])
    assert parsed is not None
    target, length, signature, main_signature, nonce = (
        part.decode() for part in match.group(*template.groups)
    )
    assert (target, int(length)) == (parsed.target, parsed.content_length)
    assert parsed.headers.getall("X-Plivo-Signature-V3", [""]) == [signature]
    assert parsed.headers.getall("X-Plivo-Signature-Ma-V3", [""]) == [main_signature]
    assert parsed.headers.getall("X-Plivo-Signature-V3-Nonce", ()) == [nonce]
    assert parsed.headers.get("Host", "") == "hooks.example.com"
    assert parsed.headers.get("Content-Type", "") == "application/x-www-form-urlencoded"


@given(st.sampled_from(["Host", "Content-Type", "Connection", "X-Forwarded-Host"]))
def test_decisive_headers_are_compared_byte_by_byte(name):
    head = HEAD[:-2] + b"Connection: keep-alive\r\nX-Forwarded-Host: h" + HEAD_END
    templates = learned(head)
    changed = re.sub(rb"%b: [^\r]*" % name.encode(), b"%b: other" % name.encode(), head)
    assert changed != head
    assert templates.find(head) is not None
    assert templates.find(changed) is None


def test_template_matches_at_the_beginning_and_the_whole_head():
    (template,) = learned(HEAD).templates
    assert template.match(b" " + HEAD) is None
    assert template.match(HEAD[:-1]) is None


def test_head_that_its_own_template_does_not_match_displaces_no_other(monkeypatch):
    monkeypatch.setattr(head_templates, "LEARN_AFTER", 2)
    templates = HeadTemplates()
    for _ in range(2):
        templates.learn(fast_head(HEAD))
    for _ in range(50):
        templates.learn(fast_head(HEAD[:-2] + b"X-Tab: a\tb" + HEAD_END))
    assert len(templates.templates) == 1
    assert templates.find(HEAD) is templates.templates[0]


def test_signatures_may_be_listed_with_blanks(monkeypatch):
    monkeypatch.setattr(head_templates, "LEARN_AFTER", 1)
    templates = HeadTemplates()
    head = HEAD.replace(b"X-Plivo-Signature-V3: ", b"X-Plivo-Signature-V3: aaa=, ")
    assert head != HEAD
    templates.learn(fast_head(head))
    assert templates.find(head) is not None
