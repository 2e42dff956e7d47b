"""Plays signed callbacks at the ingest nodes of a chaos run, and writes down what was answered.

What is sent is a function of the seed (`sessions`): masking sessions as `maskline simulate` makes them, with a tag in
each callback, some events late, a few never sent, a few repeated though they were answered, a few that come once more
with something changed (a parameter, its time, or a damaged number), a few that tell a handler to be slow, to fail or to
reject. When it is sent, and to which node at a resend, depends on the answers.

Rules
- What gets no 200 is sent again, the same bytes under a new signature, until it does or RESEND_MAX_S is over.
  Plivo gives up after 55 seconds; here it takes less patience with one answer and has more of it in all.
- SessionTimeout goes out when all others of its session are answered: in truth it comes an hour later.
- At most IN_FLIGHT_MAX callbacks are under way. Where answers stall, so does the traffic.
"""

import asyncio
import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple
from urllib.parse import urlencode
from uuid import uuid4

import aiohttp
from chaos_handlers import DO, TAG
from history import Answer

from maskline.console.simulate.sessions import SessionOptions, make_session
from maskline.ingest.auth.signatures import sign_v3
from maskline.schemas.parameters import FORM_TYPE, Parameters
from maskline.schemas.values import read_time

AUTH_ID, AUTH_TOKEN = "MAXXXXXXXXXXXXXXXXXX", "a-token-of-nobody"

IN_FLIGHT_MAX = 200
ANSWER_TIMEOUT_S = 2.5
RESEND_FIRST_S, RESEND_PAUSE_MAX_S = 0.1, 1.0
RESEND_MAX_S = 55.0

STEP_S = (0.05, 0.6)
"""Between two events of a session."""
LATE_SHARE, LATE_S = 0.15, (0.2, 1.2)
"""Events that are overtaken by others; less than the gap timeout of the workers."""
NEVER_SHARE = 0.005
REPEATED_SHARE = 0.05
ALTERED_SHARE, ALTERED_LATER_S = 0.04, (0.0, 1.5)
RESTAMPED_LATER_S = (1, 40)
DAMAGED_NUMBER = 2**53 - 1
TREATED = {
    "every": {"slow": 0.002, "bug": 0.005, "flaky": 0.01, "reject": 0.001},
    "ends": {"bug": 0.02, "flaky": 0.02},
    "remote": {"slow": 0.002, "reject": 0.001},
}
"""How often a callback says that a handler is to do something, by handler."""

_SESSIONS = SessionOptions(calls_min=1, calls_max=2)


class Event(NamedTuple):
    """One callback to be sent."""

    after_s: float
    """Since its session began."""
    tag: str
    session: str
    name: str
    number: int | None
    pairs: list[tuple[str, str]]
    ends_session: bool
    repeat: bool
    """To be sent once more, although it was answered."""


def sessions(seed: int) -> Iterator[list[Event]]:
    """The callbacks of one session after the other, each list in the order of sending."""
    for index in itertools.count():
        yield _session(seed, index)


def _session(seed: int, index: int) -> list[Event]:
    rng = random.Random(f"{seed}:{index}:chaos")
    events: list[Event] = []
    at_s = 0.0
    for place, made in enumerate(make_session(seed, index, _SESSIONS)):
        at_s += rng.uniform(*STEP_S)
        if rng.random() < NEVER_SHARE:
            continue
        late_s = rng.uniform(*LATE_S) if rng.random() < LATE_SHARE else 0.0
        tag = f"{index}.{place}"
        parameters = made.parameters | {TAG: tag} | _treatment(rng)
        events.append(
            Event(
                at_s + late_s,
                tag,
                made.session_uuid,
                made.event_name,
                made.number,
                list(parameters.items()),
                made.ends_session,
                rng.random() < REPEATED_SHARE,
            )
        )
        if made.number is not None and rng.random() < ALTERED_SHARE:
            events.append(_altered(events[-1], rng))
    return sorted(events, key=lambda event: event.after_s)


def _altered(event: Event, rng: random.Random) -> Event:
    """The same event in another callback, with a tag of its own. None of them makes numbering start again."""
    parameters, number = dict(event.pairs), event.number
    parameters |= {TAG: f"{event.tag}.again", "Attempt": "2"}
    kind = rng.choice(("parameter", "time", "number"))
    if kind == "time" and number != _SESSIONS.first_sequence:  # else it would be the opening of a call
        moment = read_time(parameters["EventTimestamp"]) + timedelta(seconds=rng.randint(*RESTAMPED_LATER_S))
        parameters["EventTimestamp"] = moment.isoformat()
    elif kind == "number":
        number = DAMAGED_NUMBER
        parameters["SequenceNumber"] = str(number)
    return event._replace(
        after_s=event.after_s + rng.uniform(*ALTERED_LATER_S),
        tag=parameters[TAG],
        number=number,
        pairs=list(parameters.items()),
        repeat=False,
    )


def _treatment(rng: random.Random) -> dict[str, str]:
    said = []
    for handler, shares in TREATED.items():
        draw = rng.random()
        for do, share in shares.items():
            if 0 <= draw < share:
                said.append(f"{handler}={do}")
            draw -= share
    return {DO: " ".join(said)} if said else {}


