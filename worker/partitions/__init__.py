"""Holds what a worker owns: each partition's open entries and gaps, its commits, its retention."""
