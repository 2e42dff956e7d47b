"""The HTTP servers that are measured, a file each, and what they are started with."""
