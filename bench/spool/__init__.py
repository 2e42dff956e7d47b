"""The spool alone, without HTTP in front of it: 64 clients in the same process wait for their callbacks."""
