"""Finds the events that bring a worker down, and runs their handlers in a sandbox."""
