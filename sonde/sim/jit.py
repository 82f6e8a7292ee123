"""How kernels are compiled: cached on disk, without the GIL, in float64 as written.

A World is many arrays, and numba counts references to each of them in every function that it is passed
to, which costs more than the functions do. So a kernel first borrows its arrays (`borrow`: the same memory,
no count; whoever called keeps it alive), and its parts are merged into it by the compiler.
"""

from __future__ import annotations

from typing import Any

import numba
from numba import njit
from numba.core import cgutils
from numba.extending import intrinsic

#: a kernel that Python calls; exact: no reordering of sums, so that a run gives the same bytes every time
kernel = njit(cache=True, nogil=True, error_model="numpy")

#: a part of a kernel, merged into its callers
part = njit(cache=True, nogil=True, error_model="numpy", forceinline=True)


@intrinsic
def _borrow(typing_context: Any, array: Any) -> Any:  # noqa: ARG001  (numba's protocol)
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counted = context.make_array(signature.args[0])(context, builder, args[0])
        free = context.make_array(signature.args[0])(context, builder)
        cgutils.copy_struct(free, counted)
        free.meminfo = cgutils.get_null_value(free.meminfo.type)
        free.parent = cgutils.get_null_value(free.parent.type)
        return free._getvalue()

    return array(array), codegen


if numba.config.DISABLE_JIT:

    def borrow(array: Any) -> Any:
        """Return the array itself."""
        return array

else:
    borrow = _borrow
