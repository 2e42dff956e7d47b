"""Adds prometheus_client's default registry to /metrics: handler modules' metrics, and `process_*` and `python_*`.

It holds others' code, so nothing in it may break the page or block the event loop:

- It is collected in a thread, as prometheus_client's own server does, for COLLECT_MAX_S at most. The page has the
  metrics collected by then; a collector that hangs is skipped until it returns.
- Each metric is encoded by itself: one that raises, or is not valid, is left out alone.
- Names that are on the page already, those of maskline first, are not repeated.
- Labels that look like phone numbers become tokens. Their form decides, not the numbers of the events under way: a
  series must not change its name when an event is over. A known number of another form is hidden while it is known.

Metrics that are left out are counted by reason, and logged.
"""

import asyncio
import contextlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import prometheus_client
from prometheus_client.core import Metric

from maskline.runtime.logs import get_logger
from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.schemas.privacy import redact

COLLECT_MAX_S: Final = 2.0
"""Well below the ten seconds after which a scraper counts the whole process as down by default."""
TEXTS_MAX_BYTES: Final = 32 << 20
"""Bound on one page: some hundred thousand series, more than a scraper takes."""
BOUND_LABELS: Final = frozenset({"le", "quantile"})
"""Labels that prometheus_client itself sets: figures, however long, and no phone numbers."""
END: Final = b"# EOF\n"
"""The last line of a page in OpenMetrics."""

_NAMES: Final = re.compile(rb"^(?:# TYPE (\S+)|([^#\s{]+))", re.MULTILINE)

left_out: Final = Counter[str]()
"""Metrics left out, by reason: `failed`, `slow`, `clash`, `too_large`, `no_thread`."""

_log = get_logger("maskline.admin")
_log_limit = LogRateLimit()


class MetricSource(Protocol):
    """A registry, or a collector."""

    def collect(self) -> Iterable[Metric]:
        """Its metrics as they are now."""


Encode = Callable[[Any], bytes]
"""Makes a page of a registry, as `prometheus_client.exposition.choose_encoder` gives it."""


class DefaultRegistry:
    """The default registry, as one admin port shows it."""

    def __init__(self, registry: prometheus_client.CollectorRegistry = prometheus_client.REGISTRY) -> None:
        self._registry = registry
        self._hanging: dict[Any, threading.Thread] = {}
        """Collectors that did not return in time, and the threads they run in."""
        self._lock = asyncio.Lock()

    async def add_to(self, page: bytes, encode: Encode) -> bytes:
        """The page with the metrics of the default registry appended, encoded by `encode`."""
        body, ended = page.removesuffix(END), page.endswith(END)
        collection = _Collection(encode, names_of(body))
        async with self._lock:
            await self._collect(collection)
        return b"".join((body, *list(collection.texts), END if ended else b""))

    async def _collect(self, collection: "_Collection") -> None:
        self._hanging = {one: thread for one, thread in self._hanging.items() if thread.is_alive()}
        collectors = []
        for collector in self._collectors():
            if collector in self._hanging:
                collection.leave_out("slow", collector)
            else:
                collectors.append(collector)
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def work() -> None:
            collection.run(collectors)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(done.set)

        thread = threading.Thread(target=work, name="maskline-metrics", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # none to be had; the next scrape tries again
            collection.leave_out("no_thread", self._registry)
        else:
            try:
                async with asyncio.timeout(COLLECT_MAX_S):
                    await done.wait()
            except TimeoutError:
                collection.closed = True
                at = collection.at or self._registry
                self._hanging[at] = thread
                collection.leave_out("slow", at)
        self._report(collection)

    def _collectors(self) -> list[MetricSource]:
        # Collected together, they end at the first that raises: so they do if this attribute is gone one day.
        collectors = getattr(self._registry, "_collector_to_names", None)
        if collectors is None:
            return [self._registry]
        return [self._registry.restricted_registry(["target_info"]), *list(collectors)]

    def _report(self, collection: "_Collection") -> None:
        for reason, what, error in list(collection.left_out):
            left_out[reason] += 1
            if _log_limit.due(reason, what):
                _log.warning("default registry metrics left out", why=reason, of=what, error=error)


class _Collection:
    """One collection of all collectors. `names`: the names that are on the page already."""

    def __init__(self, encode: Encode, names: set[bytes]) -> None:
        self._encode = encode
        self._names = names
        self._size_bytes = 0
        self.texts: list[bytes] = []
        self.left_out: list[tuple[str, str, str | None]] = []
        """Reason, the collector or metric, and the error if there was one."""
        self.at: MetricSource | None = None
        """The collector whose turn it is."""
        self.closed = False
        """Set when the page no longer waits for the rest."""

    def run(self, collectors: Iterable[MetricSource]) -> None:
        for self.at in collectors:
            try:
                for family in self.at.collect():
                    if self.closed:
                        return
                    self._add(family)
            except BaseException as error:  # noqa: BLE001 - whatever a user's collector raises, SystemExit too
                self.leave_out("failed", self.at, error)

    def leave_out(self, reason: str, what: Any, error: BaseException | None = None) -> None:
        name = what.name if isinstance(what, Metric) else type(what).__name__
        self.left_out.append((reason, name, None if error is None else f"{type(error).__name__}: {error}"))

    def _add(self, family: Metric) -> None:
        try:
            text = self._encode(_SingleMetricRegistry(_redact(family))).removesuffix(END)
        except Exception as error:  # noqa: BLE001 - a name, a label or a figure that is none
            self.leave_out("failed", family, error)
            return
        names = names_of(text)
        if names & self._names:
            self.leave_out("clash", family)
        elif self._size_bytes + len(text) > TEXTS_MAX_BYTES:
            self.leave_out("too_large", family)
        else:
            self._names |= names
            self._size_bytes += len(text)
            self.texts.append(text)


class _SingleMetricRegistry:
    """A registry of one metric."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def names_of(page: bytes) -> set[bytes]:
    """The names of all metrics and series on a page."""
    return {name or series for name, series in _NAMES.findall(page)}


def _redact(family: Metric) -> Metric:
    """The metric with tokens in place of phone numbers. Raises ValueError if it is not valid."""
    shown = Metric(family.name, redact(family.documentation), family.type, family.unit)
    series = set[tuple[Any, ...]]()
    for sample in family.samples:
        if not sample.name.startswith(family.name):
            raise ValueError(f"the series {sample.name} is none of this metric's")
        labels = _labels(sample.labels)
        exemplar = sample.exemplar
        if exemplar is not None:
            exemplar = exemplar._replace(labels=_labels(exemplar.labels))
        one = (sample.name, sample.timestamp, *sorted(labels.items()))
        if one not in series:  # two numbers of one token, or a collector that repeats itself
            series.add(one)
            shown.samples.append(sample._replace(labels=labels, exemplar=exemplar))
    return shown


def _labels(labels: dict[str, str]) -> dict[str, str]:
    return {name: value if name in BOUND_LABELS else _label(value) for name, value in labels.items()}


def _label(value: str) -> str:
    redacted = redact(value)
    return KNOWN_NUMBERS.hide(value) if redacted == value else redacted
