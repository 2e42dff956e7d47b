"""Jobs: replays and discards that an operator asked for, as Redis keeps them. Pure.

A command makes a `Job` and one `PartitionJob` for each partition that it touches; the workers that own the partitions
carry it out (`worker/jobs/`), so it survives the command. `ns:jobs:<group>` holds the Job by its id: what to do. Only
commands write it, and a worker that found that the job has to stop. `{ns:p}:jobs:<group>` holds the PartitionJob by
the same id: how far the job is in partition p. The command creates it, and from then on the owner of the partition
writes it, in the same commit as what it counts.

A job counts *runs*: one event for one handler. Each run selected ends as exactly one of succeeded, failed (it is a dead
letter again), gone (no handler of that name is loaded any more) and discarded; until then it is under way, or parked
behind a dead letter of its own session.
"""

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

JOBS_KEPT_MAX: Final = 100
"""Jobs that Redis keeps; a command that creates one more removes the oldest that has ended. It fits a list on a
screen, and bounds what each worker reads when a job changes."""

JOB_TTL_MS: Final = 7 * 86_400_000
"""A job that has ended is removed so long after its creation, by the next command that creates one."""

SELECTED_IDS_MAX: Final = 1_000
"""Dead letters that one job can name by their ids. More are better selected by what they have in common."""

JobKind = Literal["dead", "discard", "callbacks", "archive"]
"""`dead`: run dead letters again. `discard`: remove dead letters. `callbacks`: run kept callbacks again. `archive`: run
those of an archive again, which a command feeds (`schemas.replay_feed`)."""

JobState = Literal["running", "done", "stopped", "failing"]
"""`stopped`: an operator stopped it. `failing`: it stopped itself, as most of what it ran failed again."""


class SelectableLetter(Protocol):
    """The fields of a dead letter that a selection looks at, as `worker.entries.dead_letter.DeadLetter` has them."""

    @property
    def code(self) -> str: ...  # noqa: D102 - as in DeadLetter
    @property
    def reason(self) -> str: ...  # noqa: D102
    @property
    def failed_at_ms(self) -> int: ...  # noqa: D102
    @property
    def session_uuid(self) -> str | None: ...  # noqa: D102
    @property
    def event_name(self) -> str | None: ...  # noqa: D102
    @property
    def handler(self) -> str | None: ...  # noqa: D102


