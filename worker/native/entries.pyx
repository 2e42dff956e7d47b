# cython: language_level=3, boundscheck=False, wraparound=False
"""`worker.entries.decode.EntryDecoder.decode` in C. An entry that is not ordinary goes to `arrival_of`, in Python.

It makes the same objects of the same parts, and saves the interpreter's way from one to the next.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeASCII

from maskline.schemas.fastdecode.native cimport Templates
from maskline.worker.native.slots cimport at_slot, check_fields, slot_of

from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.events import MAY_OPEN_CALL, MAY_OPEN_RECORDING, Event, OfSession, SessionTimeout, UnknownEvent
from maskline.worker.ordering.reorder import Arrival
from maskline.worker.entries.entry import Entry

cdef enum:
    DIGITS_MAX = 15  # of milliseconds in an ID

check_fields(Arrival, "number fingerprint timestamp_us recording ends_session may_open arrived_ms payload")
check_fields(Entry, "entry_id encoded received_at_ms replayed event")

cdef Py_ssize_t PAYLOAD = slot_of(Arrival, "payload")
cdef Py_ssize_t EVENT = slot_of(Entry, "event")
cdef Py_ssize_t SESSION_UUID = slot_of(OfSession, "session_uuid")  # of a call summary as well
cdef Py_ssize_t EVENT_TIMESTAMP = slot_of(Event, "event_timestamp")
cdef Py_ssize_t SEQUENCE_NUMBER = slot_of(Event, "sequence_number")

cdef frozenset OPENS_CALL = MAY_OPEN_CALL
cdef frozenset OPENS_RECORDING = MAY_OPEN_RECORDING


cdef class EntryReader:
    """`templates`: of callbacks. `arrival_of`: the one in Python. `timestamps_us`: by the moment, microseconds since the
    epoch. `recordings`: the types of events that count in the recordings' lane; `is_recording(event)` tells it of those
    that have no type of their own. `internal_refusal(error)`: what refuses an entry that `arrival_of` has failed on."""

    cdef Templates templates
    cdef object arrival_of, timestamps_us, is_recording, internal_refusal
    cdef frozenset recordings

    def __init__(
        self, Templates templates not None, arrival_of, timestamps_us, frozenset recordings not None, is_recording, internal_refusal
    ) -> None:
        self.templates, self.arrival_of, self.timestamps_us = templates, arrival_of, timestamps_us
        self.recordings, self.is_recording, self.internal_refusal = recordings, is_recording, internal_refusal

    def decode_entries(self, entries, bint recording_shared, dict known):
        cdef list ids = [], arrivals = [], refused = []
        cdef dict unknown = {}
        cdef object arrival, uuid
        cdef str entry_id
        cdef bytes encoded_id
        for encoded_id, fields in entries:
            entry_id = PyUnicode_DecodeASCII(PyBytes_AS_STRING(encoded_id), PyBytes_GET_SIZE(encoded_id), NULL)
            ids.append(entry_id)
            try:
                arrival = self.quick_arrival(entry_id, encoded_id, fields, recording_shared)
            except Exception:
                arrival = None
            if arrival is None:
                try:
                    arrival = self.arrival_of(entry_id, fields, recording_shared)
                except UndecodableEntryError as error:
                    refused.append((entry_id, fields, error))
                    continue
                except Exception as error:  # one entry is not to lose the others
                    refused.append((entry_id, fields, self.internal_refusal(error)))
                    continue
            arrivals.append(arrival)
            uuid = at_slot(at_slot(at_slot(arrival, PAYLOAD), EVENT), SESSION_UUID)
            if PyDict_GetItemWithError(known, uuid) == NULL:
                unknown[uuid] = None
        return ids, arrivals, list(unknown), refused

    cdef object quick_arrival(self, str entry_id, bytes encoded_id, fields, bint recording_shared):
        """None where it is not to be had quickly."""
        cdef long long arrived_ms = milliseconds(encoded_id)
        cdef tuple decoded
        cdef bint recording = False
        cdef object event, kind, entry, moment, timestamp_us = None
        cdef PyObject *found
        if arrived_ms < 0 or type(fields) is not list or len(<list>fields) != 2 or (<list>fields)[0] != CALLBACK_FIELD:
            return None
        encoded = (<list>fields)[1]
        if type(encoded) is not bytes:
            return None
        decoded = self.templates.read_callback(<bytes>encoded)
        if decoded is None:
            return None
        event = decoded[0]
        kind = type(event)
        if not recording_shared:
            recording = kind in self.recordings or (kind is UnknownEvent and self.is_recording(event))
        moment = at_slot(event, EVENT_TIMESTAMP)
        if moment is not None:
            found = PyDict_GetItemWithError(self.timestamps_us, moment)
            timestamp_us = self.timestamps_us[moment] if found == NULL else <object>found
        entry = Entry(entry_id, encoded, decoded[2], decoded[3], event)
        return Arrival(
            at_slot(event, SEQUENCE_NUMBER), decoded[1], timestamp_us, recording, kind is SessionTimeout,
            kind in (OPENS_RECORDING if recording else OPENS_CALL), arrived_ms, entry,
        )


cdef long long milliseconds(bytes entry_id) noexcept:
    """The time in the ID of an entry; -1 where it is none that a server makes."""
    cdef const char *text = PyBytes_AS_STRING(entry_id)  # a zero stands behind it
    cdef int at = 0
    cdef long long ms = 0
    while at <= DIGITS_MAX and c"0" <= text[at] <= c"9":
        ms = 10 * ms + (text[at] - c"0")
        at += 1
    return ms if 0 < at <= DIGITS_MAX and text[at] == c"-" else -1
