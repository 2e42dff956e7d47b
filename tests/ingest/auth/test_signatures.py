"""Signatures, with Plivo's own SDK as the oracle."""

import json
import sys
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from plivo.utils import validate_signature, validate_v3_signature

from maskline.ingest.auth.signatures import (
    SIGNATURES_MAX,
    Token,
    sign_v2,
    sign_v3,
    split_signatures,
    v3_parameter_texts,
    v3_signed_texts,
)
from maskline.schemas.parameters import Parameters, parse_pairs, parse_parameters

# The SDK hands parse_qs bytes; older Pythons encode what it decodes as ASCII.
SDK_READS_NON_ASCII_QUERIES = sys.version_info >= (3, 12)

NONCE = "12345678901234567890"
BASES = (
    "http://h/callbacks",
    "https://hooks.example.com/callbacks/MAXXXXXXXXXXXXXXXXXX",
    "https://hooks.example.com:8443/prefix/callbacks",
    "http://127.0.0.1:8080/callbacks",
)

ascii_text = st.text(st.characters(min_codepoint=0, max_codepoint=127), max_size=12)
any_text = st.text(max_size=12)
names = st.sampled_from(["From", "To", "Amount", "a", "A", "ab", "", "b c", "é", "日本"])
tokens = st.text(st.characters(codec="utf-8"), min_size=1, max_size=80)
bases = st.sampled_from(BASES)


def pair_lists(
    values: st.SearchStrategy[str], keys: st.SearchStrategy[str]
) -> st.SearchStrategy[list[tuple[str, str]]]:
    return st.lists(st.tuples(keys, values), max_size=8)


def as_dict(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """What a framework hands the SDK: repeated keys as lists."""
    params: dict[str, Any] = {}
    for key, value in pairs:
        params.setdefault(key, []).append(value)
    return {key: values[0] if len(values) == 1 else values for key, values in params.items()}


def sdk_accepts(method: str, url: str, signature: str, token: str, params: dict[str, Any]) -> bool:
    return bool(validate_v3_signature(method, url, NONCE, token, signature, params))


@given(bases, pair_lists(ascii_text, ascii_text), pair_lists(any_text, names), tokens)
def test_post_form_agrees_with_the_sdk(base, query, body, token):
    encoded_query, encoded_body = urlencode(query), urlencode(body)
    url = f"{base}?{encoded_query}" if query else base
    parameters = parse_parameters(
        "POST", encoded_query.encode(), "application/x-www-form-urlencoded", encoded_body.encode()
    )
    signature = sign_v3(token, "POST", url, parameters, NONCE)
    assert sdk_accepts("POST", url, signature, token, as_dict(body))
    assert not sdk_accepts("POST", url, signature, token + "x", as_dict(body))
    assert not sdk_accepts("POST", url, signature, token, as_dict([*body, ("more", "1")]))


@given(bases, pair_lists(ascii_text, ascii_text), tokens)
def test_get_agrees_with_the_sdk(base, query, token):
    encoded = urlencode(query)
    url = f"{base}?{encoded}" if query else base
    signature = sign_v3(token, "GET", url, Parameters(parse_pairs(encoded.encode()), [], None), NONCE)
    assert sdk_accepts("GET", url, signature, token, {})
    assert not sdk_accepts("GET", url + ("&" if query else "?") + "more=1", signature, token, {})


@given(
    bases, pair_lists(any_text, names).filter(lambda pairs: not urlencode(pairs).isascii() or pairs), tokens
)
def test_both_readings_of_a_non_ascii_query_are_good(base, query, token):
    parameters = Parameters(query, [], None)
    texts = v3_signed_texts(base, v3_parameter_texts("GET", parameters), NONCE)
    plain = "&".join(f"{key}={value}" for key, value in sorted(query))
    # The SDK's reading, built independently of ours: bytes as Latin-1, then sorted.
    latin = sorted((k.encode().decode("latin-1"), v.encode().decode("latin-1")) for k, v in query)
    as_sdk = "&".join(f"{key}={value}" for key, value in latin)
    assert set(texts) == {f"{base}?{plain}.{NONCE}".encode(), f"{base}?{as_sdk}.{NONCE}".encode()}
    url = f"{base}?{urlencode(query)}"
    if SDK_READS_NON_ASCII_QUERIES or plain.isascii():
        assert sdk_accepts("GET", url, Token(token).sign(texts[-1]).decode(), token, {})
    else:
        with pytest.raises(UnicodeEncodeError):
            sdk_accepts("GET", url, "x", token, {})


json_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text
)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=examples(300))
@given(bases, st.dictionaries(names | any_text, json_values, max_size=5), tokens)
def test_json_bodies_agree_with_the_sdk_or_cannot_be_signed(base, members, token):
    body = json.dumps(members).encode()
    parameters = parse_parameters("POST", b"", "application/json", body)
    try:
        expected = sdk_accepts("POST", base, "x", token, json.loads(body))
    except TypeError:  # the SDK sorts lists of members that cannot be compared
        assert v3_parameter_texts("POST", parameters) == ()
        with pytest.raises(ValueError, match="cannot be signed"):
            sign_v3(token, "POST", base, parameters, NONCE)
        return
    assert not expected
    assert sdk_accepts("POST", base, sign_v3(token, "POST", base, parameters, NONCE), token, json.loads(body))


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": %s}' % (b"[" * 400 + b"]" * 400),
        b'{"a": %s1%s}' % (b'{"a":' * 400, b"}" * 400),
        b'{"a": 1e300, "b": 123456789012345678901234567890, "c": -0.0}',
        b'{"a": [1, "b", null]}',
    ],
)
def test_json_that_the_sdk_cannot_sign_never_raises(body):
    assert isinstance(
        v3_parameter_texts("POST", parse_parameters("POST", b"", "application/json", body)), tuple
    )


@given(bases, tokens, st.text(max_size=12))
def test_v2_agrees_with_the_sdk(base, token, nonce):
    signature = sign_v2(token, f"{base}?a=1", nonce)
    assert validate_signature(f"{base}?a=1", nonce, signature, token)
    assert not validate_signature(base, nonce + "1", signature, token)


@given(st.text(min_size=1, max_size=12))
def test_nonces_that_are_not_ascii_agree_with_the_sdk(nonce):
    signature = sign_v3("token", "POST", BASES[0], Parameters([], [("a", "b")], None), nonce)
    assert validate_v3_signature("POST", BASES[0], nonce, "token", signature, {"a": "b"})


def test_escaped_path_is_signed_as_dialled():
    url = f"https://hooks.example.com/{quote('é/b')}/callbacks"
    signature = sign_v3("token", "GET", url, Parameters([], [], None), NONCE)
    assert sdk_accepts("GET", url, signature, "token", {})


def test_listed_signatures_are_split_stripped_and_bounded():
    assert split_signatures(["a, b,,c", " d "]) == [b"a", b"b", b"c", b"d"]
    many = ",".join(f"v{number}" for number in range(50))
    assert len(split_signatures([many, many])) == SIGNATURES_MAX
    assert split_signatures([]) == []
    assert split_signatures(["\udcff"]) == [b"\xff"]


def test_token_matches_only_its_own_signatures_of_the_texts():
    token = Token("secret")
    value = token.sign(b"text")
    assert token.matches([b"other", b"text"], [b"", b"x", value])
    assert not token.matches([b"other"], [value])
    assert not token.matches([], [value])
    assert not token.matches([b"text"], [value[:-1], value + b"=", value.swapcase()])
