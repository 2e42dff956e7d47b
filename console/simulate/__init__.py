"""`maskline simulate`: masking sessions as Plivo would report them, signed, against a URL.

sessions (what happens in a session), plan (what goes wrong on the way), player (requests), command (report).
The first two are pure and seeded: the same seed gives the same bytes.
"""
