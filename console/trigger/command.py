"""`maskline trigger EVENT [Name=value…]`: its arguments, and the way from them to a report.

What a handler's author needs to see its handler at work: one callback, signed as Plivo signs, and what became of it.
Nothing is asked of the workers: `facts` reads what they write anyway.
"""

import argparse
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import urlencode

import aiohttp
import msgspec

from maskline.console.arguments import positive
from maskline.console.output import note, print_json, printable, shortened, shown_parameters
from maskline.console.redis_reader import RedisReader, run_with_reader
from maskline.console.simulate.player import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, Target
from maskline.console.target_arguments import add_target_arguments, read_target
from maskline.console.trigger.callback import (
    UNSEQUENCED,
    check_names,
    make_pairs,
    read_attributes,
    unreadable_names,
)
from maskline.console.trigger.follow import Followed, Follower
from maskline.console.trigger.last_session import LastSession, read_last_session, write_last_session
from maskline.console.trigger.report import TriggerReport, lines, progress_line, with_followed
from maskline.console.trigger.snapshot import SessionSnapshot, read_snapshot
from maskline.runtime.cli import CommandParser
from maskline.runtime.process.run import run
from maskline.schemas.callback import RawCallback
from maskline.schemas.errors import ConfigError
from maskline.schemas.parameters import FORM_TYPE, Pairs, Parameters
from maskline.schemas.privacy import redact
from maskline.schemas.settings import Settings, load_settings
from maskline.worker.entries.decode import RECORDING_PREFIX

DEFAULT_TIMEOUT_S: Final = 10
"""Twice the gap timeout: what waits for a number is seen to be handled."""

ANSWER_MAX_BYTES: Final = 4_096
"""Of an answer that is not 200, which says why."""

ERROR_SHOWN_CHARS: Final = 200

NUMBER_MAX_DIGITS: Final = 16
"""Of a SequenceNumber that is remembered; a longer one is none."""


class Answer(NamedTuple):
    """A node's answer."""

    status: int | None
    """None if nobody answered."""
    took_ms: float | None
    error: str | None
    """Why it was not taken."""


def main(argv: list[str]) -> int:
    """Run `maskline trigger` with these arguments; the exit code is 0 if every handler of the event has handled it."""
    arguments = _parser().parse_intermixed_args(argv)
    given = read_attributes(arguments.attributes)
    event_name = given.pop("EventName", arguments.event)
    if event_name != arguments.event:
        raise ConfigError("trigger: EventName is the first argument")
    if not arguments.unknown:
        check_names(event_name, given)
    settings = load_settings()
    target = read_target(arguments, settings, "trigger")
    last = _session(arguments.session, given)
    command = _Trigger(arguments, given, target, last)
    if arguments.no_follow:
        return run(lambda _stop: command.send_alone(settings))
    return run_with_reader(command.send_and_follow)


