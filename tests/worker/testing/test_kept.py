"""What a harness keeps in memory changes as Redis does: the model is the one that lua/commit.lua is held to."""

from hypothesis import given
from hypothesis import strategies as st
from retry_queues_kit import QueueModel

from maskline.worker.commands.retry_ops import Again, Append, GiveUpWaiting, Park, Pop, Unpark, Untake
from maskline.worker.testing.kept import Place, RetryQueues

PLACES = st.tuples(st.sampled_from("hi"), st.sampled_from("st"))
DELAYS = st.integers(0, 5_000)
ITEMS = st.binary(min_size=1, max_size=2)
OPS = st.one_of(
    st.builds(lambda at, delay, item: Append(*at, delay, item), PLACES, DELAYS, ITEMS),
    st.builds(lambda at, delay, item: Again(*at, delay, item), PLACES, DELAYS, ITEMS),
    st.builds(lambda at: Pop(*at), PLACES),
    st.builds(lambda at: Park(*at), PLACES),
    st.builds(lambda at: Untake(*at), PLACES),
    st.builds(lambda at, item: Unpark(*at, "1-1", item), PLACES, st.none() | ITEMS),
    st.builds(lambda at, events: GiveUpWaiting(*at, events), PLACES, st.integers(0, 3)),
)


@given(st.lists(OPS, max_size=30))
def test_retry_queues_in_memory_are_those_of_the_model(ops):
    queues, model, due = RetryQueues(), QueueModel(), {}
    for now_ms, op in enumerate(ops):
        model.begin_commit()
        queues.change(op, now_ms)
        model.apply(op)
        due |= {place: now_ms + model.due_in_ms[place] for place in model.scheduled}

        assert {tuple(place): at_ms for at_ms, place in queues.due()} == {
            place: due[place] for place in model.due_in_ms
        }
        assert {tuple(place) for _, place in queues.parked_since()} == model.parked
        for place, items in model.queues.items():
            assert queues.items(Place(*place)) == items
        assert queues.parked == sum(len(model.queues[place]) for place in model.parked)
        assert queues.set_aside == sum(len(model.queues[place]) for place in model.due_in_ms)
