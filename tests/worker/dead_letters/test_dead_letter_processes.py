"""Handlers of dead letters in real workers: through a deployment, in the middle of a call."""

import json
import signal
import textwrap
from pathlib import Path

from process_kit import PATIENCE_S, Fleet
from servers import wait_until

HANDLERS = """
    import asyncio, json, os
    from pathlib import Path
    from maskline import Reject, on

    HERE = Path(__file__).parent

    @on.every(name="picky", on_give_up="skip")
    async def picky(event, ctx):
        raise Reject("no")

    @on.dead(name="tell")
    async def tell(letter, ctx):
        with (HERE / "told").open("a") as file:
            file.write(json.dumps([os.getpid(), letter.sequence_number, letter.reason, letter.id]) + "\\n")
        while not (HERE / "may_end").exists():
            await asyncio.sleep(0.01)
"""


def test_each_letter_is_told_once_through_a_deployment_in_the_middle_of_a_call(crew: Fleet, tmp_path: Path):
    module, told_file, may_end = (tmp_path / name for name in ("telling.py", "told", "may_end"))
    module.write_text(textwrap.dedent(HANDLERS))

    def told():
        return [json.loads(line) for line in told_file.read_text().splitlines()] if told_file.exists() else []

    crew.put("s", 1)
    old = crew.start(handlers=module)
    wait_until(told, within_s=PATIENCE_S, what="the first letter to be told")
    for number in (2, 3):
        crew.put("s", number)
    wait_until(lambda: len(crew.dead_letters()) == 3, within_s=PATIENCE_S, what="three dead letters")
    new = crew.start(handlers=module)
    old.signal(signal.SIGTERM)

    def owners():
        return [worker for _, worker in crew.leases().values()]

    wait_until(
        lambda: owners() == [new.worker_id] * crew.partitions,
        within_s=PATIENCE_S,
        what="the new worker to own all",
    )
    may_end.touch()
    assert old.process.wait(PATIENCE_S) == 0
    wait_until(lambda: len(told()) >= 3, within_s=PATIENCE_S, what="the other letters to be told")
    assert new.terminate() == 0
    assert [(number, reason) for _, number, reason, _ in told()] == [
        (number, "rejected: no") for number in (1, 2, 3)
    ]
    assert [pid for pid, *_ in told()] == [old.pid, new.pid, new.pid]
