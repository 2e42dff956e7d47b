"""Holds the worker's parts in C; each has a twin in Python that does the same without a compiler."""
