"""`maskline refused release`: verifies refused callbacks again, and appends those that are good to their streams, once.

The order of the steps makes it safe to be killed, and to be run twice or by two at a time:

1. A callback is appended to its partition's stream together with the key of its request, by one script (release.lua).
   A request whose key is there is not appended again.
2. The server confirms as MASKLINE_DURABILITY asks.
3. The request is removed from those that are kept.

A page at a time, in the order in which the callbacks were received.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import hiredis
import msgspec

from maskline.console.confirmation import confirmed
from maskline.console.output import note, print_json
from maskline.console.redis_reader import Query, RedisReader, run_with_reader
from maskline.console.refused.kept_requests import KeptRequest, pages
from maskline.console.selectors import RefusedSelection
from maskline.ingest.auth.accounts import require_auth_tokens
from maskline.ingest.auth.verifier import AcceptedCallback
from maskline.ingest.publish.durability import Durability
from maskline.ingest.refused import scripts
from maskline.ingest.refused.release import ReleaseVerifier
from maskline.schemas.errors import RedisUnavailableError

KEYS_REMEMBERED_MS: Final = 3_600_000
"""How much longer the key of a released request is remembered than the request could be kept."""


class Report(msgspec.Struct):
    """What a release found and did; `--json` prints exactly these fields."""

    dry_run: bool
    good: int = 0
    """Selected, and good by the settings of now."""
    released: int = 0
    """Appended to their streams."""
    released_before: int = 0
    """Good, and in their streams already: an earlier release was cut off, or another one runs."""
    still_refused: dict[str, int] = msgspec.field(default_factory=dict)
    """By the reason for which they are refused now. They stay kept."""
    gone: int = 0
    """Selected by ID, and not there: released, expired, or pushed out."""

    @property
    def exit_code(self) -> int:
        """1 if anything selected is not good, or not there."""
        return 1 if self.still_refused or self.gone else 0


def main(arguments: argparse.Namespace, selection: RefusedSelection) -> int:
    """Look, ask, and release; the exit code. `arguments`: `dry_run`, `yes` and `json`. Raises ConfigError."""
    report, last_id = Report(dry_run=arguments.dry_run), "0-0"

    async def look(reader: RedisReader) -> int:
        nonlocal last_id
        last_id = await _look(reader, selection, report)
        return 0

    async def release(reader: RedisReader) -> int:
        await _release(reader, selection, last_id, report)
        return 0

    code = run_with_reader(look)
    if code:
        return code
    if report.good and not arguments.dry_run:
        total = report.good + sum(report.still_refused.values())
        question = f"release {report.good:,} of {total:,} refused callbacks to the handlers?"
        if not confirmed(question, "refused release", yes=arguments.yes):
            note("nothing was released")
            return 1
        code = run_with_reader(release)
        if code:
            return code
    _print(report, as_json=arguments.json)
    return report.exit_code


async def _look(reader: RedisReader, selection: RefusedSelection, report: Report) -> str:
    """Count what would be released; the ID of the last request that was looked at."""
    require_auth_tokens(reader.settings)
    if reader.settings.verify == "off":
        note("MASKLINE_VERIFY=off: signatures are not checked, so forged callbacks would be released as well")
    verifier, refused, last_id = ReleaseVerifier(reader.settings), Counter[str](), "0-0"
    async for page in pages(reader, selection):
        for kept in page:
            decision = verifier.verify(kept.request)
            if isinstance(decision, AcceptedCallback):
                report.good += 1
            else:
                refused[decision.code] += 1
        if page:
            last_id = page[-1].id
    report.still_refused = dict(refused.most_common())
    if selection.ids:
        found = [len(page) async for page in pages(reader, RefusedSelection(selection.ids))]
        report.gone = len(selection.ids) - sum(found)
    return last_id


async def _release(reader: RedisReader, selection: RefusedSelection, last_id: str, report: Report) -> None:
    """Release what `_look` has seen and is good still."""
    verifier = ReleaseVerifier(reader.settings)
    async for page in pages(reader, selection, last_id=last_id):
        good = [
            (kept, decision)
            for kept in page
            if isinstance(decision := verifier.verify(kept.request), AcceptedCallback)
        ]
        if good:
            good.sort(key=lambda each: each[0].request.received_at_ms)
            await _release_page(reader, good, report)
    report.gone += max(0, report.good - report.released - report.released_before)


async def _release_page(
    reader: RedisReader, good: Sequence[tuple[KeptRequest, AcceptedCallback]], report: Report
) -> None:
    keys, settings = reader.keys, reader.settings
    remembered_ms = settings.refused_ttl_s * 1000 + KEYS_REMEMBERED_MS
    durability = Durability(settings.durability, settings.publish_timeout_ms)
    queries = []
    for kept, accepted in good:
        partition = accepted.partition_hash % reader.partitions
        command = scripts.release(
            keys, partition, kept.request.key, accepted.value, remembered_ms=remembered_ms
        )
        queries.append(Query(keys.callbacks(partition), command))
    confirmations = []
    if durability.page_command:
        stream_of_each = reader.one_of_each_server(key for key, _ in queries if key is not None)
        confirmations = [Query(stream, durability.page_command) for stream in stream_of_each]
    replies = await reader.send([*queries, *confirmations])
    for reply in replies[: len(queries)]:
        _require(
            not isinstance(reply, hiredis.ReplyError), f"Redis does not take a callback: {reply}", report
        )
    for reply in replies[len(queries) :]:
        _require(
            durability.reached(reply),
            f"Redis does not confirm MASKLINE_DURABILITY={settings.durability}",
            report,
        )
    ids = [kept.id for kept, _ in good]
    (removed,) = await reader.send([Query(keys.refused.requests, scripts.remove(keys.refused, ids))])
    _require(not isinstance(removed, hiredis.ReplyError), f"Redis removes nothing: {removed}", report)
    report.released += sum(replies[: len(queries)])
    report.released_before += len(queries) - sum(replies[: len(queries)])


def _require(is_so: Any, otherwise: str, report: Report) -> None:
    if not is_so:
        raise RedisUnavailableError(
            f"{otherwise}. {report.released:,} callbacks were released before; say it again once that is mended: "
            "none is released twice"
        )


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    if report.dry_run:
        print(f"{report.good:,} refused callbacks are good by the settings of now, and would be released")
    else:
        print(f"{report.released:,} refused callbacks released")
    if report.released_before:
        print(f"{report.released_before:,} had been released before")
    for code, count in report.still_refused.items():
        print(f"{count:,} still refused: {code}")
    if report.gone:
        print(f"{report.gone:,} not there: released, expired, or pushed out by others")
