"""Long tests begin first, spread over the processes of `pytest -n`: one that begins last is waited for alone.

xdist's `worksteal` gives each process an equal run of the tests, in their order.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Final, TypeVar

Item = TypeVar("Item")

LONG_TESTS: Final = frozenset(
    (
        "test_a_crowd_of_workers_shares_thousands_of_partitions_within_a_few_rounds",
        "test_callbacks_answered_through_a_failover_are_handled",
        "test_chaos_run_keeps_all_promises",
        "test_each_handlers_sequence_is_the_models",
        "test_eight_deploys_during_a_backoff_run_nothing_twice",
        "test_events_in_the_spools_of_two_nodes_are_handled_in_order",
        "test_every_event_reaches_the_handler_once_and_in_order",
        "test_kills_from_outside_never_make_a_slow_event_a_dead_letter",
        "test_only_the_event_that_crashes_workers_is_a_dead_letter",
        "test_outage_under_load_costs_nothing_but_time",
        "test_partitions_are_shared_over_all_servers",
        "test_saves_under_traffic_lose_no_event_and_handle_none_twice",
        "test_sentinel_failover_under_load_keeps_the_order",
        "test_stream_stays_within_bounds_for_many_times_the_retention",
        "test_two_crashing_events_are_told_apart",
    )
)
"""Names of tests that take ten seconds and more beside others; a name that is missing here costs time alone."""


def spread(items: Sequence[Item], long: Sequence[bool], processes: int) -> list[Item]:
    """The items in the order in which they are given to `processes`, the `long` ones at the beginning of each run."""
    first = [item for item, is_long in zip(items, long, strict=True) if is_long]
    others = iter([item for item, is_long in zip(items, long, strict=True) if not is_long])
    spread_items: list[Item] = []
    left = len(items)
    for process in range(processes):
        count = left // (processes - process)
        left -= count
        mine = first[process::processes]
        spread_items += mine
        spread_items += islice(others, max(count - len(mine), 0))
    return [*spread_items, *others]
