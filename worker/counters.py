"""What a worker process counts: plain integers on the hot path, turned into metrics when they are asked for."""

from collections import Counter, defaultdict


class Counters:
    """Counts since the start of the process."""

    def __init__(self) -> None:
        self.read = 0
        self.duplicates = 0
        self.given_up = 0
        """Sequence numbers that were given up."""
        self.released: Counter[str] = Counter()
        """Events by order."""
        self.dead: Counter[str] = Counter()
        """Dead letters by code."""
        self.unreadable: Counter[str] = Counter()
        """Values that could not be read, by Plivo's names of their attributes: those of schemas.events alone."""
        self.handled: Counter[str] = Counter()
        """Successful attempts by handler."""
        self.failed: Counter[str] = Counter()
        """Failed attempts by handler."""
        self.handler_seconds: defaultdict[str, float] = defaultdict(float)
        """Time in handlers, awaiting included."""
        self.commits = 0
        self.fenced = 0
        """Commits refused because the lease had gone to somebody else."""
        self.leases_gained = 0
        self.leases_lost = 0
        """Leases that ended without being given back."""
        self.diverged = 0
        """Partitions begun again because their server had lost what was seen of them."""
        self.crashes = 0
        """Handlers that were running for an event when their worker went down."""
        self.sandbox_runs: Counter[str] = Counter()
        """Runs of handlers in a sandbox, by outcome: handled, failed, crashed, impossible."""
        self.trimmed = 0
        """Entries that retention has taken."""
        self.unreadable_states = 0
        self.loop_blocks = 0
        self.forced_gaps = 0
        """Gaps given up early because the process held too much."""
