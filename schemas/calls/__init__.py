"""The calls of a session, as its events tell of them: observations in, call summaries out. Pure."""