class _Trigger:
    """One run of the command."""

    def __init__(
        self, arguments: argparse.Namespace, given: Mapping[str, str], target: Target, last: LastSession
    ) -> None:
        self._arguments = arguments
        self._event_name: str = arguments.event
        self._given = given
        self._target = target
        self._last = last

    async def send_alone(self, settings: Settings) -> int:
        """Send the callback; how the node answers decides."""
        return self._tell(await self._send(self._pairs(settings, None), settings))

    async def send_and_follow(self, reader: RedisReader) -> int:
        """Send the callback, and follow it."""
        snapshot = await read_snapshot(reader, self._last.session_uuid)
        pairs = self._pairs(reader.settings, snapshot)
        report = await self._send(pairs, reader.settings)
        if report.outcome == "refused":
            return self._tell(report)

        def is_it(callback: RawCallback) -> bool:
            return callback.body == _body(pairs) and callback.method == "POST"

        def on_wait(followed: Followed) -> None:
            note(progress_line(with_followed(report, followed)))

        follower = Follower(reader, snapshot, is_it, on_wait)
        followed = await follower.follow(self._arguments.timeout)
        return self._tell(with_followed(report, followed))

    def _pairs(self, settings: Settings, snapshot: SessionSnapshot | None) -> Pairs:
        number = self._number(settings, snapshot)
        return make_pairs(self._event_name, self._given, self._last.session_uuid, number, datetime.now(UTC))

    def _number(self, settings: Settings, snapshot: SessionSnapshot | None) -> int | None:
        """The SequenceNumber after the session's last one, as Redis has it or this command has sent it."""
        if self._event_name in UNSEQUENCED or "SequenceNumber" in self._given:
            return None
        recording, first = self._numbered_apart(settings), settings.first_sequence
        sent = self._last.recording if recording else self._last.status
        after_sent = first if sent is None else sent + 1
        if snapshot is None:
            return after_sent
        return max(snapshot.next_number(recording=recording, first_sequence=first), after_sent)

    def _numbered_apart(self, settings: Settings) -> bool:
        return self._event_name.startswith(RECORDING_PREFIX) and settings.recording_sequence == "own"

    async def _send(self, pairs: Pairs, settings: Settings) -> TriggerReport:
        for name in unreadable_names(pairs):
            note(f"{printable(name)} cannot be read: handlers get None, and its name in event.problems")
        answer = await _post(self._target, pairs)
        number = dict(pairs)["SequenceNumber"]
        if answer.error is None:
            self._remember(number, recording=self._numbered_apart(settings))
        return TriggerReport(
            event_name=self._event_name,
            session_uuid=self._last.session_uuid,
            sequence_number=number or None,
            url=str(self._target.url.with_user(None)),
            parameters=shown_parameters(pairs),
            status=answer.status,
            answer_ms=answer.took_ms,
            error=answer.error,
            outcome="answered" if answer.error is None else "refused",
        )

    def _remember(self, number: str, *, recording: bool) -> None:
        last = self._last
        if number.isdecimal() and len(number) <= NUMBER_MAX_DIGITS:
            changed = {"recording": int(number)} if recording else {"status": int(number)}
            last = msgspec.structs.replace(last, **changed)
        if (problem := write_last_session(last)) is not None:
            note(f"--session last will not know this session: {problem}")

    def _tell(self, report: TriggerReport) -> int:
        if self._arguments.json:
            print_json(report)
        else:
            for line in lines(report):
                print(line)
        return 0 if report.outcome in ("handled", "answered") else 1


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="maskline trigger",
        description="Send one callback, signed as Plivo signs, and follow it to its handlers. Attributes that are not "
        "given have realistic values. Exit code 0 if every handler that takes the event has handled it.",
    )
    parser.add_argument("event", metavar="EVENT", help="as SessionSecondPartyHangup")
    parser.add_argument(
        "attributes",
        nargs="*",
        metavar="NAME=VALUE",
        help="as Amount=0.02 or amount=0.02; an empty value is sent as one, which is null",
    )
    parser.add_argument(
        "--session",
        default="new",
        metavar="new|last|UUID",
        help="last: the one that this command sent to last from this directory (default: %(default)s)",
    )
    parser.add_argument(
        "--unknown", action="store_true", help="send an event or attributes that Plivo does not document"
    )
    parser.add_argument(
        "--timeout", type=positive, default=DEFAULT_TIMEOUT_S, metavar="S", help="follow for (%(default)s s)"
    )
    parser.add_argument(
        "--no-follow", action="store_true", help="needs no Redis: how the node answers decides"
    )
    parser.add_argument("--json", action="store_true", help="what became of it, as JSON")
    add_target_arguments(parser)
    return parser


def _session(wanted: str, given: dict[str, str]) -> LastSession:
    """The session to send to; takes SessionUUID out of `given`."""
    named = given.pop("SessionUUID", None)
    if named is not None and wanted != "new":
        raise ConfigError("trigger: either --session or SessionUUID=")
    session_uuid = wanted if named is None else named
    if not session_uuid:
        raise ConfigError("trigger: a callback without a session could not be followed")
    if named is None and wanted == "new":
        return LastSession(str(uuid.uuid4()))
    last = read_last_session()
    if named is None and wanted == "last":
        if last is None:
            raise ConfigError(
                "trigger: no callback was sent from this directory yet, so there is no last session"
            )
        return last
    return last if last is not None and last.session_uuid == session_uuid else LastSession(session_uuid)


def _body(pairs: Pairs) -> bytes:
    return urlencode(pairs).encode()


async def _post(target: Target, pairs: Pairs) -> Answer:
    nonce = uuid.uuid4().hex
    headers = {
        "Content-Type": FORM_TYPE,
        "X-Plivo-Signature-V3": target.sign("POST", Parameters([], pairs, None), nonce),
        "X-Plivo-Signature-V3-Nonce": nonce,
    }
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    began = time.perf_counter()
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as client,
            client.post(target.url, data=_body(pairs), headers=headers, allow_redirects=False) as response,
        ):
            text = await response.content.read(ANSWER_MAX_BYTES)
            took_ms = (time.perf_counter() - began) * 1000
            error = None if response.status == 200 else _error(text)
            return Answer(response.status, took_ms, error)
    except TimeoutError:
        return Answer(None, None, f"no answer in time from {_shown(target)}")
    except aiohttp.ClientError as error:
        return Answer(
            None, None, f"is an ingest node listening at {_shown(target)}? ({type(error).__name__})"
        )


def _shown(target: Target) -> str:
    return printable(str(target.url.with_user(None)))


def _error(text: bytes) -> str:
    """What an answer says of why it was not taken."""
    try:
        answer = msgspec.json.decode(text, type=dict[str, str])
        said = f"{answer['error']}: {answer['detail']}"
    except (msgspec.MsgspecError, KeyError):
        said = text.decode(errors="replace") or "without a reason"
    return shortened(redact(said), ERROR_SHOWN_CHARS)
