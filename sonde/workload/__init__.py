"""WHAT IS ASKED: traces, profiles and generators, all of which yield `Requests` (columns)."""
