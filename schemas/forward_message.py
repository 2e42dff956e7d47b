"""The JSON body of a webhook that `maskline.handlers.forward` sends: what happened, and its place in its session.

`type`, `timestamp` and `data` are those of Standard Webhooks; `delivery` is maskline's. `data` has Plivo's attributes
by the names that handlers know them by, and leaves out those that Plivo did not send. In `delivery` every member is
always there. A call summary is a message of its own kind: its `data` is the summary.
"""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from maskline.schemas.call_summary import CallSummary
from maskline.schemas.events import Moment, Seconds

Numbers = Literal["tokens", "plain"]
"""How phone numbers stand in a message: as keyed tokens (`num_` and ten hexadecimal digits, the same for the same
number), or as Plivo sent them."""

PhoneNumber = Annotated[
    str, Meta(description="A phone number, or its token `num_…`, by the endpoint's `numbers` setting.")
]


class EventData(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """The attributes of the event. One that is absent was absent or null in Plivo's callback."""

    session_uuid: str
    event_timestamp: Moment | None = None
    sequence_number: Annotated[int | None, Meta(description="The event's place in its session.")] = None
    from_number: PhoneNumber | None = None
    to_number: PhoneNumber | None = None
    first_party: PhoneNumber | None = None
    second_party: PhoneNumber | None = None
    virtual_number: Annotated[str | None, Meta(description="The masking number, never a token.")] = None
    pin_authentication_status: Annotated[
        str | None, Meta(description="`success`, `failed` or `AuthorizedCaller`.")
    ] = None
    pin_retry_counter: int | None = None
    amount: Annotated[
        Decimal | None, Meta(description="The total charge of the call, a decimal number as text.")
    ] = None
    billed_duration: Seconds | None = None
    duration: Seconds | None = None
    plivo_hangup_cause: str | None = None
    plivo_hangup_cause_code: int | None = None
    recording_uuid: str | None = None
    recording_url: str | None = None
    recording_resource_url: str | None = None
    recording_duration: Seconds | None = None
    recording_start_time: Moment | None = None
    recording_end_time: Moment | None = None
    recording_format: Annotated[str | None, Meta(description="`.mp3` or `.wav`.")] = None
    extra: Annotated[
        dict[str, str | list[str]],
        Meta(description="Parameters that are no attribute, or that cannot be read, by Plivo's names."),
    ] = {}
    problems: Annotated[
        tuple[str, ...], Meta(description="Plivo's names of the attributes that could not be read.")
    ] = ()


class Delivery(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What maskline knows of the event's place in its session. The same facts stand in the headers `maskline-…`."""

    session_uuid: str
    idempotency_key: Annotated[
        str, Meta(description="The same at every delivery of this event, another for every other event.")
    ]
    order: Annotated[
        Literal["in_order", "after_gap", "late", "unsequenced"],
        Meta(description="How the event stands to those that were delivered before it."),
    ]
    sequence_number: Annotated[
        int | None, Meta(description="The event's place in its run of the session; null: it has none.")
    ]
    run: Annotated[int, Meta(description="0, and one more each time the session's numbering started again.")]
    missing: Annotated[
        tuple[int, ...],
        Meta(description="Numbers given up just before an `after_gap`; they may come `late`."),
    ]
    skipped: Annotated[
        tuple[int, ...],
        Meta(description="Numbers before this one that were given up for this endpoint; the last 64."),
    ]
    replayed: Annotated[
        bool, Meta(description="An operator had it sent again: it may have been delivered before.")
    ]
    received_at: Annotated[
        datetime, Meta(tz=True, description="When maskline received Plivo's callback; in UTC.")
    ]


class ForwardMessage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event of a masking session, as an endpoint receives it."""

    type: Annotated[
        str,
        Meta(description="Plivo's name of the event, such as `SessionSecondPartyHangup`. More may appear."),
    ]
    timestamp: Annotated[
        datetime,
        Meta(
            tz=True,
            description="When it happened: `event_timestamp`, or `received_at` where Plivo sent none.",
        ),
    ]
    data: EventData
    delivery: Delivery


class CallSummaryMessage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The summary of a call that is over, as an endpoint receives it. It comes again if something arrives late."""

    type: Literal["CallSummary"] = "CallSummary"
    timestamp: Annotated[datetime, Meta(tz=True, description="When the call ended, or was known to be over.")]
    data: CallSummary
    delivery: Delivery


HEADERS: Final = {
    "webhook-id": "`ctx.idempotency_key`: the same at every delivery of the event",
    "webhook-timestamp": "when this request was made, in seconds since 1970",
    "webhook-signature": "`v1,` and the Base64 of the HMAC-SHA256 of ID, timestamp and body; one for each secret",
    "maskline-event": "the event's name, as `type` in the body",
    "maskline-session": "the SessionUUID",
    "maskline-sequence": "the SequenceNumber; absent where the event has none",
    "maskline-run": "0, one more each time numbering started again in the session",
    "maskline-order": "`in_order`, `after_gap`, `late` or `unsequenced`",
    "maskline-missing": "numbers given up just before an `after_gap`, as `3,4`; absent where there are none",
    "maskline-skipped": "numbers before it that this endpoint was never sent; absent where there are none",
    "maskline-replayed": "`true` where an operator had it sent again; else absent",
    "maskline-attempt": "1 for the first try",
}
"""The headers of a webhook, by name: what each says."""
