"""Reads new entries from the streams, and takes them through decoding and ordering to the dispatcher."""
