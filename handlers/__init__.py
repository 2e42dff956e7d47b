"""Handler modules that ship with maskline."""
