# Where the attributes of a session's state and of its lanes lie, which are the fields that `worker.native.packing` knows.
cdef Py_ssize_t VERSION, STATUS, RECORDING, UNSEQUENCED, CLOSED, RETRIES
cdef Py_ssize_t NEXT, RUN, OPENING, RELEASED, TOP_US, FLOOR_US, ENDING_US

cpdef decode_ordinary_state(bytes encoded)
