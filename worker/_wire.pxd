cpdef plain_state(bytes encoded)
