"""Policies as machine code: each function is compiled to one signature, so that no kernel is compiled again."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import cfunc, types
from numba.core.errors import NumbaError, NumbaExperimentalFeatureWarning

from sonde.errors import InputError, unknown
from sonde.policies import batching, routing

# first-class functions are what lets a policy be an argument; numba calls them experimental at every start
warnings.filterwarnings("ignore", message="First-class function", category=NumbaExperimentalFeatureWarning)

_tuple: Any = types.NamedTuple
_uniform: Any = types.NamedUniTuple
_COLUMN = types.Array(types.int64, 1, "C")
_POOL = _uniform(_COLUMN, 6, routing.PoolView)
_REQUEST = _tuple(
    [types.int64, types.float64, types.int64, types.int64, types.int64, types.float64, types.float64],
    routing.RequestView,
)
_BATCH = _uniform(types.int64, 5, batching.BatchView)
_STEP = _tuple([types.int64, types.boolean, types.boolean], batching.Step)

ROUTING = types.int64(_POOL, _REQUEST)
BATCHING = _STEP(_BATCH)


@cache
def router(name: str) -> Any:
    """Return the compiled routing policy of that name, or of that "module:function"."""
    known = routing.POLICIES.get(name)
    if known:
        return cfunc(ROUTING, cache=True)(known.function)
    return _compile(ROUTING, _import(name, "routing.policy", routing.POLICIES), name, "routing.policy")


@cache
def batcher(name: str) -> Any:
    """Return the compiled batching policy of that name, or of that "module:function"."""
    known = batching.POLICIES.get(name)
    if known:
        return cfunc(BATCHING, cache=True)(known.function)
    return _compile(BATCHING, _import(name, "batching.policy", batching.POLICIES), name, "batching.policy")


def _import(name: str, path: str, known: dict[str, Any]) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    if not function:
        raise unknown(path, name, [*known, "module:function"], "policy")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(path, name, f"can't be imported: {error}", "write it as module:function") from error
    return found


def _compile(signature: Any, function: Callable[..., Any], name: str, path: str) -> Any:
    try:
        return cfunc(signature)(getattr(function, "py_func", function))
    except (NumbaError, TypeError) as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            path, name, f"can't be compiled: {reason[0] if reason else error}", "use numbers, loops and the view only"
        ) from error
