# cython: language_level=3, boundscheck=False, wraparound=False
"""The two ordinary cases of `worker.ordering.reorder.SessionOrder.arrive` in C: an arrival that is due, and one that
waits for its turn. Also how sessions come into memory and leave it, for `worker.partitions.partition`.

It decides nothing otherwise than `worker.ordering.reorder` does: what is not ordinary is left untouched, for Python to
decide (tests/worker/ordering/test_in_c.py holds both against each other). It is worth 1.4 µs of 2.4 for each event.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_DelItem, PyDict_GetItemWithError, PyDict_Next, PyDict_SetItem
from cpython.object cimport PyObject
from cpython.ref cimport PyTypeObject
from libc.string cimport memcpy

from maskline.worker.native.slots cimport at_slot, check_fields, fill_slot, set_slot, slot_of
from maskline.worker.native.packing cimport (
    CLOSED,
    ENDING_US,
    FLOOR_US,
    NEXT,
    OPENING,
    RECORDING,
    RELEASED,
    RUN,
    STATUS,
    TOP_US,
    UNSEQUENCED,
    VERSION,
    decode_ordinary_state,
)

from maskline.schemas.events import Event
from maskline.worker.ordering.reorder import NONE_WAITING, Arrival, Release, SessionOrder
from maskline.worker.entries.entry import Entry
from maskline.worker.partitions.session import NO_RELEASES, LiveSession
from maskline.worker.ordering.state import NEW_SESSION, RELEASED_BYTES, RELEASED_REMEMBERED, LaneState, SessionState

cdef extern from "<string.h>":
    void *memmem(const void *haystack, size_t haystack_size, const void *needle, size_t needle_size) nogil

cdef extern from "Python.h":
    PyTypeObject *Py_TYPE(PyObject *owner) noexcept
    object PyType_GenericAlloc(PyTypeObject *kind, Py_ssize_t items)

cdef extern from *:
    """
    #if defined(__GNUC__)
    #define prefetch(place) (__builtin_prefetch((char *)(place)), __builtin_prefetch((char *)(place) + 64))
    #else
    #define prefetch(place) ((void)(place))
    #endif
    """
    void prefetch(void *place) noexcept

cdef enum:
    NUMBER_BYTES = 8
    FINGERPRINT_BYTES = 8
    EVICTED_AT_ONCE = 128
    WAITING_MAX = 8  # arrivals of a session that wait: all of them are looked through once or twice

cdef Py_ssize_t RING_MAX = RELEASED_REMEMBERED * RELEASED_BYTES
if RELEASED_BYTES != NUMBER_BYTES + FINGERPRINT_BYTES:
    raise ImportError("what is remembered of a release has another size")

check_fields(Release, "arrival order missing run state")

cdef Py_ssize_t NUMBER = slot_of(Arrival, "number")
cdef Py_ssize_t FINGERPRINT = slot_of(Arrival, "fingerprint")
cdef Py_ssize_t TIMESTAMP_US = slot_of(Arrival, "timestamp_us")
cdef Py_ssize_t IS_RECORDING = slot_of(Arrival, "recording")
cdef Py_ssize_t ENDS_SESSION = slot_of(Arrival, "ends_session")
cdef Py_ssize_t ARRIVED_MS = slot_of(Arrival, "arrived_ms")
cdef Py_ssize_t PAYLOAD = slot_of(Arrival, "payload")

cdef Py_ssize_t EVENT = slot_of(Entry, "event")
cdef Py_ssize_t SESSION_UUID = slot_of(Event, "session_uuid")

cdef Py_ssize_t STATE = slot_of(SessionOrder, "state")
cdef Py_ssize_t WAITING = slot_of(SessionOrder, "waiting")
cdef Py_ssize_t QUEUE = slot_of(LiveSession, "queue")
cdef Py_ssize_t SCHEDULED = slot_of(LiveSession, "scheduled")
cdef Py_ssize_t TOUCHED_MS = slot_of(LiveSession, "touched_ms")
cdef Py_ssize_t UUID = slot_of(LiveSession, "uuid")
cdef Py_ssize_t PARTITION = slot_of(LiveSession, "partition")
cdef Py_ssize_t PROGRESS = slot_of(LiveSession, "progress")
cdef Py_ssize_t GAP_ENDS_MS = slot_of(LiveSession, "gap_ends_ms")
cdef Py_ssize_t RETRIES = slot_of(LiveSession, "retries")
if sorted(SessionOrder.__slots__ + LiveSession.__slots__) != sorted(
    "state waiting uuid partition queue progress scheduled gap_ends_ms touched_ms retries".split()
):
    raise ImportError("LiveSession has other attributes")


def arrive_ordinary(list arrivals not None, size_t at, dict sessions not None, states, policy, list ready, owner):
    """Take arrivals, from the index `at` on, as long as each is ordinary; return the index of the first that is not.

    Nothing was done on that one, nor on one that raises: Python takes it, and says what is wrong.

    `sessions`: those in memory, in the order of their use. `states`: of those that are not. `ready`: sessions that have
    work now are added to it. `owner`: the Partition; this is a method of it in all but name.
    """
    cdef long long count = 0
    try:
        while at < <size_t>len(arrivals) and arrive_one(arrivals[at], sessions, states, policy, ready, owner, &count):
            at += 1
    except Exception:
        pass
    if count:
        owner.count_released_in_order(count)
    return at


cdef bint arrive_one(arrival, dict sessions, states, policy, list ready, owner, long long *count) except -1:
    """Take one arrival, and return whether it was ordinary; if not, nothing is done but to load its session."""
    cdef PyObject *found
    cdef Py_ssize_t before
    cdef list outcomes
    cdef object entry = at_slot(arrival, PAYLOAD) if type(arrival) is Arrival else None
    cdef object event = at_slot(entry, EVENT) if type(entry) is Entry else None
    cdef object uuid, session, queue
    if not isinstance(event, Event):
        return False
    uuid = at_slot(event, SESSION_UUID)
    found = PyDict_GetItemWithError(sessions, uuid)
    if found == NULL:
        session = sessions[uuid] = loaded_session(uuid, states.get(uuid), owner)
    else:
        session = <object>found
        PyDict_DelItem(sessions, uuid)
        PyDict_SetItem(sessions, uuid, session)
    if type(session) is not LiveSession:
        return False
    before = len(at_slot(session, WAITING))
    outcomes = ordinary_outcomes(session, arrival, policy)
    if outcomes is None:
        return False
    set_slot(session, TOUCHED_MS, at_slot(arrival, ARRIVED_MS))
    if outcomes:
        count[0] += len(outcomes)
        queue = at_slot(session, QUEUE)
        if queue:
            queue += outcomes
        else:
            set_slot(session, QUEUE, outcomes)
        if at_slot(session, SCHEDULED) is False:
            set_slot(session, SCHEDULED, True)
            ready.append(session)
    if before or not outcomes:
        owner.count_waiting(session, before)
    return True


cdef object loaded_session(uuid, encoded, owner):
    """As `Partition.load_session`, and for the same reason in C: where sessions come and go, each event loads one."""
    cdef object session, state = NEW_SESSION
    if encoded is not None:
        state = decode_ordinary_state(encoded)
        if state is None:
            return owner.load_session(uuid, encoded)
    session = PyType_GenericAlloc(<PyTypeObject *>LiveSession, 0)
    fill_slot(session, STATE, state)
    fill_slot(session, WAITING, NONE_WAITING)
    fill_slot(session, UUID, uuid)
    fill_slot(session, PARTITION, owner)
    fill_slot(session, QUEUE, NO_RELEASES)
    fill_slot(session, PROGRESS, None)
    fill_slot(session, SCHEDULED, False)
    fill_slot(session, GAP_ENDS_MS, None)
    fill_slot(session, TOUCHED_MS, 0)
    fill_slot(session, RETRIES, None)
    return session


def evict_idle(dict sessions not None, Py_ssize_t surplus, dict changed not None, being_written not None):
    """Drop the oldest sessions that are over the bound, as long as each is idle; return how many.

    As `Partition._evict`. `changed`, `being_written`: sessions with states that Redis has not confirmed.
    """
    cdef PyObject *uuids[EVICTED_AT_ONCE]
    cdef PyObject *oldest[EVICTED_AT_ONCE]
    cdef Py_ssize_t at, found, idle = EVICTED_AT_ONCE, dropped = 0
    cdef Py_ssize_t place = 0  # kept: what is dropped leaves its place empty, and is not to be walked over again
    cdef object uuid
    while idle == EVICTED_AT_ONCE and dropped < surplus:
        found = idle = 0
        while found < min(surplus - dropped, EVICTED_AT_ONCE) and PyDict_Next(
            sessions, &place, &uuids[found], &oldest[found]
        ):
            prefetch(uuids[found])
            prefetch(oldest[found])
            found += 1
        prefetch_states(oldest, found)
        while idle < found and is_idle(<object>oldest[idle]):
            uuid = <object>uuids[idle]
            if type(uuid) is not str or uuid in changed or uuid in being_written:
                break
            idle += 1
        for uuid in [<object>uuids[at] for at in range(idle)]:
            PyDict_DelItem(sessions, uuid)
        dropped += idle
    return dropped


cdef void prefetch_states(PyObject **sessions, Py_ssize_t count) noexcept:
    """Fetch what the sessions consist of into the cache, all of it at once.

    They were not used for long. Freeing them one after the other would wait for memory several times for each, which is
    half of what evicting one costs.
    """
    cdef PyObject *parts[EVICTED_AT_ONCE]
    memcpy(parts, sessions, count * sizeof(PyObject *))
    prefetch_slots(parts, count, LiveSession, STATE, TOUCHED_MS)
    prefetch_slots(parts, count, SessionState, STATUS, RECORDING)
    prefetch_slots(parts, count, LaneState, RELEASED, TOP_US)


cdef void prefetch_slots(PyObject **parts, Py_ssize_t count, kind, Py_ssize_t slot, Py_ssize_t other) noexcept:
    """Begin to fetch two attributes of each; let the first take its owner's place, or NULL where that is another kind."""
    cdef Py_ssize_t at
    cdef char *owner
    for at in range(count):
        owner = <char *>parts[at]
        parts[at] = NULL
        if owner != NULL and Py_TYPE(<PyObject *>owner) == <PyTypeObject *>kind:
            parts[at] = (<PyObject **>(owner + slot))[0]
            prefetch(parts[at])
            prefetch((<PyObject **>(owner + other))[0])


