"""Connects to Redis: URL, addresses, TLS, Cluster and Sentinel, checks of the server, pipelining."""
