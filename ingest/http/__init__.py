"""Serves client connections: reads requests, has them decided, writes the answers in order."""
