"""For tests of handler modules: `Harness` takes callbacks in any order and shows what the handlers got. No Redis."""

from maskline.worker.testing.callbacks import SESSION_UUID, callback
from maskline.worker.testing.calls import Call, DeadCall
from maskline.worker.testing.harness import Harness
from maskline.worker.testing.resources import HarnessStream

__all__ = ["SESSION_UUID", "Call", "DeadCall", "Harness", "HarnessStream", "callback"]
