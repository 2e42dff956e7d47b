"""What a server refuses again and again: it is said, with its reason, and not many times a second."""

import json

from process_kit import PATIENCE_S, Fleet, callback
from servers import wait_until

from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.keys import partition_of

REPEATS = 12
"""Of what is tried again every 0.1 s: more than a second's worth."""


def lines(worker, event):
    entries = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
    return [entry for entry in entries if entry["event"] == event]


def kill_amid_handlers(crew: Fleet, **settings) -> None:
    """A worker dies while handlers run, and leaves the group behind them: they are suspects from now on."""
    worker = crew.start(RECORD_MS=60_000, **settings)
    crew.put_all([(f"s{session}", 1) for session in range(4)])
    crew.client.xadd(crew.stream("done"), {CALLBACK_FIELD: b"nothing"})
    wait_until(lambda: worker.metric("handlers_running") == 4, within_s=PATIENCE_S)
    worker.kill()


def test_suspects_run_on_a_server_that_is_out_of_memory(own_crew: Fleet):
    kill_amid_handlers(own_crew)
    own_crew.client.config_set("maxmemory", 1)
    second = own_crew.start()
    own_crew.until_calls(4)
    own_crew.until_drained()
    assert not lines(second, "suspect mark not written")
    assert second.terminate() == 0


def test_refused_suspect_mark_is_logged_at_a_bounded_rate(own_crew: Fleet):
    kill_amid_handlers(own_crew)
    own_crew.client.execute_command("ACL", "SETUSER", "default", "-expire")  # which the script needs
    second = own_crew.start()
    event = "suspect mark not written"
    wait_until(lambda: lines(second, event), within_s=PATIENCE_S)
    refused = failed_scripts(own_crew)
    wait_until(lambda: failed_scripts(own_crew) > refused + REPEATS, within_s=PATIENCE_S)
    assert len(lines(second, event)) <= 4, "one a partition"
    assert "expire" in lines(second, event)[0]["reason"].lower()
    own_crew.client.execute_command("ACL", "SETUSER", "default", "+@all")
    own_crew.until_calls(4)
    own_crew.until_drained()
    assert second.terminate() == 0


def test_reading_resumes_when_the_server_allows_time_again(own_crew: Fleet):
    worker = own_crew.start()
    own_crew.put("s1", 1)
    own_crew.until_calls(1)
    own_crew.client.execute_command("ACL", "SETUSER", "default", "-time")
    event = "partition read failed"
    wait_until(lambda: lines(worker, event) or worker.process.poll(), within_s=PATIENCE_S)
    own_crew.put("s1", 2)
    own_crew.client.execute_command("ACL", "SETUSER", "default", "+@all")
    own_crew.until_calls(2)
    assert "'time'" in lines(worker, event)[0]["reply"]
    assert worker.terminate() == 0


def failed_scripts(crew: Fleet) -> int:
    return int(crew.client.info("commandstats").get("cmdstat_evalsha", {}).get("failed_calls", 0))


def test_failed_acquisition_is_not_logged_at_every_try(crew: Fleet):
    crew.client.set(crew.keys.callbacks(3), "foreign")
    before = failed_scripts(crew)
    worker = crew.start()
    wait_until(lambda: failed_scripts(crew) > before + 3, within_s=PATIENCE_S)
    (line,) = lines(worker, "partition acquire failed")
    assert line["partition"] == 3
    assert worker.terminate() == 0


def test_refused_commit_is_logged_once_however_busy_other_partitions_are(crew: Fleet):
    stuck = partition_of("stuck", crew.partitions)
    crew.client.set(crew.keys.dead(stuck), "foreign")
    worker = crew.start()
    crew.client.xadd(crew.stream("stuck"), {CALLBACK_FIELD: b"no callback"})
    event = "commit refused"
    wait_until(lambda: lines(worker, event), within_s=PATIENCE_S)
    begun = worker.metric("commits_total")
    others = [name for name in (f"s{n}" for n in range(50)) if partition_of(name, crew.partitions) != stuck]

    def busy():
        for name in others[:5]:
            crew.client.xadd(
                crew.stream(name), {CALLBACK_FIELD: callback(name, None, Try=str(crew.client.time()))}
            )
        return worker.metric("commits_total") > begun + 100

    wait_until(busy, within_s=PATIENCE_S)
    (line,) = lines(worker, event)
    assert line["partition"] == stuck
    crew.client.delete(crew.keys.dead(stuck))
    crew.until_drained()
    assert worker.terminate() == 0
