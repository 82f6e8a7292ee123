"""Policies as machine code: each function is compiled to one signature, so that no kernel is compiled again."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import cfunc, njit, types
from numba.core.errors import NumbaError, NumbaExperimentalFeatureWarning

from sonde.errors import InputError, unknown
from sonde.policies import batching, caching, migration, routing
from sonde.sim.jit import cached

# first-class functions are what lets a policy be an argument; numba calls them experimental at every start
warnings.filterwarnings("ignore", message="First-class function", category=NumbaExperimentalFeatureWarning)

_tuple: Any = types.NamedTuple
_uniform: Any = types.NamedUniTuple
_COLUMN = types.Array(types.int64, 1, "C")
_POOL = _uniform(_COLUMN, len(routing.PoolView._fields), routing.PoolView)
_REQUEST = _tuple(
    [types.int64, types.float64, types.int64, types.int64, types.int64, types.float64, types.float64],
    routing.RequestView,
)
_BATCH = _uniform(types.int64, 5, batching.BatchView)
_STEP = _tuple([types.int64, types.boolean, types.boolean], batching.Step)

_BLOCK = _tuple([types.int64, types.int64, types.int64, types.float64, types.float64], caching.BlockView)
_THRESHOLDS = _tuple([types.float64, types.float64, types.int64, types.int64], migration.Thresholds)

ROUTING = types.int64(_POOL, _REQUEST)
EVICTION = types.float64(_BLOCK)
MIGRATION = _uniform(types.int64, 2, migration.Pair)(_POOL, _THRESHOLDS)
BATCHING = _STEP(_BATCH)

#: by where a policy is named: those that there are, and what its function must return
_KNOWN: dict[str, Iterable[str]] = {
    "routing.policy": routing.POLICIES, "batching.policy": batching.POLICIES, "migration.policy": migration.POLICIES,
}  # fmt: skip
_ANSWER = {
    "routing.policy": "the number of a replica", "batching.policy": "a Step (whole number, bool, bool)",
    "migration.policy": "a Pair (two whole numbers)",
}  # fmt: skip

#: what a policy of the user's returns in place of an answer when it fails: machine code can't raise through a kernel
FAILED = -1


@cache
def router(name: str) -> Any:
    """Return the compiled routing policy of that name, or of that "module:function"."""
    known = routing.POLICIES.get(name)
    if known:
        return native(ROUTING, known.function, keep=True)
    own = _compiled(own_function(name, "routing.policy"), ROUTING, name, "routing.policy")

    def guarded(view: Any, request: Any) -> Any:
        try:
            return own(view, request)
        except Exception:  # noqa: BLE001  (the only kind that machine code can catch)
            return FAILED

    return native(ROUTING, guarded)


@cache
def batcher(name: str) -> Any:
    """Return the compiled batching policy of that name, or of that "module:function"."""
    known = batching.POLICIES.get(name)
    if known:
        return native(BATCHING, known.function, keep=True)
    own = _compiled(own_function(name, "batching.policy"), BATCHING, name, "batching.policy")

    def guarded(view: Any) -> Any:
        try:
            tokens, decode, whole = own(view)
            return batching.Step(max(tokens, 0), decode, whole)
        except Exception:  # noqa: BLE001
            return batching.Step(FAILED, False, False)

    return native(BATCHING, guarded)


@cache
def evictor(name: str) -> Any:
    """Return the compiled policy of that name by which blocks of a prefix cache are given up."""
    if name not in caching.POLICIES:
        raise unknown("cache.eviction", name, caching.POLICIES, "policy")
    return native(EVICTION, caching.POLICIES[name], keep=True)


@cache
def migrator(name: str) -> Any:
    """Return the compiled migration policy of that name, or of that "module:function"."""
    known = migration.POLICIES.get(name)
    if known:
        return native(MIGRATION, known, keep=True)
    own = _compiled(own_function(name, "migration.policy"), MIGRATION, name, "migration.policy")

    def guarded(view: Any, thresholds: Any) -> Any:
        try:
            source, target = own(view, thresholds)
            return migration.Pair(source, target)
        except Exception:  # noqa: BLE001
            return migration.Pair(FAILED - 1, FAILED - 1)  # -1 says that nothing is to move

    return native(MIGRATION, guarded)


def native(signature: Any, function: Callable[..., Any], *, keep: bool = False) -> Any:
    """Return the function in machine code of that signature, on disk too if `keep`; as it is where the JIT is off."""
    if _is_jit_off():
        return function
    return cached(lambda cache: cfunc(signature, cache=cache and keep)(function))


def own_function(name: str, path: str) -> Callable[..., Any]:
    """Return the Python function of "module:function", looked for in the working directory first."""
    module, _, function = name.partition(":")
    if not function:
        raise unknown(path, name, [*_KNOWN[path], "module:function"], "policy")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise InputError(path, name, f"can't be imported: {error}", "write it as module:function") from error
    if not callable(found):
        raise InputError(path, name, f"must be a function, and {function} is a {type(found).__name__}")
    return getattr(found, "py_func", found)


def _compiled(function: Callable[..., Any], signature: Any, name: str, path: str) -> Any:
    """Return the function in machine code, with bounds checked and its answer of the right type."""
    own: Any = njit(boundscheck=True)(function)
    if _is_jit_off():
        return own
    try:
        own.compile(signature.args)
        answer = own.nopython_signatures[0].return_type
    except (NumbaError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if line and not line.startswith("Failed in nopython")), "")
        raise InputError(
            path, name, f"can't be compiled: {reason}", "a policy uses numbers, loops and what it is shown only"
        ) from error
    if not _fits(answer, path):
        raise InputError(path, name, f"must return {_ANSWER[path]}, and returns {answer}")
    return own


def _is_jit_off() -> bool:
    return bool(getattr(numba.config, "DISABLE_JIT", False))


def _fits(answer: Any, path: str) -> bool:
    """Return whether an answer of that type is one to the question that is asked there."""
    if path == "routing.policy":
        return isinstance(answer, types.Integer)
    kinds = (types.Integer,) if path == "migration.policy" else (types.Integer, types.Boolean)
    parts = list(answer) if isinstance(answer, types.BaseTuple) else []  # type: ignore[call-overload]
    return len(parts) == (2 if path == "migration.policy" else 3) and all(isinstance(part, kinds) for part in parts)
