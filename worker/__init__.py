"""The worker, and what handler modules import from it: `on`, `Context`, `Retry`, `Reject`, `resource`."""

from worker.context import Context
from worker.outcome import Reject, Retry
from worker.registry import on, resource

__all__ = ["Context", "Reject", "Retry", "on", "resource"]
