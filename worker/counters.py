"""What a worker process counts: plain integers on the hot path, read by `worker.metrics` when they are asked for."""

from collections import Counter, defaultdict


class Counters:
    """Counts since the start of the process."""

    def __init__(self) -> None:
        self.read = 0
        """Entries read."""
        self.duplicates = 0
        """Callbacks dropped because they had come before."""
        self.given_up = 0
        """Sequence numbers given up because they did not come in time."""
        self.released: Counter[str] = Counter()
        """Events released to handlers, by order (`in_order`, `after_gap`, `late`, `unsequenced`)."""
        self.dead: Counter[str] = Counter()
        """Dead letters by code."""
        self.unreadable: Counter[str] = Counter()
        """Values that could not be read, by Plivo's names of their attributes: known attributes only."""
        self.handled: Counter[str] = Counter()
        """Successful attempts by handler."""
        self.failed: Counter[str] = Counter()
        """Failed attempts by handler."""
        self.gave_up: Counter[str] = Counter()
        """Dead letters by the handler that gave the event up."""
        self.set_aside: Counter[str] = Counter()
        """Events set aside into retry queues, by handler."""
        self.retried: Counter[str] = Counter()
        """Attempts at events of retry queues, by handler."""
        self.job_runs: Counter[str] = Counter()
        """Runs of jobs that have ended in retry queues, by outcome: succeeded, failed."""
        self.handler_seconds: defaultdict[str, float] = defaultdict(float)
        """Seconds spent in handlers, awaiting included, by handler."""
        self.commits = 0
        """Commits confirmed by Redis."""
        self.fenced = 0
        """Commits and marks refused because another worker has the lease."""
        self.leases_gained = 0
        """Leases acquired."""
        self.leases_lost = 0
        """Leases that ended without being given back."""
        self.diverged = 0
        """Partitions read again because their server had lost what was seen of them."""
        self.crashes = 0
        """Handlers that were running for an event when their worker went down."""
        self.sandbox_runs: Counter[str] = Counter()
        """Runs of handlers in a sandbox, by outcome: handled, failed, crashed, impossible."""
        self.trimmed = 0
        """Entries trimmed by retention."""
        self.unreadable_states = 0
        """Session states that could not be read, so that their order began anew."""
        self.loop_blocks = 0
        """Times that a handler blocked the event loop for too long."""
        self.forced_gaps = 0
        """Gaps given up early because the process held too many events."""
        self.spools_given_up = 0
        """Times that a session waited for a node's spool as long as it may, and the node still held callbacks."""
