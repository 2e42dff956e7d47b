"""Decides what follows an error of PostgreSQL: whose fault it is, by its SQLSTATE. Pure.

| SQLSTATE | is | follows |
| --- | --- | --- |
| 22…, 21…, 23…, 54… | a value, a key twice in a batch, a constraint, a limit | `ROW`: the batch is split |
| 23514, no partition | of the row's day, not yet or any more | `PARTITION`: it is made, and the batch sent again |
| 0A…, 28…, 3D…, 3F…, 42… | log-in, database, rights, names | `SETUP`: the worker's start stops with one line |
| any other, and none | away, full, busy, read-only, no answer | `AWAY`: the handlers fail, and are tried again |

Once a worker has started, `SETUP` is handled as `AWAY`: someone changes the rights, and no event may be lost by it.
"""

from enum import Enum
from typing import Final

ROW_CLASSES: Final = ("21", "22", "23", "54")
SETUP_CLASSES: Final = ("28", "3D", "3F", "42", "0A")
CHECK_VIOLATION: Final = "23514"
NO_PARTITION: Final = "no partition of relation"


class Verdict(Enum):
    """What is to be done about an error."""

    ROW = "split the batch"
    PARTITION = "make the partition"
    SETUP = "stop the start"
    AWAY = "fail, and try again"


def verdict_of(sqlstate: str | None, message: str = "") -> Verdict:
    """The verdict on an error. `sqlstate`: None for one that did not come from PostgreSQL."""
    if sqlstate is None:
        return Verdict.AWAY
    if sqlstate == CHECK_VIOLATION and NO_PARTITION in message:
        return Verdict.PARTITION
    if sqlstate.startswith(ROW_CLASSES):
        return Verdict.ROW
    return Verdict.SETUP if sqlstate.startswith(SETUP_CLASSES) else Verdict.AWAY
