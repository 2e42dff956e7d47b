"""What tests of the commands that start jobs share: workers that report handlers, an owner that carries jobs out."""

import contextlib
import threading
import time

import msgspec
from servers import SETTLE_S, wait_until

from maskline.schemas.handler_control import HandlerReport, encode_reports
from maskline.schemas.jobs import decode_job, decode_partition_job, encode_partition_job
from maskline.schemas.keys import Keys

GROUP = "workers"


def keys_of(namespace, group=GROUP):
    return Keys(namespace, group)


def jobs_in(client, namespace, group=GROUP):
    """The jobs that Redis keeps."""
    return [decode_job(value) for value in client.hvals(keys_of(namespace, group).jobs)]


def record_in(client, namespace, job, partition):
    value = client.hget(keys_of(namespace).partition_jobs(partition), job.id)
    return None if value is None else decode_partition_job(value)


def change_record(client, namespace, job, partition, **changes):
    """Write a partition's record as its owner does."""
    record = msgspec.structs.replace(record_in(client, namespace, job, partition), **changes)
    client.hset(keys_of(namespace).partition_jobs(partition), job.id, encode_partition_job(record))


def report_worker(client, namespace, *handlers, worker="w1", age_ms=0):
    """A worker with these handlers, whose last heartbeat is so old."""
    keys = keys_of(namespace)
    client.hset(keys.handlers, worker, encode_reports({name: HandlerReport() for name in handlers}))
    client.zadd(keys.workers, {worker: time.time() * 1000 - age_ms})


@contextlib.contextmanager
def owner(server, namespace, carry_out):
    """A thread that waits for a job and calls `carry_out(client, job)`; its failure fails the test."""
    failures, ended, control = [], threading.Event(), keys_of(namespace).control
    with server.client() as client:
        before = client.hget(control, "revision")

    def work():
        try:
            with server.client() as client:
                wait_until(
                    lambda: ended.is_set() or client.hget(control, "revision") != before,
                    within_s=SETTLE_S,
                    what="a job",
                )
                if not ended.is_set():
                    carry_out(client, max(jobs_in(client, namespace), key=lambda job: job.created_ms))
        except BaseException as failure:  # noqa: BLE001 - reported by the test's own thread
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(SETTLE_S)
    assert not failures, failures


def end_job(client, namespace, job, state="done", **counts):
    """End a job in all of its partitions; the counts are those of the first."""
    for partition in job.partitions:
        change_record(client, namespace, job, partition, state=state, **counts)
        counts = {}
