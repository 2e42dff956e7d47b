"""Binds and accepts: listening sockets, and the file descriptors that clients may take."""
