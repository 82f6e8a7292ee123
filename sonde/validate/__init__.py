"""Predictions judged on measurements: closed-loop and open-loop serving, their errors and their intervals."""
