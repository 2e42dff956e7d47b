# Reads attributes at their fixed places in an object: 10 instructions, where looking a name up takes 130.
#
# Structs of msgspec and classes with __slots__ have such attributes, and their descriptors say where. The caller must
# have checked the object's type: whatever lies at that place is taken for the attribute.

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

cdef extern from "structmember.h":
    ctypedef struct PyMemberDef:
        int type
        Py_ssize_t offset
    ctypedef struct PyMemberDescrObject:
        PyMemberDef *d_member
    int T_OBJECT_EX


cdef inline Py_ssize_t slot_of(kind, str name) except -1:
    """Where the attribute lies. Raises ImportError where it does not lie in the object itself."""
    from types import MemberDescriptorType
    cdef object descriptor = getattr(kind, name, None)
    cdef PyMemberDef *member
    if type(descriptor) is not MemberDescriptorType:
        raise ImportError(f"{kind.__name__}.{name} lies elsewhere")
    member = (<PyMemberDescrObject *><PyObject *>descriptor).d_member
    if member.type != T_OBJECT_EX:
        raise ImportError(f"{kind.__name__}.{name} is no object")
    return member.offset


cdef inline int check_fields(kind, str names) except -1:
    """Raises ImportError where a struct's fields are not these, in this order: then it must not be made by place."""
    if " ".join(kind.__struct_fields__) != names:
        raise ImportError(f"{kind.__name__} has other fields")
    return 0


cdef inline object at_slot(object owner, Py_ssize_t slot):
    """The attribute; the owner must have it, and it must be set."""
    return <object>(<PyObject **>(<char *><PyObject *>owner + slot))[0]


cdef inline void set_slot(object owner, Py_ssize_t slot, object value) noexcept:
    """Set an attribute that is set."""
    cdef PyObject **place = <PyObject **>(<char *><PyObject *>owner + slot)
    cdef PyObject *before = place[0]
    Py_INCREF(value)
    place[0] = <PyObject *>value
    Py_DECREF(<object>before)


cdef inline void fill_slot(object owner, Py_ssize_t slot, object value) noexcept:
    """Set an attribute that is not set yet: of an object just made."""
    Py_INCREF(value)
    (<PyObject **>(<char *><PyObject *>owner + slot))[0] = <PyObject *>value
