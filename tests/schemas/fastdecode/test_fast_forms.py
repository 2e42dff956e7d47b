"""Forms are split as a whole. What is done with the parts is tested with its user (test_templates,
test_form_templates)."""

import pytest
import yarl._quoting

from maskline.schemas.fastdecode.forms import (
    find_unquoter,
    layout_of,
    separators,
    separators_between,
    split_form,
)


def test_private_unquoter_is_there_and_may_be_missing(monkeypatch):
    assert find_unquoter() is not None
    monkeypatch.setattr(yarl._quoting, "_Unquoter", lambda **_: lambda text: text)
    assert find_unquoter() is None
    monkeypatch.delattr(yarl._quoting, "_Unquoter")
    assert find_unquoter() is None


def test_form_is_split_into_names_and_values():
    encoded = b"From=%2B14155550123&Cause=Normal+Hangup&Empty="
    parts = split_form(encoded)
    assert parts == ["From", "+14155550123", "Cause", "Normal Hangup", "Empty", ""]
    assert layout_of(encoded, parts) == ["From", "Cause", "Empty"]
    assert separators(encoded) == separators_between(parts[::2]) == b"=&=&="


@pytest.mark.parametrize("encoded", [b"a=%ff", b"a=100%25", b"a=%4", b"\xff=b"])
def test_form_with_odd_escapes_is_not_split(encoded):
    assert split_form(encoded) == []


@pytest.mark.parametrize("encoded", [b"", b"a", b"a=1&a=2", b"a=1&&b=2", b"a=1&b", b"a&b=c=d", b"a%3Db=c"])
def test_form_that_reads_otherwise_pair_by_pair_has_no_layout(encoded):
    assert layout_of(encoded, split_form(encoded)) is None