cdef bint is_idle(session) except -1:
    return (
        type(session) is LiveSession
        and at_slot(session, SCHEDULED) is False
        and is_empty(at_slot(session, QUEUE))
        and is_empty(at_slot(session, WAITING))
        and at_slot(session, RETRIES) is None
    )


cdef bint is_empty(some) except -1:
    """Whether it is an empty list or tuple, found without a call that could run Python."""
    return (type(some) is tuple and not len(<tuple>some)) or (type(some) is list and not len(<list>some))


cpdef ordinary_outcomes(session, arrival, policy):
    """As `worker.ordering.reorder.SessionOrder.arrive`; None, and nothing done, where the case is not ordinary."""
    cdef object number, lane, following, waiting, state, first_sequence
    cdef bint recording, due
    cdef list outcomes
    if type(arrival) is not Arrival or not isinstance(session, SessionOrder):
        return None
    number, waiting, state = at_slot(arrival, NUMBER), at_slot(session, WAITING), at_slot(session, STATE)
    if number is None or at_slot(arrival, ENDS_SESSION) is True or type(state) is not SessionState:
        return None
    recording = at_slot(arrival, IS_RECORDING)
    lane = at_slot(state, RECORDING if recording else STATUS)
    if type(lane) is not LaneState or at_slot(lane, FLOOR_US) is not None or at_slot(lane, ENDING_US) is not None:
        return None
    following = at_slot(lane, NEXT)
    if waiting and not all_wait_on(waiting, arrival, number, recording, following, policy):
        return None
    if following is None:
        first_sequence = policy.first_sequence
        if at_slot(lane, RUN) or number < first_sequence:
            return None
        due = number == first_sequence
    elif number < following:
        return None
    else:
        due = number == following
    if is_in(at_slot(lane, RELEASED), at_slot(arrival, FINGERPRINT)):
        return None
    if not due:
        if len(waiting) >= policy.held_max:
            return None
        if waiting is NONE_WAITING:
            set_slot(session, WAITING, [arrival])
        else:
            waiting.append(arrival)
        return []
    outcomes = [released(session, arrival, lane, number, recording)]
    if waiting:
        try:
            release_followers(session, waiting, number, recording, outcomes)
        except Exception:
            pass  # it waits on, until its gap is given up: what was released before it must not be lost
        if not waiting:
            set_slot(session, WAITING, NONE_WAITING)
    return outcomes


