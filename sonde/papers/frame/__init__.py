"""What every paper's file is made of (`claim`), and the shelf on which they stand (`shelf`)."""

from __future__ import annotations

from sonde.papers.frame.claim import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most, near

__all__ = ["Claim", "Paper", "Progress", "Range", "Reproduction", "Row", "at_least", "at_most", "near"]
