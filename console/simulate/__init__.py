"""`maskline simulate`: sends the callbacks of masking sessions as Plivo would, signed, to a URL.

`sessions` makes the callbacks of a session, `plan` adds losses, displacement and duplicates, `player` sends the
requests, `report` and `command` show the result. The first two are pure and seeded: the same seed gives the same
bytes.
"""
