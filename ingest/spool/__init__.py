"""Keeps callbacks on this node's disk, fsynced, while Redis does not take them."""
