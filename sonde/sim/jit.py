"""How kernels are compiled: cached on disk, without the GIL, in float64 as written.

A World is many arrays, and by default numba counts references to each of them in every function that it is
passed to, which costs more than the functions do. Kernels allocate nothing, so they are compiled without the
counting (`_nrt`; who calls keeps the arrays alive), and their parts are merged into them by the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
from numba import config, njit, types
from numba.extending import overload

#: whole numbers are of one type everywhere in kernels, or each part would be compiled for every mix of them
i64: Any = np.int64

_COMMON: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}

#: a part of a kernel, merged into its callers
_MERGED: dict[str, Any] = _COMMON | {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
part: Any = njit(**_MERGED)

#: a part that is seldom reached: compiled once, and called, where merging it into every caller would take long
_CALLED: dict[str, Any] = _COMMON | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
rare: Any = njit(**_CALLED)


def where_connected(function: Callable[..., Any]) -> Any:
    """Return a part (w, r, and one thing more) of kernels that is there only where replicas depend on each other.

    Where `World.net` is None the compiler finds nothing here to compile, so that fleets of replicas side by side do
    not pay for what they never do.
    """
    compiled = rare(function)

    def hook(w: Any, r: Any, more: Any) -> None:
        if w.net is not None:
            function(w, r, more)

    def chosen(w: Any, r: Any, more: Any) -> Any:
        def nothing(w: Any, r: Any, more: Any) -> Any:
            pass

        def something(w: Any, r: Any, more: Any) -> Any:
            compiled(w, r, more)

        del r, more
        return nothing if isinstance(w[w.fields.index("net")], types.NoneType) else something

    options: Any = _MERGED
    overload(hook, jit_options=options)(chosen)
    return hook


def cached(compiled: Callable[[bool], Any]) -> Any:
    """Return what `compiled` makes with its cache on disk, or without one where no folder can be written to."""
    try:
        return compiled(True)
    except RuntimeError:  # numba found nowhere to keep it
        return compiled(False)


def kernel(function: Callable[..., Any]) -> Any:
    """Return `function` compiled, to be called from Python.

    Exact: no reordering of sums, so that a run gives the same bytes every time. What is cached on disk is
    compiled anew when any file of the simulator has changed; numba alone would look at this function's only.
    """
    compiled: Any = cached(lambda cache: njit(**_COMMON, cache=cache)(function))
    if hasattr(getattr(compiled, "_cache", None), "_cache_file"):  # not where the JIT is off, or no folder writable
        compiled._cache._cache_file._source_stamp = _stamp()
    if hasattr(compiled, "compile"):
        compiled.compile = _scalar(compiled.compile)
    return compiled


def _scalar(compile_: Callable[..., Any]) -> Callable[..., Any]:
    """Return `compile_` without vectorized loops.

    Loops of kernels run over a handful of replicas or sequences: code for vectors of them takes the compiler twice as
    long, and takes longer to run.
    """

    @wraps(compile_)
    def scalar(*args: Any, **more: Any) -> Any:
        was = config.LOOP_VECTORIZE  # type: ignore[attr-defined]
        config.LOOP_VECTORIZE = 0  # type: ignore[attr-defined]
        try:
            return compile_(*args, **more)
        finally:
            config.LOOP_VECTORIZE = was  # type: ignore[attr-defined]

    return scalar


@cache
def _stamp() -> tuple[float, int]:
    package = Path(__file__).parents[1]
    files = [package / "metrics.py", *package.glob("sim/*.py"), *package.glob("policies/*.py")]
    stats = [file.stat() for file in files]
    return max(stat.st_mtime for stat in stats), sum(stat.st_size for stat in stats)
