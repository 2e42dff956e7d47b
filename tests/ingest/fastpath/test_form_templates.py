"""Forms read by a template, beside the parameters and the signed text of the reference."""

from urllib.parse import quote, urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ingest_kit import PAIRS

from maskline.ingest.auth.signatures import v3_parameter_texts, v3_signed_texts
from maskline.ingest.fastpath import form_templates
from maskline.ingest.fastpath.form_templates import FormTemplates, SignedForm
from maskline.schemas.errors import NotDecodableError
from maskline.schemas.fastdecode import forms
from maskline.schemas.parameters import Parameters, parse_pairs, unquote_plus
from maskline.schemas.values import is_null

NAMES = ["SessionUUID", "EventName", "From", "Amount", "é", ""]

values = st.text(max_size=6) | st.sampled_from(["", "null", "s", "+1", "a&b=c", "100%", "\x1c", "é日"])
escaped = values.map(lambda value: quote(value, safe="")) | values.map(quote)
odd = st.sampled_from(
    ["%", "%4", "%zz", "%ff", "%C3", "%c3%a9", "%ed%a0%80", "%26", "%3D", "+", "=", "&", "&&", "%2b"]
)
texts = st.lists(escaped | odd, max_size=3).map("".join)
fields = st.tuples(st.sampled_from(NAMES), texts)
orders = st.lists(st.sampled_from(NAMES), max_size=6)
raw = st.text("ab&=%+4CF", max_size=12) | st.text(max_size=6)


@pytest.fixture(params=[forms.unquote, unquote_plus], ids=["yarl", "ours"], autouse=True)
def _unquote(request, monkeypatch):
    monkeypatch.setattr(forms, "unquote", request.param)


def by_reference(body: bytes) -> SignedForm | None:
    """The form as parsed pair by pair; None where that is not possible."""
    try:
        pairs = parse_pairs(body)
    except NotDecodableError:
        return None
    session = next((text for name, text in pairs if name == "SessionUUID" and not is_null(text)), "")
    (text,) = (
        v3_signed_texts("b", v3_parameter_texts("POST", Parameters([], pairs, None)), "n")
        if pairs
        else (b"b?.n",)
    )
    return SignedForm(text.decode().removeprefix("b?").removesuffix(".n"), session)


def body_of(names: list[str], given_texts: list[str]) -> bytes:
    return "&".join(f"{quote(n)}={t}" for n, t in zip(names, given_texts, strict=False)).encode()


@given(orders, st.lists(texts, min_size=6, max_size=6), st.lists(texts, min_size=6, max_size=6), raw)
@example(["SessionUUID", "From"], ["s", "1"], ["s%26", "1"], "")
@example(["SessionUUID", "From"], ["s", "1"], ["s%4", "1"], "")
@example(["SessionUUID", "From"], ["s", "1"], ["%C3", "%A9"], "")
@example(["SessionUUID", "From"], ["s", "1"], ["s", "1"], "SessionUUID=a=From&b")
@example(["SessionUUID", "From"], ["s", "1"], ["s", "1"], "SessionUUID&a=From=b")
@example(["SessionUUID", "From"], ["s", "1"], ["s", "1"], "SessionUUID%3Da=b&From=")
def test_whatever_is_read_is_read_as_by_reference(names, first, second, other):
    templates = FormTemplates()
    for body in (body_of(names, first), body_of(names, ["x"] * 6)):
        templates.learn(body)
    for body in (body_of(names, first), body_of(names, second), other.encode("utf-8", "surrogatepass")):
        form = templates.read(body)
        assert form is None or form == by_reference(body)


@given(st.lists(st.sampled_from(NAMES[1:4]), unique=True).flatmap(lambda n: st.permutations(["SessionUUID", *n])),
       st.lists(values.filter(lambda v: not {*"&=%"} & {*v}), min_size=6, max_size=6))  # fmt: skip
def test_forms_like_plivos_are_read(names, given_texts):
    templates = FormTemplates()
    templates.learn(body_of(names, ["x"] * 6))
    body = urlencode([*zip(names, given_texts, strict=False)]).encode()
    form = by_reference(body)
    assert templates.read(body) == (form if form is not None and form.session_uuid else None)


def test_form_that_was_not_learned_is_not_read():
    assert FormTemplates().read(urlencode(PAIRS).encode()) is None


@pytest.mark.parametrize(
    "body",
    [b"", b"a=b", b"SessionUUID", b"SessionUUID=a&SessionUUID=b", b"SessionUUID=%ff", b"&SessionUUID=a", b"\xff=",
     b"SessionUUID=1&" + b"&".join(b"n%d=" % n for n in range(forms.NAMES_MAX)),
     b"SessionUUID=1&" + b"n" * forms.NAMES_MAX_CHARS + b"="],
)  # fmt: skip
def test_forms_out_of_the_ordinary_are_not_learned(body):
    templates = FormTemplates()
    templates.learn(body)
    assert not len(templates)


def test_templates_are_bounded(monkeypatch):
    monkeypatch.setattr(form_templates, "FORM_TEMPLATES_MAX", 10)
    templates = FormTemplates()
    for number in range(99):
        templates.learn(b"SessionUUID=s&n%d=" % number)
        assert 0 < len(templates) <= 10
        assert templates.read(b"SessionUUID=t&n%d=v" % number) == SignedForm(f"SessionUUIDtn{number}v", "t")
