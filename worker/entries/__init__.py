"""Turns stream entries into events, or into dead letters."""
