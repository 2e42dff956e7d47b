# What other parts in C see of this one.

cdef class Templates:
    cdef dict _templates
    cdef bytes _head
    cdef int _version

    cdef tuple read_callback(self, bytes value)
    cdef tuple decode_form(self, const unsigned char *encoded, Py_ssize_t size)
