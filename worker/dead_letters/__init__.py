"""Calls the handlers of dead letters, `@on.dead`: once for each letter, through crashes and changes of owner."""
