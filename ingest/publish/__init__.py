"""Appends callbacks to the streams in Redis: group commit, connections, circuit breaker, durability."""
