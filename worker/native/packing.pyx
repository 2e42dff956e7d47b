# cython: language_level=3, boundscheck=False, wraparound=False
"""`worker.commands.packing` in C, and the way back: reads and writes the states of sessions that have one lane and
nothing unusual, which are nearly all. Others go to Python.

It is worth 1.5 µs of 10 where each event is another session's: each then brings a key and a state in, and both out.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.string cimport memcmp, memcpy

from maskline.worker.native.slots cimport at_slot, check_fields, slot_of

from maskline.worker.ordering.state import (
    NEW_SESSION,
    RELEASED_BYTES,
    STATE_VERSION,
    LaneState,
    SessionState,
    encode_state,
)

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1

cdef enum:
    RELEASE_BYTES = 16
    HEAD_BYTES = 3
    TAIL_BYTES = 15
    FIXINT_END = 0x80  # MessagePack's marks
    BIN_8 = 0xc4
    BIN_16 = 0xc5
    UINT_8 = 0xcc
    UINT_64 = 0xcf
    BYTE_MAX = 0xff
    NUMBER_MAX_BYTES = 9
    RING_MAX_BYTES = 1024
    BULK_HEAD_MAX_BYTES = 24  # a dollar, the digits of a size, CR and LF
    STATE_MAX_BYTES = HEAD_BYTES + 4 * NUMBER_MAX_BYTES + 3 + RING_MAX_BYTES + TAIL_BYTES

cdef unsigned long long NATURAL_MAX = 2**62

check_fields(LaneState, "next run opening released top_us floor_us ending_us")
check_fields(SessionState, "version status recording unsequenced closed retries")

VERSION = slot_of(SessionState, "version")
STATUS = slot_of(SessionState, "status")
RECORDING = slot_of(SessionState, "recording")
UNSEQUENCED = slot_of(SessionState, "unsequenced")
CLOSED = slot_of(SessionState, "closed")
RETRIES = slot_of(SessionState, "retries")

NEXT = slot_of(LaneState, "next")
RUN = slot_of(LaneState, "run")
OPENING = slot_of(LaneState, "opening")
RELEASED = slot_of(LaneState, "released")
TOP_US = slot_of(LaneState, "top_us")
FLOOR_US = slot_of(LaneState, "floor_us")
ENDING_US = slot_of(LaneState, "ending_us")

# How such a state is written: what stands before its lane's numbers and ring, and what behind them.
cdef bytes _head = bytes.fromhex("9601 97")
cdef bytes _tail = bytes.fromhex("c0c0 97c000c0c400c0c0c0 c400 c2 c0")
if encode_state(NEW_SESSION) != _head + bytes.fromhex("c000c0c400c0") + _tail or RELEASED_BYTES != RELEASE_BYTES:
    raise ImportError("a session's state is written otherwise")
cdef const char *HEAD = _head
cdef const char *TAIL = _tail
cdef object NO_RECORDINGS = NEW_SESSION.recording


# Out


def pack_keys(str prefix not None, names):
    """As `worker.commands.packing.pack_keys_in_python`."""
    cdef Py_ssize_t prefix_size, size, total = 0
    cdef const char *prefix_text = PyUnicode_AsUTF8AndSize(prefix, &prefix_size)
    cdef list those = list(names)
    cdef char room[BULK_HEAD_MAX_BYTES]
    cdef bytes packed
    cdef char *to
    for name in those:
        PyUnicode_AsUTF8AndSize(name, &size)
        total += prefix_size + size + bulk_head(room, prefix_size + size) + 2
    packed = PyBytes_FromStringAndSize(NULL, total)
    to = PyBytes_AS_STRING(packed)
    for name in those:
        text = PyUnicode_AsUTF8AndSize(name, &size)
        to += bulk_head(to, prefix_size + size)
        memcpy(to, prefix_text, prefix_size)
        memcpy(to + prefix_size, text, size)
        memcpy(to + prefix_size + size, b"\r\n", 2)
        to += prefix_size + size + 2
    return packed


def pack_states(states):
    """As `worker.commands.packing.pack_states_in_python`."""
    cdef list packed = [], closed = []
    cdef bytes bulk, encoded
    for state in states:
        bulk = ordinary_bulk(state)
        if bulk is None:
            encoded = encode_state(state)
            bulk = b"$%d\r\n%b\r\n" % (len(encoded), encoded)
            if state.closed:
                closed.append(len(packed))
        packed.append(bulk)
    return b"".join(packed), closed


cdef bytes ordinary_bulk(state):
    """The state as an argument of a command; None where something about it is unusual."""
    cdef char head[BULK_HEAD_MAX_BYTES]
    cdef char body[STATE_MAX_BYTES]
    cdef char *to = body
    cdef object lane, ring
    cdef bytes bulk
    cdef Py_ssize_t ring_size, head_size, size
    if type(state) is not SessionState or at_slot(state, RECORDING) is not NO_RECORDINGS:
        return None
    lane, ring = at_slot(state, STATUS), at_slot(state, UNSEQUENCED)
    if type(ring) is not bytes or PyBytes_GET_SIZE(ring) or at_slot(state, CLOSED) is not False:
        return None
    if at_slot(state, RETRIES) is not None:
        return None
    if type(lane) is not LaneState or at_slot(state, VERSION) is not STATE_VERSION:
        return None
    if at_slot(lane, FLOOR_US) is not None or at_slot(lane, ENDING_US) is not None:
        return None
    ring = at_slot(lane, RELEASED)
    if type(ring) is not bytes:
        return None
    ring_size = PyBytes_GET_SIZE(ring)
    if ring_size > RING_MAX_BYTES:
        return None
    memcpy(to, HEAD, HEAD_BYTES)
    to += HEAD_BYTES
    if not (
        write_number(&to, at_slot(lane, NEXT))
        and write_number(&to, at_slot(lane, RUN))
        and write_number(&to, at_slot(lane, OPENING))
    ):
        return None
    if ring_size <= BYTE_MAX:
        to[0], to[1] = <char>BIN_8, <char>ring_size
        to += 2
    else:
        to[0], to[1], to[2] = <char>BIN_16, <char>(ring_size >> 8), <char>(ring_size & BYTE_MAX)
        to += 3
    memcpy(to, PyBytes_AS_STRING(ring), ring_size)
    to += ring_size
    if not write_number(&to, at_slot(lane, TOP_US)):
        return None
    memcpy(to, TAIL, TAIL_BYTES)
    size = to + TAIL_BYTES - body
    head_size = bulk_head(head, size)
    bulk = PyBytes_FromStringAndSize(NULL, head_size + size + 2)
    to = PyBytes_AS_STRING(bulk)
    memcpy(to, head, head_size)
    memcpy(to + head_size, body, size)
    memcpy(to + head_size + size, b"\r\n", 2)
    return bulk


cdef inline Py_ssize_t bulk_head(char *to, Py_ssize_t size) noexcept:
    """Write what begins an argument of so many bytes; return how long it is."""
    cdef int digits = 1
    cdef Py_ssize_t left = size
    while left >= 10:
        left //= 10
        digits += 1
    to[0] = c"$"
    for at in range(digits, 0, -1):
        to[at] = <char>(c"0" + size % 10)
        size //= 10
    memcpy(to + digits + 1, b"\r\n", 2)
    return digits + 3


cdef bint write_number(char **place, number) except -1:
    """Write a number of MessagePack as msgspec does, and move behind it; False where it is none that is usual."""
    cdef int overflow = 0, more = 1
    cdef long long value
    cdef char *to = place[0]
    if type(number) is not int:
        return False
    value = PyLong_AsLongLongAndOverflow(number, &overflow)
    if overflow or value < 0:
        return False
    if value < FIXINT_END:
        to[0] = <char>value
        place[0] = to + 1
        return True
    to[0] = <char>UINT_8
    while more < 8 and value >> 8 * more:
        more *= 2
        to[0] += 1
    for at in range(more, 0, -1):
        to[at] = <char>(value & BYTE_MAX)
        value >>= 8
    place[0] = to + 1 + more
    return True


# In


cpdef decode_ordinary_state(bytes encoded):
    """As `worker.ordering.state.decode_state`, for states that `ordinary_bulk` writes; None for all else."""
    cdef const unsigned char *at
    cdef const unsigned char *end
    cdef long long following, run, opening, top_us
    cdef Py_ssize_t ring_size
    cdef bytes ring
    if encoded is None:
        return None
    at = <const unsigned char *>PyBytes_AS_STRING(encoded)
    end = at + PyBytes_GET_SIZE(encoded) - TAIL_BYTES
    if end - at < HEAD_BYTES or memcmp(at, HEAD, HEAD_BYTES) or memcmp(end, TAIL, TAIL_BYTES):
        return None
    at += HEAD_BYTES
    following, run, opening = take(&at, end), take(&at, end), take(&at, end)
    if following < 0 or run < 0 or opening < 0 or end - at < 3:
        return None
    if at[0] == BIN_8:
        ring_size = at[1]
        at += 2
    elif at[0] == BIN_16:
        ring_size = at[1] << 8 | at[2]
        at += 3
    else:
        return None
    if ring_size > end - at or ring_size % RELEASE_BYTES:
        return None
    ring = PyBytes_FromStringAndSize(<const char *>at, ring_size)
    at += ring_size
    top_us = take(&at, end)
    if top_us < 0 or at != end:
        return None
    return SessionState(STATE_VERSION, LaneState(following, run, opening, ring, top_us), NO_RECORDINGS)


cdef inline long long take(const unsigned char **place, const unsigned char *end) noexcept:
    """Read a number of MessagePack and move behind it; -1 where none is to be read."""
    cdef const unsigned char *at = place[0]
    cdef unsigned long long value = 0
    cdef int more
    if at >= end:
        return -1
    if at[0] < FIXINT_END:
        place[0] = at + 1
        return at[0]
    if not UINT_8 <= at[0] <= UINT_64:
        return -1
    more = 1 << (at[0] - UINT_8)
    if end - at <= more:
        return -1
    place[0] = at + 1 + more
    while more:
        at += 1
        more -= 1
        value = value << 8 | at[0]
    return <long long>value if value <= NATURAL_MAX else -1