class Selection(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an operator selected: all conditions given must hold; None and an empty `ids` stand for any."""

    ids: tuple[str, ...] = ()
    """Public ids of dead letters (`worker.entries.dead_letter.public_id`), SELECTED_IDS_MAX at most."""
    handler: str | None = None
    event: str | None = None
    """An EventName of Plivo's."""
    session: str | None = None
    """A SessionUUID."""
    group: str | None = None
    """A group key of `dead groups`."""
    reason: str | None = None
    """The code of a dead letter, or a part of its reason, in upper or lower case."""
    since_ms: int | None = None
    """Dead letters: given up at this time or later. Callbacks: received then or later. Milliseconds since the epoch."""
    until_ms: int | None = None
    """As `since_ms`: before this time."""

    @property
    def is_empty(self) -> bool:
        """Nothing is selected by, so everything matches."""
        return self == NOTHING_SELECTED

    def matches(self, letter: SelectableLetter, letter_id: str, group_key: str | None) -> bool:
        """Whether a dead letter is selected; `letter_id`: its public id, `group_key`: the group that it belongs to."""
        return (
            (not self.ids or letter_id in self.ids)
            and self.handler in (None, letter.handler)
            and self.event in (None, letter.event_name)
            and self.session in (None, letter.session_uuid)
            and self.group in (None, group_key)
            and self._matches_reason(letter)
            and self.matches_time(letter.failed_at_ms)
        )

    def matches_time(self, at_ms: int) -> bool:
        """Whether a time is in the selected range: from `since_ms` on, and before `until_ms`."""
        return (self.since_ms is None or at_ms >= self.since_ms) and (
            self.until_ms is None or at_ms < self.until_ms
        )

    def _matches_reason(self, letter: SelectableLetter) -> bool:
        if self.reason is None:
            return True
        wanted = self.reason.casefold()
        return wanted == letter.code.casefold() or wanted in letter.reason.casefold()


NOTHING_SELECTED: Final = Selection()


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is to be done, in all partitions: the value of a field of `ns:jobs:<group>`."""

    id: str
    kind: JobKind
    selection: Selection
    created_ms: int
    """By the clock of the command."""
    partitions: tuple[int, ...]
    """Those with a PartitionJob."""
    rate: float = 0.0
    """Runs begun in a second at most, by all workers together; 0 for no bound."""
    by: str = ""
    """Who asked for it: `user@host`."""
    stopped: bool = False
    """An operator stopped it: nothing more of it is begun. What was put into a retry queue is still run there."""
    failing: bool = False
    """A worker stopped it, as most of what it ran failed again."""


class PartitionJob(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a job is in one partition: the value of a field of `{ns:p}:jobs:<group>`."""

    created_ms: int
    """As `Job.created_ms`: a record without a Job is removed some time after it."""
    end: str
    """The last entry of the stream (`{ns:p}:dead`, or `{ns:p}:callbacks` for `callbacks`) when the job was created; it
    goes no further, so that what fails again is not run again by the same job. `0-0` if the stream was empty, and for
    `archive`, where the feed says where it ends."""
    state: JobState = "running"
    cursor: str = "0-0"
    """Everything up to this entry is dealt with: put into a retry queue, counted as gone or discarded, or not
    selected. For `callbacks`: every session whose last entry in the window is at or before this one. For `archive`: an
    entry of the job's feed."""
    scanned: bool = False
    """The cursor has reached the end: nothing more will be taken on."""
    window: tuple[str, str] | None = None
    """Only for `callbacks`: the entries after the first ID, up to the second, are worked on, session by session."""
    appended: int = 0
    """Only for `callbacks` and `archive`: so many events of the session after the cursor are in retry queues already.
    Only ever more than 0 for a session with very many events, which takes several commits."""
    selected: int = 0
    """Runs taken on so far."""
    succeeded: int = 0
    failed: int = 0
    gone: int = 0
    discarded: int = 0
    parked: int = 0
    """Runs that wait behind a dead letter of their session. An operator who replays that lets them go on."""
    under_way: dict[str, int] = {}
    """Runs that wait in retry queues that are tried, by queue: `<handler, percent-encoded> <SessionUUID>`."""

    @property
    def ended(self) -> bool:
        """Nothing more will be begun, and nothing is under way."""
        return self.state != "running" and not self.under_way


class JobTotals(NamedTuple):
    """A job's counts over all of its partitions."""

    state: JobState
    """`running` as long as one partition is."""
    partitions_left: int
    """Partitions in which it has not ended; each waits for a worker that owns it."""
    selected: int
    succeeded: int
    failed: int
    gone: int
    discarded: int
    parked: int
    under_way: int

    @property
    def ended(self) -> bool:
        """Nothing more will be begun, and nothing is under way."""
        return not self.partitions_left


def sum_up(records: Iterable[PartitionJob]) -> JobTotals:
    """The totals of a job's PartitionJobs."""
    records = list(records)
    states = {record.state for record in records}
    order: tuple[JobState, ...] = ("running", "failing", "stopped")
    return JobTotals(
        state=next((state for state in order if state in states), "done"),
        partitions_left=sum(not record.ended for record in records),
        selected=sum(record.selected for record in records),
        succeeded=sum(record.succeeded for record in records),
        failed=sum(record.failed for record in records),
        gone=sum(record.gone for record in records),
        discarded=sum(record.discarded for record in records),
        parked=sum(record.parked for record in records),
        under_way=sum(count for record in records for count in record.under_way.values()),
    )


_encode: Final = msgspec.msgpack.Encoder().encode
_job_decoder: Final = msgspec.msgpack.Decoder(Job)
_partition_job_decoder: Final = msgspec.msgpack.Decoder(PartitionJob)


def encode_job(job: Job) -> bytes:
    """The msgpack of a Job."""
    return _encode(job)


def decode_job(value: bytes) -> Job:
    """Read what `encode_job` wrote. Raises msgspec.MsgspecError for anything else."""
    return _job_decoder.decode(value)


def encode_partition_job(record: PartitionJob) -> bytes:
    """The msgpack of a PartitionJob."""
    return _encode(record)


def decode_partition_job(value: bytes) -> PartitionJob:
    """Read what `encode_partition_job` wrote. Raises msgspec.MsgspecError for anything else."""
    return _partition_job_decoder.decode(value)


# Job ids: syllables, so that one can be read out over a phone, no digits, so that logs do not take one for a number.

_CONSONANTS: Final = "bdfghjklmnprstvwz"
_VOWELS: Final = "aeiou"
_SYLLABLES: Final = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]

ID_EPOCH_MS: Final = 1_735_689_600_000
"""2025-01-01: job ids count from here."""

ID_TICK_MS: Final = 20_000
"""The unit of the time in a job id: four syllables last for 33 years. Jobs made within it sort by chance."""

ID_CHANCES: Final = len(_SYLLABLES) ** 2
"""How many ids there are for one tick."""


def new_job_id(created_ms: int, chance: int) -> str:
    """The id of a job, as `bado-kemi-tufa`: ids sort by their time.

    `created_ms`: milliseconds since the epoch. `chance`: a random number of 0 … ID_CHANCES - 1; another job may have
    the id all the same, so it is written with HSETNX.
    """
    number = (created_ms - ID_EPOCH_MS) // ID_TICK_MS * ID_CHANCES + chance
    syllables = []
    for _ in range(6):
        number, at = divmod(number, len(_SYLLABLES))
        syllables.append(_SYLLABLES[at])
    text = "".join(reversed(syllables))
    return f"{text[:4]}-{text[4:8]}-{text[8:]}"
