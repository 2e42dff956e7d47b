"""How the body of an HTTP answer begins, as error texts show it. Pure."""

from collections.abc import Iterable
from typing import Final

from maskline.schemas.privacy import redact

ANSWER_CHARS_MAX: Final = 200


def answer_text(body: bytes, hidden: Iterable[str] = ()) -> str:
    """The start of a body, at most ANSWER_CHARS_MAX characters: one line, printable, phone numbers as tokens.

    `hidden`: texts to leave out, the longest first.
    """
    text = body.decode("utf-8", "replace")
    for secret in hidden:
        text = text.replace(secret, "***")
    # Numbers go before the end does: the first half of one would not be recognised.
    text = redact(" ".join("".join(sign if sign.isprintable() else " " for sign in text).split()))
    return text if len(text) <= ANSWER_CHARS_MAX else text[: ANSWER_CHARS_MAX - 1] + "…"
