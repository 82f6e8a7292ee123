"""DECISIONS: batching, routing and more, as plain functions on numbers. The simulator compiles them."""
