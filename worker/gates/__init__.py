"""Decides whether a handler may run now: pauses, the circuit breaker of what it calls, and its own limits."""
