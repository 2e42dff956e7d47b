"""Makes the file of a session that a test can replay: its callbacks, with fictional numbers in place of the real ones.

Rules: nothing is written before it was checked that the file gives the same order as the session's own callbacks, and
that no number of the session is left in it. The format: `schemas.session_export`.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from maskline.console.output import shortened
from maskline.console.session.facts import KeptCallback, SessionFacts
from maskline.console.session.fictional_callback import add_numbers, rewrite, rewrite_session, texts_of
from maskline.console.session.fictional_text import FictionalTexts
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, decode_callback, encode_callback
from maskline.schemas.errors import ConfigError, MasklineError
from maskline.schemas.session_export import (
    ExportedCallback,
    ExportSettings,
    SessionExport,
    encode_export,
)
from maskline.schemas.settings import Settings
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.jobs.session_replay import put_in_order
from maskline.worker.ordering.reorder import Arrival, Policy, Release

NAME_SHOWN_CHARS: Final = 40
"""Of a parameter's name in an error."""


class ExportError(MasklineError):
    """A session cannot be exported faithfully."""


class OrderedCallback(NamedTuple):
    """What became of a callback: what a replay must give again."""

    place: int
    """Of the callback in the file, from 0."""
    number: int | None
    order: str
    """`doubled` for one that repeats another."""
    missing: tuple[int, ...]
    run: int


def make_export(
    facts: SessionFacts,
    settings: Settings,
    policy: Policy,
    *,
    complete: bool,
    on_progress: Callable[[int], None] = lambda _: None,
) -> bytes:
    """The bytes of the file. `complete`: whether every callback of the session is still retained. `on_progress` gets
    how many callbacks are rewritten, now and then.

    Raises ExportError where the file would not replay as the session did, and TooManyNumbersError.
    """
    if not facts.callbacks:
        raise ExportError("no callback of the session is retained any more, so there is nothing to export")
    raw = [decode_callback(it.entry.encoded) for it in facts.callbacks]
    accounts = {callback.auth_id for callback in raw}
    texts = FictionalTexts(accounts.union(*settings.auth_tokens))
    for callback in raw:
        add_numbers(texts, callback)
    rewritten = list[RawCallback]()
    for callback in raw:
        rewritten.append(rewrite(callback, texts))
        on_progress(len(rewritten))
    _check_order(facts.callbacks, rewritten, settings, policy)
    _check_texts(rewritten, texts)
    export = SessionExport(
        session_uuid=rewrite_session(facts.session_uuid, texts),
        settings=ExportSettings(
            gap_timeout_ms=settings.gap_timeout_ms,
            first_sequence=settings.first_sequence,
            recording_sequence=settings.recording_sequence,
            late=settings.late,
            held_max=settings.held_max,
            ignored_parameters=tuple(settings.ignored_parameters),
        ),
        callbacks=tuple(
            ExportedCallback(at_ms=it.arrival.arrived_ms, callback=callback)
            for it, callback in zip(facts.callbacks, rewritten, strict=True)
        ),
        complete=complete,
    )
    return encode_export(export)


def require_new(path: Path, *, force: bool) -> None:
    """Raise ConfigError if the file exists, unless `force`."""
    if path.exists() and not force:
        raise ConfigError(f"session: {path} exists; --force overwrites it")


def write_file(path: Path, content: bytes, *, force: bool) -> None:
    """Write a new file, or, with `force`, any. Raises ConfigError if it exists or cannot be written."""
    try:
        with path.open("wb" if force else "xb") as file:
            file.write(content)
    except FileExistsError:
        require_new(path, force=False)
    except OSError as error:
        raise ConfigError(f"session: {path} cannot be written: {error.strerror or error}") from None


def _check_order(
    kept: Sequence[KeptCallback], rewritten: Sequence[RawCallback], settings: Settings, policy: Policy
) -> None:
    decoder = entry_decoder(frozenset(settings.ignored_parameters))
    shared = settings.recording_sequence == "shared"
    arrivals = [
        decoder.arrival_of(it.entry.entry_id, [CALLBACK_FIELD, encode_callback(callback)], shared)
        for it, callback in zip(kept, rewritten, strict=True)
    ]
    if _ordered([it.arrival for it in kept], policy) != _ordered(arrivals, policy):
        raise ExportError(
            "the session would not replay in the same order with fictional numbers: nothing is written"
        )


def _ordered(arrivals: Sequence[Arrival], policy: Policy) -> list[OrderedCallback]:
    places = {it.payload.entry_id: place for place, it in enumerate(arrivals)}
    ordered = []
    for outcome in put_in_order(arrivals, policy)[0]:
        arrival, place = outcome.arrival, places[outcome.arrival.payload.entry_id]
        if isinstance(outcome, Release):
            ordered.append(
                OrderedCallback(place, arrival.number, outcome.order, outcome.missing, outcome.run)
            )
        else:
            ordered.append(OrderedCallback(place, arrival.number, "doubled", (), 0))
    return ordered


def _check_texts(rewritten: Iterable[RawCallback], texts: FictionalTexts) -> None:
    for callback in rewritten:
        for name, text in (*texts_of(callback), ("Content-Type", callback.content_type)):
            if texts.is_left_in(text):
                shown = "a parameter" if texts.is_left_in(name) else shortened(name, NAME_SHOWN_CHARS)
                raise ExportError(
                    f"a phone number or an account of the session would be left in the file, in {shown}: "
                    "nothing is written"
                )
