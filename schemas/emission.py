"""Call summaries as entries of a partition's stream, beside the callbacks.

A RawCallback whose method is EMIT holds what a handler module of one consumer group emits: its body is the JSON of a
CallSummary, its `auth_id` the group. HTTP has no such method, so nothing that ingest takes is read as one: a callback
of Plivo's that calls itself CallSummary is an UnknownEvent. The version of such an entry is one more than a callback's,
since a release that knows none must not take it for a callback: there it becomes a dead letter.
"""

from hashlib import blake2b

import msgspec

from maskline.schemas.call_summary import CallSummary, decode_summary, encode_summary
from maskline.schemas.callback import EMISSION_VERSION, EMITTED_METHOD, RawCallback
from maskline.schemas.decode import FINGERPRINT_BYTES, SESSION_UUID_CHARS_MAX
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.parameters import JSON_TYPE


class OtherGroupsSummary(CallSummary, frozen=True, gc=False, tag="CallSummary"):
    """A summary that another consumer group has emitted: no handler of this group gets it."""


def emitted_callback(summary: CallSummary, group: str, now_ms: int) -> RawCallback:
    """The RawCallback that stands for a summary in the stream. `now_ms`: milliseconds since the epoch."""
    return RawCallback(
        EMITTED_METHOD, b"", JSON_TYPE, encode_summary(summary), now_ms, group, version=EMISSION_VERSION
    )


def emitted_summary(callback: RawCallback, group: str | None = None) -> CallSummary:
    """The summary that an emitted callback holds; an OtherGroupsSummary if `group` is given and did not emit it.

    Raises UndecodableEntryError (`not_decodable`) if it holds none.
    """
    try:
        summary = decode_summary(callback.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UndecodableEntryError("not_decodable", f"not a call summary: {error}") from None
    if not 0 < len(summary.session_uuid) <= SESSION_UUID_CHARS_MAX:
        raise UndecodableEntryError("not_decodable", "a call summary without a SessionUUID that can be one")
    if group in (None, callback.auth_id):
        return summary
    return OtherGroupsSummary(**msgspec.structs.asdict(summary))


def fingerprint_of_emitted(callback: RawCallback) -> bytes:
    """FINGERPRINT_BYTES bytes, equal for equal summaries of one group: several groups may emit the same, each for its
    own handlers.
    """
    group = blake2b(callback.auth_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return blake2b(group + callback.body, digest_size=FINGERPRINT_BYTES).digest()
