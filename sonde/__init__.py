"""Sonde: what to run where, at what cost, latency and energy, found by exact simulation."""

__version__ = "0.1.0"
