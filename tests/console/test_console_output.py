import io
import json
import sys

import msgspec
import pytest

from maskline.console.output import print_json, print_json_array, printable, shortened, utc_time
from maskline.console.tables import print_columns


def test_columns_are_as_wide_as_their_widest_cell(capsys):
    print_columns(("id", "reason"), [("1-2-3", "x"), ("é", "日本"), ("", "")])
    assert capsys.readouterr().out == "id     reason\n-------------\n1-2-3  x\né      日本\n\n\n"


async def test_array_is_json_whatever_its_length(capsys):
    for values in [], [1], [{"a": "é\n"}, None, 2]:

        async def each(values=values):
            for value in values:
                yield value

        await print_json_array(each())
        printed = capsys.readouterr().out
        assert msgspec.json.decode(printed) == values
        assert printed.count("\n") == len(values) + (2 if values else 1)


def test_texts_from_outside_do_not_control_the_terminal():
    assert printable("a\x1b[2Jb\n\u202e\ud800") == r"a\x1b[2Jb\n\u202e\ud800"
    assert shortened("one\n two\x07 " + "x" * 20, 12) == "one two\\x07…"
    assert utc_time(10**18) is None


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
async def test_json_is_json_whatever_the_encoding_of_the_terminal(encoding, monkeypatch):
    value = {"naïve…": "one 😀 two é"}

    async def values():
        yield value

    for prints in (lambda: print_json(value), lambda: print_json_array(values())):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        if (waits := prints()) is not None:
            await waits
        out.flush()
        written = out.buffer.getvalue().decode(encoding)
        assert json.loads(written) in (value, [value])
        assert ("😀" in written) == (encoding == "utf-8")
