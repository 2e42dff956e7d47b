"""Puts the events of one session in order. Pure."""
