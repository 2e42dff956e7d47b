"""Calls handlers: one event of a session at a time, with time limits, threads and retries."""