cdef int release_followers(session, list waiting, number, bint recording, list outcomes) except -1:
    """Release the arrival that waited for this number, and the one that waited for it, and so on."""
    cdef object lane, held
    while waiting:
        number += 1
        for at, held in enumerate(waiting):
            if at_slot(held, NUMBER) == number:
                break
        else:
            break
        lane = at_slot(at_slot(session, STATE), RECORDING if recording else STATUS)
        outcomes.append(released(session, held, lane, number, recording))
        del waiting[at]
    return 0


cdef bint all_wait_on(list waiting, arrival, number, bint recording, following, policy) except -1:
    """Whether all that waits is in the arrival's lane, has distinct numbers that are not passed yet, and is not expired.

    A number that was passed is undecided, and may be late with the next release. A SessionTimeout waits for spools. What
    has outstayed the gap timeout may wait for spools as well, or is expired: Python tells which.
    """
    cdef object held
    if len(waiting) > WAITING_MAX:
        return False
    numbers = {number}
    for held in waiting:
        if type(held) is not Arrival or at_slot(held, IS_RECORDING) != recording:
            return False
        if at_slot(held, ENDS_SESSION) is not False:
            return False
        if following is not None and at_slot(held, NUMBER) < following:
            return False
        numbers.add(at_slot(held, NUMBER))
    expires_ms = at_slot(waiting[0], ARRIVED_MS) + policy.gap_timeout_ms
    return len(numbers) > len(waiting) and expires_ms > at_slot(arrival, ARRIVED_MS)


