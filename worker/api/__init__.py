"""What handler modules import by way of `maskline`."""

from maskline.worker.api.context import Context
from maskline.worker.api.exceptions import Reject, Retry
from maskline.worker.api.registry import on, resource

__all__ = ["Context", "Reject", "Retry", "on", "resource"]
