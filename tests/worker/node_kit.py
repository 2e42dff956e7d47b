"""A worker node in the process of a test, which crashes when the test says."""

import asyncio

from maskline.worker.node import WorkerNode


async def crash_node(node: WorkerNode) -> None:
    """Drop a node as a kill would: what it had in memory and had not committed is gone, and its leases are kept."""
    for partition in [*node.owned]:
        node._manager._lose(partition, "a crash")
    node._started = False
    node._watchdog.stop()
    for task in node._tasks:
        task.cancel()
    await asyncio.wait(node._tasks)
    await node.background.stop()
    await node._dispatcher.stop()
    await node._connections.stop()
    await node.admin.stop()
