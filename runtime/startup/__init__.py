"""Runs first in every process: orders the search path for modules, and handles signals during imports."""