class _Open:
    """What of a session is not answered yet, and the event that waits for it."""

    __slots__ = ("ender", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        self.ender: Event | None = None


class Traffic:
    """Sends to the nodes (name and port each), `rate` callbacks a second on average; `note` takes each answer."""

    def __init__(
        self, nodes: Sequence[tuple[str, int]], *, seed: int, rate: float, note: Callable[[Answer], None]
    ) -> None:
        self._nodes = nodes
        self._seed = seed
        self._rate = rate
        self._note = note
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._due: list[tuple[float, int, Event]] = []
        self._released: deque[Event] = deque()
        """Session ends that nothing holds back any more."""
        self._open: dict[str, _Open] = {}
        self._tie = itertools.count()
        self.sent = 0
        self.answered: dict[str, str] = {}
        """The event of every tag that was answered 200."""
        self.given_up = 0
        self.last_answer: dict[str, float] = {}
        """When a request of each node, begun at that time, was answered 200."""

    @property
    def under_way(self) -> int:
        return len(self._tasks)

    async def play(self, duration_s: float, stop: asyncio.Event) -> None:
        """Start sessions for so long, send all their callbacks, wait for all answers; `stop` ends it early."""
        connector = aiohttp.TCPConnector(limit=IN_FLIGHT_MAX, keepalive_timeout=5)
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as client:
            try:
                await self._play(client, duration_s, stop)
                if not stop.is_set() and self._tasks:
                    await asyncio.wait(self._tasks, timeout=RESEND_MAX_S + ANSWER_TIMEOUT_S)
            finally:
                for task in list(self._tasks):
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _play(self, client: aiohttp.ClientSession, duration_s: float, stop: asyncio.Event) -> None:
        began, source = time.monotonic(), sessions(self._seed)
        next_session = began
        while not stop.is_set():
            now = time.monotonic()
            while next_session <= now < began + duration_s:
                events = next(source)
                # What stalled answers have held up is not made up for.
                next_session = max(next_session, now - 1.0) + len(events) / self._rate
                self._begin(events, now)
            if self._due and self._due[0][0] <= now:
                event = heapq.heappop(self._due)[2]
                opened = self._open.get(event.session)
                if event.ends_session and opened is not None and opened.left > 1:
                    opened.ender = event
                    continue
                await self._start(client, event)
            elif self._released:
                await self._start(client, self._released.popleft())
            elif now >= began + duration_s and not self._due and not self._open:
                return
            else:
                await asyncio.sleep(0.005)

    def _begin(self, events: list[Event], now: float) -> None:
        if events:
            self._open[events[0].session] = _Open(len(events))
        for event in events:
            heapq.heappush(self._due, (now + event.after_s, next(self._tie), event))

    async def _start(self, client: aiohttp.ClientSession, event: Event) -> None:
        await self._slots.acquire()
        task = asyncio.create_task(self._deliver(client, event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, client: aiohttp.ClientSession, event: Event) -> None:
        self.sent += 1
        try:
            answered = await self._until_answered(client, event)
            if answered and event.repeat:
                await self._ask(client, event, attempt=1)
        finally:
            self._slots.release()
            self._settled(event)

    def _settled(self, event: Event) -> None:
        opened = self._open[event.session]
        opened.left -= 1
        if opened.left == 1 and opened.ender is not None:
            self._released.append(opened.ender)
            opened.ender = None
        if not opened.left:
            del self._open[event.session]

    async def _until_answered(self, client: aiohttp.ClientSession, event: Event) -> bool:
        give_up_at, pause_s = time.monotonic() + RESEND_MAX_S, RESEND_FIRST_S
        for attempt in itertools.count():
            if await self._ask(client, event, attempt) == 200:
                self.answered[event.tag] = event.name
                return True
            if time.monotonic() > give_up_at:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RESEND_PAUSE_MAX_S)
        self.given_up += 1
        return False

    async def _ask(self, client: aiohttp.ClientSession, event: Event, attempt: int) -> int:
        """One request, written down; its status, 0 where there was no answer."""
        place = random.Random(f"{self._seed}:{event.tag}").randrange(len(self._nodes)) + attempt
        node, port = self._nodes[place % len(self._nodes)]
        url, nonce = f"http://127.0.0.1:{port}/callbacks", uuid4().hex
        headers = {
            "Content-Type": FORM_TYPE,
            "X-Plivo-Signature-V3": sign_v3(
                AUTH_TOKEN, "POST", url, Parameters([], event.pairs, None), nonce
            ),
            "X-Plivo-Signature-V3-Nonce": nonce,
        }
        began, status = time.monotonic(), 0
        try:
            async with client.post(url, data=urlencode(event.pairs).encode(), headers=headers) as response:
                await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass
        ended = time.monotonic()
        if status == 200:
            self.last_answer[node] = max(began, self.last_answer.get(node, 0.0))
        self._note(Answer(event.tag, event.session, event.number, event.name, node, began, ended, status))
        return status
