"""Operators of a step through a roofline into a `StepTable`; memory, energy and money of a replica."""
