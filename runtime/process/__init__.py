"""Runs and stops processes: event loop, signals, stop deadlines, supervisor."""
