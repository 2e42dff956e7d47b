"""Forms cut at once; what is done with the parts is tested where it is done (test_shapes, ingest's test_forms)."""

import pytest
import yarl._quoting

from maskline.schemas.fastdecode.forms import (
    find_unquoter,
    layout_of,
    separators,
    separators_between,
    split_form,
)


def test_what_is_borrowed_is_there_or_may_be_gone(monkeypatch):
    assert find_unquoter() is not None
    monkeypatch.setattr(yarl._quoting, "_Unquoter", lambda **_: lambda text: text)
    assert find_unquoter() is None
    monkeypatch.delattr(yarl._quoting, "_Unquoter")
    assert find_unquoter() is None


def test_a_form_is_cut_into_names_and_values():
    encoded = b"From=%2B14155550123&Cause=Normal+Hangup&Empty="
    parts = split_form(encoded)
    assert parts == ["From", "+14155550123", "Cause", "Normal Hangup", "Empty", ""]
    assert layout_of(encoded, parts) == ["From", "Cause", "Empty"]
    assert separators(encoded) == separators_between(parts[::2]) == b"=&=&="


@pytest.mark.parametrize("encoded", [b"a=%ff", b"a=100%25", b"a=%4", b"\xff=b"])
def test_what_is_not_simple_is_not_cut(encoded):
    assert split_form(encoded) == []


@pytest.mark.parametrize("encoded", [b"", b"a", b"a=1&a=2", b"a=1&&b=2", b"a=1&b", b"a&b=c=d", b"a%3Db=c"])
def test_what_is_read_otherwise_pair_by_pair_has_no_layout(encoded):
    assert layout_of(encoded, split_form(encoded)) is None
