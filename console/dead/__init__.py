"""`maskline dead`: what could not be handled, and replaying or discarding it."""
