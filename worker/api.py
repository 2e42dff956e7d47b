"""What handler modules import by way of `maskline`."""

from maskline.worker.context import Context
from maskline.worker.outcome import Reject, Retry
from maskline.worker.registry import on, resource

__all__ = ["Context", "Reject", "Retry", "on", "resource"]
