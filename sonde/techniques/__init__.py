"""WHAT AN IDEA CHANGES: one file each."""
