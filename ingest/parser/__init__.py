"""Reads requests off the wire: heads and bodies, strictly. Pure."""
