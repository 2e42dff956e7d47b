# What other parts in C see of this one.

cdef class Readers:
    cdef dict _readers
    cdef bytes _head
    cdef int _version

    cdef tuple read_callback(self, bytes encoded)
    cdef tuple made(self, const unsigned char *encoded, Py_ssize_t size)