cdef object released(session, arrival, lane, number, bint recording):
    """As `SessionOrder._release`, in order."""
    cdef object release, state = at_slot(session, STATE), at_us = at_slot(arrival, TIMESTAMP_US), top_us = at_slot(lane, TOP_US)
    cdef object run = at_slot(lane, RUN), opening = at_slot(lane, OPENING)
    cdef bytes ring = remembered(at_slot(lane, RELEASED), number, at_slot(arrival, FINGERPRINT))
    if at_us is not None and (top_us is None or at_us > top_us):
        top_us = at_us
    if at_slot(lane, NEXT) is None:
        opening = number
    lane = LaneState(number + 1, run, opening, ring, top_us)
    state = SessionState(
        at_slot(state, VERSION),
        at_slot(state, STATUS) if recording else lane,
        lane if recording else at_slot(state, RECORDING),
        at_slot(state, UNSEQUENCED),
        at_slot(state, CLOSED),
    )
    release = Release(arrival, "in_order", (), run, state)
    set_slot(session, STATE, state)  # when nothing can fail any more
    return release


cdef bint is_in(bytes ring, bytes fingerprint) except -1:
    if ring is None or fingerprint is None:
        raise TypeError("no bytes")
    # `in` would ask its left side for a number first, and pay for the refusal: 0.4 µs.
    return memmem(
        PyBytes_AS_STRING(ring), PyBytes_GET_SIZE(ring), PyBytes_AS_STRING(fingerprint), PyBytes_GET_SIZE(fingerprint)
    ) != NULL


cdef bytes remembered(bytes ring, unsigned long long number, bytes fingerprint):
    """As `worker.ordering.state.remember_released`."""
    cdef Py_ssize_t kept = min(PyBytes_GET_SIZE(ring), RING_MAX - NUMBER_BYTES - FINGERPRINT_BYTES)
    cdef bytes longer
    cdef char *to
    cdef int byte
    if PyBytes_GET_SIZE(fingerprint) != FINGERPRINT_BYTES:
        raise ValueError("not a fingerprint")
    longer = PyBytes_FromStringAndSize(NULL, kept + NUMBER_BYTES + FINGERPRINT_BYTES)
    to = PyBytes_AS_STRING(longer)
    memcpy(to, PyBytes_AS_STRING(ring) + PyBytes_GET_SIZE(ring) - kept, kept)
    to += kept
    for byte in range(NUMBER_BYTES):
        to[byte] = <char>(number >> 8 * (NUMBER_BYTES - 1 - byte) & 0xff)
    memcpy(to + NUMBER_BYTES, PyBytes_AS_STRING(fingerprint), FINGERPRINT_BYTES)
    return longer
