"""Runs the retry queues of owned partitions when they are due."""
