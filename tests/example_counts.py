"""How many examples hypothesis tries of a property."""

import os

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
"""`HYPOTHESIS_PROFILE=long make test` tries as many as each test asks for, as the runs on pushes do."""

PART, FEWEST = 4, 50
"""Else a quarter of them, and at least so many: every run draws others."""


def examples(asked: int) -> int:
    """`max_examples` of a test that asks for so many."""
    return asked if LONG else min(asked, max(asked // PART, FEWEST))
