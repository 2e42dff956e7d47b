"""Decides where a callback goes, Redis or the spool, and drains the spool to Redis later."""
