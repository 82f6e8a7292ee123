"""The clock: an exact simulator of replicas under traffic, in numba."""
