"""For tests of handler modules: `Harness` takes callbacks in any order and shows what the handlers got. No Redis."""

from maskline.worker.testing import SESSION_UUID, Call, DeadCall, Harness, callback

__all__ = ["SESSION_UUID", "Call", "DeadCall", "Harness", "callback"]
