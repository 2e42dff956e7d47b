"""Decides which partitions this worker owns: plans, acquires, renews and releases leases."""
