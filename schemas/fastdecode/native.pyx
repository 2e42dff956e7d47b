# cython: language_level=3, boundscheck=False, wraparound=False
"""Templates in C: each reads the forms of one layout, in 1.8 µs a callback where the reference takes some 15.

Rules: a template reads usual values and leaves all others to the reference, by None or ValueError. It reads only plain
ASCII with well-formed escapes, and only what fits the buffers below. These live on the stack, so that several threads
may use one template.

Strategy: one pass over the form undoes its escapes, notes where each value lies, and gathers the key of the layout: the
names and the event's name, as they are written. The template found by the key makes objects for the event's values
only: numbers and the fingerprint are made from the bytes themselves.

C checks neither of these, so this file must: every write into a buffer is within its bound, and every reference that is
taken is given back.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memcmp, memcpy

from maskline.schemas.decode import SESSION_UUID_CHARS_MAX
from maskline.schemas.values import is_null

cdef extern from "Python.h":
    object PyObject_Vectorcall(object called, PyObject *const *arguments, size_t positional, PyObject *keywords)

cdef enum:
    VALUES_MAX = 64  # NAMES_MAX of schemas.fastdecode.forms
    KEY_MAX = 2_304  # NAMES_MAX_CHARS and EVENT_NAME_CHARS_MAX, and a separator for each
    FORM_MAX = 8_192  # bytes: Plivo's have some 400
    PACKED_MAX = FORM_MAX + 3 * VALUES_MAX + 3  # msgpack: up to three bytes before each text, and before all
    DIGITS_MAX = 15  # of a number that is any attribute's: SequenceNumber ends at 16 digits
    ESCAPE = 3  # bytes: %2B

ctypedef const unsigned char *Bytes

cdef struct Value:
    int at
    int size

cdef struct Form:
    int values_count
    int key_size
    Value values[VALUES_MAX]
    unsigned char key[KEY_MAX]  # the names, a & after each, and the event's name
    unsigned char text[FORM_MAX]  # the values, one after the other

cdef signed char HEX[256]
cdef int _byte
for _byte in range(256):
    HEX[_byte] = b"0123456789abcdef".find(bytes([_byte]).lower())

cdef unsigned char PLAIN[256]  # whether a byte of a value stands for itself, and does not end it
for _byte in range(256):
    PLAIN[_byte] = _byte < 0x80 and bytes([_byte]) not in b"&+%"

cdef int SESSION_MAX = SESSION_UUID_CHARS_MAX


cdef bint split(Bytes at, Py_ssize_t size, Form *form) noexcept nogil:
    """Split an encoded form into its values and its key; False where it is not as usual."""
    cdef Bytes end = at + size
    cdef Bytes name
    cdef Bytes event_name = NULL
    cdef Py_ssize_t name_size, event_name_size = 0
    cdef unsigned char *text = form.text  # grows by no more than `at` does
    cdef unsigned char *key = form.key
    cdef unsigned char *key_end = key + KEY_MAX
    cdef unsigned char byte
    cdef int count = 0, high, low
    cdef bint names_event
    if size > FORM_MAX:
        return False
    while True:
        name = at
        while at < end and at[0] != c"=" and at[0] != c"&":
            at += 1
        name_size = at - name
        if at == end or at[0] == c"&" or count == VALUES_MAX or key_end - key < name_size + 1:
            return False
        memcpy(key, name, name_size)
        key += name_size
        key[0] = c"&"
        key += 1
        at += 1
        names_event = name_size == 9 and memcmp(name, b"EventName", 9) == 0
        if names_event:
            event_name = at
        form.values[count].at = text - form.text
        while at < end:
            byte = at[0]
            if not PLAIN[byte]:
                if byte == c"&":
                    break
                if byte == c"+":
                    byte = c" "
                elif byte != c"%" or end - at < ESCAPE:
                    return False
                else:
                    high, low = HEX[at[1]], HEX[at[2]]
                    if high < 0 or low < 0:
                        return False
                    byte = high << 4 | low
                    at += ESCAPE - 1
            text[0] = byte
            text += 1
            at += 1
        form.values[count].size = (text - form.text) - form.values[count].at
        count += 1
        if names_event:
            event_name_size = at - event_name
        if at == end:
            break
        at += 1
    if event_name == NULL or key_end - key < event_name_size:
        return False
    memcpy(key, event_name, event_name_size)
    form.key_size = (key - form.key) + event_name_size
    form.values_count = count
    return True


cdef object text_of(Form *form, int index):
    """A value as a str. Raises UnicodeDecodeError, which is a ValueError."""
    return PyUnicode_DecodeUTF8(<const char *>form.text + form.values[index].at, form.values[index].size, NULL)


cdef bint reads_as_null(Form *form, int index) except -1:
    """As `is_null`, which is called where there may be white space to strip."""
    cdef Bytes text = form.text + form.values[index].at
    cdef int size = form.values[index].size
    if size == 0:
        return True
    if c"!" <= text[0] <= c"~" and c"!" <= text[size - 1] <= c"~":
        return size == 4 and (is_word(text, b"null") or is_word(text, b"none"))
    return is_null(text_of(form, index))


cdef bint is_word(Bytes text, Bytes word) noexcept:
    """Whether four letters are these, in any case."""
    cdef int at
    for at in range(4):
        if text[at] | 0x20 != word[at]:
            return False
    return True


cdef enum Conversion:
    SESSION, EVENT_NAME, TEXT, NUMBER, CACHED

CONVERSIONS = {"session": SESSION, "event_name": EVENT_NAME, "text": TEXT, "number": NUMBER, "cached": CACHED}


cdef class Template:
    """Reads the forms of one layout."""

    cdef object event_type, copy_names_hash
    cdef tuple attributes, caches, extra_names
    cdef int attributes_count, extra_count, counted
    cdef Conversion conversions[VALUES_MAX]
    cdef int indexes[VALUES_MAX]
    cdef int extra_indexes[VALUES_MAX]
    cdef int fingerprint_order[VALUES_MAX]

    def __init__(self, plan) -> None:
        """`plan`: a schemas.fastdecode.plan.Plan. Raises IndexError if it has more than VALUES_MAX parameters."""
        if plan.parameters_count > VALUES_MAX:
            raise IndexError("too many parameters for a template")
        self.event_type = plan.event_type
        self.copy_names_hash = plan.names_hash.copy
        self.attributes = (*[planned.attribute for planned in plan.attributes], "extra")
        self.caches = tuple([planned.cache for planned in plan.attributes])
        self.extra_names = tuple([name for name, _ in plan.extra])
        self.attributes_count, self.extra_count = len(plan.attributes), len(plan.extra)
        self.counted = len(plan.fingerprint_order)
        for at, planned in enumerate(plan.attributes):
            self.conversions[at], self.indexes[at] = CONVERSIONS[planned.conversion], planned.position
        for at, (_, index) in enumerate(plan.extra):
            self.extra_indexes[at] = index
        for at, index in enumerate(plan.fingerprint_order):
            self.fingerprint_order[at] = index

    cdef object event(self, Form *form):
        cdef PyObject *values[VALUES_MAX + 1]
        cdef int made = 0, at
        cdef dict extra = {}
        for at in range(self.extra_count):
            extra[self.extra_names[at]] = text_of(form, self.extra_indexes[at])
        try:
            for at in range(self.attributes_count):
                value = self.value(form, at)
                Py_INCREF(value)
                values[made] = <PyObject *>value
                made += 1
            values[made] = <PyObject *>extra
            return PyObject_Vectorcall(self.event_type, values, 0, <PyObject *>self.attributes)
        finally:
            for at in range(made):
                Py_DECREF(<object>values[at])

    cdef object value(self, Form *form, int at):
        cdef int index = self.indexes[at]
        cdef Conversion conversion = self.conversions[at]
        cdef PyObject *found
        if conversion == TEXT:
            return None if reads_as_null(form, index) else text_of(form, index)
        if conversion == NUMBER:
            number = digits(form.text + form.values[index].at, form.values[index].size)
            if number >= 0:
                return number
        text = text_of(form, index)
        if conversion == EVENT_NAME:
            return text
        if conversion == SESSION:
            if len(text) > SESSION_MAX or reads_as_null(form, index):
                raise ValueError("no session")
            return text
        cache = self.caches[at]
        found = PyDict_GetItemWithError(cache, text)
        return cache[text] if found == NULL else <object>found

    cdef object fingerprint(self, Form *form):
        """As `schemas.decode.fingerprint_of`; makes here what `pack_texts` makes of the values."""
        cdef unsigned char packed[PACKED_MAX]
        cdef unsigned char *to = packed
        cdef Value value
        cdef int at
        if self.counted < 16:
            to[0] = 0x90 | self.counted
            to += 1
        else:
            to[0], to[1], to[2] = 0xdc, 0, self.counted
            to += 3
        for at in range(self.counted):
            value = form.values[self.fingerprint_order[at]]
            if value.size < 32:
                to[0] = 0xa0 | value.size
                to += 1
            elif value.size < 256:
                to[0], to[1] = 0xd9, value.size
                to += 2
            else:
                to[0], to[1], to[2] = 0xda, value.size >> 8, value.size & 0xff
                to += 3
            memcpy(to, form.text + value.at, value.size)
            to += value.size
        hashed = self.copy_names_hash()
        hashed.update(PyBytes_FromStringAndSize(<const char *>packed, to - packed))
        return hashed.digest()


cdef long long digits(Bytes text, int size) noexcept:
    """The number that a text of digits alone is; -1 for any other, and for long ones."""
    cdef long long number = 0
    cdef int at
    if not 0 < size <= DIGITS_MAX:
        return -1
    for at in range(size):
        if not c"0" <= text[at] <= c"9":
            return -1
        number = 10 * number + (text[at] - c"0")
    return number


cdef class Templates:
    """Templates by the key of their layout. Both ways to read raise ValueError for what only the reference can read.

    `head`: what stands before the body in the stream value of a usual callback. `version`: the value's format.
    """

    def __init__(self, bytes head, int version) -> None:
        self._templates = {}
        self._head = head
        self._version = version

    def __len__(self) -> int:
        return len(self._templates)

    def read(self, bytes value):
        """Decode a stream value; None where it has no template, or is no usual callback."""
        return self.read_callback(value)

    cdef tuple read_callback(self, bytes value):
        """Read the msgpack array of a RawCallback: the head, body, `received_at_ms`, `auth_id`, `replayed`, version."""
        cdef Bytes at = <Bytes>PyBytes_AS_STRING(value)
        cdef Bytes end = at + PyBytes_GET_SIZE(value)
        cdef Bytes body
        cdef Py_ssize_t head_size = PyBytes_GET_SIZE(self._head), size
        cdef unsigned long long received_at_ms = 0
        cdef bint replayed
        cdef int byte
        if end - at < head_size + 3 or memcmp(at, PyBytes_AS_STRING(self._head), head_size) != 0:
            return None
        at += head_size
        if at[0] == 0xc4:
            size = at[1]
            at += 2
        elif at[0] == 0xc5:
            size = at[1] << 8 | at[2]
            at += 3
        else:
            return None
        if end - at < size + 10 or at[size] != 0xcf:
            return None
        body = at
        at += size + 1
        for byte in range(8):
            received_at_ms = received_at_ms << 8 | at[byte]
        at += 8
        if at[0] & 0xe0 != 0xa0:
            return None
        if end - at != 1 + (at[0] & 0x1f) + 2:
            return None
        for byte in range(1, 1 + (at[0] & 0x1f)):
            if at[byte] >= 0x80:
                return None
        at = end - 2
        if at[0] & 0xfe != 0xc2 or at[1] != self._version:
            return None
        replayed = at[0] == 0xc3
        made = self.decode_form(body, size)
        return None if made is None else (made[0], made[1], received_at_ms, replayed)

    def read_form(self, bytes form):
        """Decode an encoded form to event and fingerprint; None where it has no template."""
        return self.decode_form(<Bytes>PyBytes_AS_STRING(form), PyBytes_GET_SIZE(form))

    cdef tuple decode_form(self, Bytes encoded, Py_ssize_t size):
        cdef Form form
        cdef PyObject *found
        cdef Template template
        if not split(encoded, size, &form):
            return None
        found = PyDict_GetItemWithError(self._templates, PyBytes_FromStringAndSize(<char *>form.key, form.key_size))
        if found == NULL:
            return None
        template = <Template><object>found
        return template.event(&form), template.fingerprint(&form)

    def add(self, bytes form, plan):
        """Make a template for forms with the layout of this one, if C can read them."""
        cdef Form parts
        if split(<Bytes>PyBytes_AS_STRING(form), PyBytes_GET_SIZE(form), &parts):
            self._templates[PyBytes_FromStringAndSize(<char *>parts.key, parts.key_size)] = Template(plan)

    def clear(self):
        """Drop all templates."""
        self._templates.clear()
