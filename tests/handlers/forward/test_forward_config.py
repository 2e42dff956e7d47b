"""Every mistake in MASKLINE_FORWARD_CONFIG is one line with the file and the key, and shows no secret."""

import base64
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from forward_kit import NEXT_SECRET, SECRET, endpoint, write_config

from maskline.events import CallSummary, Event, RecordingEvent, SessionTimeout
from maskline.handlers.webhooks.answers import Answer, problem_text
from maskline.handlers.webhooks.config import ENDPOINTS_MAX, read_endpoints
from maskline.handlers.webhooks.table import EndpointTable
from maskline.schemas.errors import ConfigError
from maskline.testing import Harness

URL = "https://hooks.example.com/masking"
SHORT = "whsec_" + base64.b64encode(b"x" * 23).decode()
LONG = "whsec_" + base64.b64encode(b"x" * 65).decode()


def public(**keys: Any) -> dict[str, Any]:
    return endpoint(**{"url": URL, "allow_private": None} | keys)


def refused(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_endpoints(file)
    text = str(caught.value)
    assert "\n" not in text
    assert str(file) in text
    assert SECRET[10:] not in text
    return text


def test_defaults_and_everything_that_can_be_set(tmp_path):
    (tmp_path / "next").write_text(NEXT_SECRET + "\n")
    (tmp_path / "token").write_text("Bearer abc\n")
    given = public(
        name="billing",
        events=["SessionTimeout", "RecordingEvent", "CallSummary"],
        secret_files=["next"],
        headers={"X-Shop": "one", "Authorization": {"file": "token"}},
        allow_private=["10.0.0.0/8"],
        numbers="plain",
        timeout_ms=3_000,
        concurrency=8,
        rate=12.5,
        retries=3,
        give_up_after_s=60,
        on_give_up="skip",
    )
    plain, full = read_endpoints(write_config(tmp_path / "f.toml", public(), given))
    assert plain.types == (Event,)
    assert (plain.numbers, plain.timeout_ms, plain.on_give_up) == ("tokens", 10_000, "park")
    assert (plain.concurrency, plain.rate, plain.retries) == (None, None, None)
    assert full.types == (SessionTimeout, RecordingEvent, CallSummary)
    assert full.headers == {"X-Shop": "one", "Authorization": "Bearer abc"}
    assert (full.numbers, full.timeout_ms, full.concurrency, full.rate) == ("plain", 3_000, 8, 12.5)
    assert (full.retries, full.give_up_after_s, full.on_give_up) == (3, 60, "skip")
    assert len(full.signers) == 2
    assert full.policy.refusal("10.1.2.3") is None
    assert plain.policy.refusal("10.1.2.3") is not None
    assert not {"abc", SECRET} & set(repr(full))


@pytest.mark.parametrize(
    ("keys", "key", "what"),
    [
        ({"name": None}, "", "missing required field `name`"),
        ({"name": "a b"}, "name", "matching regex"),
        ({"name": "shop\n"}, "name", "matching regex"),
        ({"url": None}, "", "missing required field `url`"),
        ({"urll": "x"}, "", "unknown field `urll`"),
        ({"url": 5}, "url", "Expected `str`, got `int`"),
        ({"url": "hooks.example.com"}, "url", "must begin with https://"),
        ({"url": "ftp://hooks.example.com/"}, "url", "must begin with https://"),
        ({"url": "https:///hooks"}, "url", "must begin with https://"),
        ({"url": "https://hooks.example.com:99999/"}, "url", "cannot be read"),
        ({"url": "https://[::1/"}, "url", "cannot be read"),
        ({"url": "https://me:secret@hooks.example.com/"}, "url", "no user and password"),
        ({"url": "https://hooks.example.com/#x"}, "url", "no fragment"),
        ({"url": "https://hooks.example.com/a b"}, "url", "no blank"),
        ({"url": "https://höoks.example.com/"}, "url", "ASCII"),
        ({"url": "http://hooks.example.com/"}, "url", "list them in allow_private"),
        ({"url": "https://169.254.169.254/latest"}, "url", "clouds keep their metadata"),
        ({"url": "https://[::ffff:127.0.0.1]/"}, "url", "loopback"),
        ({"url": "https://[fe80::1%25eth0]/"}, "url", "link-local"),
        ({"url": "https://2130706433/"}, "url", "write the address as 127.0.0.1"),
        ({"url": "https://0x7f.1/"}, "url", "write the address as 127.0.0.1"),
        ({"url": "https://0177.0.0.1/"}, "url", "write the address as 127.0.0.1"),
        ({"url": "https://127.0.0.1./"}, "url", "neither an address nor a name"),
        ({"url": "https://1.2.3.4.5/"}, "url", "neither an address nor a name"),
        ({"url": "https://a..example/"}, "url", "neither an address nor a name"),
        ({"url": f"https://{'a' * 64}.example/"}, "url", "neither an address nor a name"),
        ({"url": f"https://{'a.' * 126}example/"}, "url", "neither an address nor a name"),
        ({"url": "https://hooks%00.example/"}, "url", "neither an address nor a name"),
        ({"url": "http://8.8.8.8/", "allow_private": ["10.0.0.0/8"]}, "url", "is public, and http://"),
        ({"events": []}, "events", "length >= 1"),
        ({"events": ["SessionTimeOut"]}, "events", "'SessionTimeOut' is no event"),
        ({"events": "*"}, "events", "got `str`"),
        ({"secrets": []}, "secret_files", "there must be 1 secret"),
        ({"secrets": [SECRET, NEXT_SECRET, SECRET]}, "secret_files", "not 3"),
        ({"secrets": [SECRET.removeprefix("whsec_")]}, "secrets", "must be whsec_"),
        ({"secrets": [SECRET + "!"]}, "secrets", "must be whsec_"),
        ({"secrets": [SHORT]}, "secrets", "24 to 64 bytes"),
        ({"secrets": [LONG]}, "secrets", "24 to 64 bytes"),
        ({"secrets": [], "secret_files": ["none"]}, "secret_files", "No such file"),
        ({"secrets": [], "secret_files": ["f.toml"]}, "secret_files", "must be whsec_"),
        ({"secrets": [], "secret_files": ["large"]}, "secret_files", "more than 65536 bytes"),
        ({"secrets": [], "secret_files": ["latin"]}, "secret_files", "other characters than ASCII"),
        ({"headers": {"Webhook-Id": "x"}}, "headers.Webhook-Id", "sets this header itself"),
        ({"headers": {"maskline-order": "x"}}, "headers.maskline-order", "sets this header itself"),
        ({"headers": {"Host": "x"}}, "headers.Host", "sets this header itself"),
        ({"headers": {"Expect": "100-continue"}}, "headers.Expect", "sets this header itself"),
        ({"headers": {"accept-encoding": "gzip"}}, "headers.accept-encoding", "sets this header itself"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "headers.x-a", "there already"),
        ({"headers": {"X-A": "a\r\nX-B: b"}}, "headers.X-A", "printable ASCII"),
        ({"headers": {"X-A": ""}}, "headers.X-A", "not empty"),
        ({"headers": {"X A": "x"}}, "headers", "cannot be the name"),
        ({"headers": {"X-A": {"file": "none"}}}, "headers.X-A", "No such file"),
        ({"headers": {"X-A": {"path": "none"}}}, "headers", "field `"),
        ({"allow_private": ["10.0.0.0/33"]}, "allow_private", "must be a network"),
        ({"allow_private": ["0.0.0.0/0"]}, "allow_private", "not within a private network"),
        ({"ca_file": "none"}, "ca_file", "there is no file"),
        ({"ca_file": "f.toml"}, "ca_file", "no certificates in PEM"),
        ({"timeout_ms": 99}, "timeout_ms", ">= 100"),
        ({"timeout_ms": "10s"}, "timeout_ms", "Expected `int`"),
        ({"concurrency": 0}, "concurrency", ">= 1"),
        ({"rate": 0}, "rate", "> 0"),
        ({"retries": -1}, "retries", ">= 0"),
        ({"give_up_after_s": -1}, "give_up_after_s", ">= 0"),
        ({"on_give_up": "wait"}, "on_give_up", "Invalid enum value"),
        ({"numbers": "all"}, "numbers", "Invalid enum value"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_a_mistake_in_an_endpoint_names_file_endpoint_and_key(keys, key, what, tmp_path):
    (tmp_path / "large").write_text("x" * 65_537)
    (tmp_path / "latin").write_bytes(b"\xe4")
    text = refused(write_config(tmp_path / "f.toml", public(name="first"), public(**keys)))
    assert "endpoint 2" in text
    assert what in text
    assert f": {key}" in text
    assert "secret@" not in text


@pytest.mark.parametrize(
    "host", ["hooks.example.com.", "xn--bcher-kva.example", "web_hooks", "HOOKS.EXAMPLE:8443"]
)
def test_names_of_hosts(host, tmp_path):
    (made,) = read_endpoints(write_config(tmp_path / "f.toml", public(url=f"https://{host}/x")))
    assert made.url.host


def test_no_error_text_shows_a_part_of_what_may_be_a_secret(tmp_path):
    url = "https://hooks.example.com/services/T0001/sEcReT%2Bpath?v=2&key=sEcReTkey"
    headers = {"Authorization": "Bearer sEcReTtoken", "X-Version": "2026-11-30"}
    (made,) = read_endpoints(write_config(tmp_path / "f.toml", public(url=url, headers=headers)))
    said = b"Bad token 'sEcReTtoken' or key=sEcReTkey v=2 for sEcReT+path: see hooks.example.com"
    text = problem_text("shop", Answer(401, None, None, said), made.hidden)
    assert text == "shop answered 401: \"Bad token '***' or key=*** v=2 for ***: see hooks.example.com\""


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "secret").write_bytes(b"\xef\xbb\xbf" + NEXT_SECRET.encode() + b"\r\n")
    file = write_config(tmp_path / "f.toml", public(secret_files=["secret"]))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert [it.name for it in read_endpoints(file)] == ["shop"]


def test_a_mistake_in_the_file_names_the_file(tmp_path):
    file = tmp_path / "f.toml"
    assert "No such file" in refused(file)
    for content, what in {
        "": "must have 1 to 64",
        "endpoint = 5": "two pairs of brackets",
        "[endpoint]\nname = 'x'": "two pairs of brackets",
        "timeout_ms = 5\n[[endpoint]]": "unknown key timeout_ms",
        "[[endpoint]]\nname = = 5": "at line 2",
        "[[endpoints]]": "unknown key endpoints",
    }.items():
        file.write_text(content)
        assert what in refused(file)
    file.write_bytes(b"\xff")
    assert "no TOML" in refused(file)
    assert "not 65" in refused(write_config(file, *[public() for _ in range(ENDPOINTS_MAX + 1)]))
    assert "another endpoint" in refused(write_config(file, public(), public()))


def test_the_module_without_a_file_does_not_start(configured, monkeypatch):
    module = configured(public())
    monkeypatch.delenv("MASKLINE_FORWARD_CONFIG")
    with pytest.raises(
        ConfigError, match=r"\AMASKLINE_HANDLERS: maskline.handlers.forward: MASKLINE_FORWARD"
    ):
        Harness(module)


def test_the_page_describes_every_key():
    page = (Path(__file__).parents[3] / "docs" / "modules" / "forward.md").read_text()
    keys = [first for row in re.findall(r"^\| (`[^|]+)\|", page, re.MULTILINE) for first in row.split()]
    for key in EndpointTable.__struct_fields__:
        assert {f"`{key}`", f"`{key}`,"} & set(keys), key


def test_without_the_extra_one_line_names_it(configured, monkeypatch):
    module = configured(public())
    for name in [it for it in sys.modules if it.startswith("maskline.handlers.webhooks.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "standardwebhooks", None)
    with pytest.raises(ConfigError, match=r"pip install 'maskline\[forward\]'"):
        Harness(module)
