"""`maskline new`: a handler module to begin with, its test, and what compose needs to run it."""
