"""Columns of requests are checked before they are narrowed: nothing is cut, rounded or wrapped in silence."""

from __future__ import annotations

import numpy as np
import pytest

from sonde.errors import InputError
from sonde.workload.requests import requests


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": np.array([2**32 + 5, 1])}, r"prompt_tokens\[0\] = 4294967301: must be a whole number from 1"),
        ({"prompt": [1, 2**70]}, r"prompt_tokens"),
        ({"prompt": [10.9, 1]}, r"prompt_tokens\[0\] = 10.9: must be a whole number"),
        ({"prompt": [float("nan"), 1]}, r"prompt_tokens\[0\] = nan"),
        ({"prompt": ["a", "b"]}, "must be a column of numbers"),
        ({"prompt": [[1, 2], [3, 4]]}, "must be a column"),
        ({"output": [0, 1]}, r"output_tokens\[0\] = 0"),
        ({"session": [0, 2**32]}, r"session\[1\]"),
        ({"session": [0]}, "one length"),
        ({"priority": [0, 256]}, r"priority\[1\] = 256"),
        ({"arrival": [0.0, np.inf]}, r"arrival_s\[1\] = inf: must be a finite time"),
        ({"arrival": [1.0, 0.5]}, "time goes backwards"),
        ({"arrival": []}, "at least one request"),
    ],
)
def test_what_does_not_fit_a_column_is_named(change, message):
    columns = {"arrival": [0.0, 1.0], "prompt": [1, 1], "output": [1, 1], "session": None, "priority": None} | change
    with pytest.raises(InputError, match=message):
        requests(
            columns["arrival"], columns["prompt"], columns["output"],
            session=columns["session"], priority=columns["priority"],
        )  # fmt: skip


def test_whole_numbers_of_any_type_are_taken():
    made = requests([0, 1], np.array([5.0, 6.0]), np.array([7, 8], np.uint64), priority=[1, 0])
    assert made.prompt_tokens.tolist() == [5, 6]
    assert made.output_tokens.dtype == np.int32
    assert made.session.tolist() == [-1, -1]
