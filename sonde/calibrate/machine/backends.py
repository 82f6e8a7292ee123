"""The back ends that run a kernel of STREAM: numpy, numba, torch, and C where there is a compiler.

Each reads the same description (`stream.Kernel`); what one cannot have here is named with why.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sonde.calibrate.machine.facts import torch_or_none
from sonde.calibrate.machine.stream import Arrays, Backend, Kernel

#: elements that numpy works on at a time, so that what one of its two passes wrote is in cache for the other
BLOCK = 8192

_C = """
void one(double *out, const double *x, double s, long n) {
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i++) out[i] = s * x[i];
}
void copy(double *out, const double *x, long n) {
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i++) out[i] = x[i];
}
void two(double *out, const double *x, const double *y, double s, long n) {
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i++) out[i] = x[i] + s * y[i];
}
void fill(double *out, double v, long n) {
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i++) out[i] = v;
}
extern void omp_set_num_threads(int);
void threads(int n) { omp_set_num_threads(n); }
"""


def backends(cores: int, *, touches: bool = False) -> tuple[list[Backend], list[tuple[str, str]]]:
    """Return the back ends of the CPU, each on one core and on all of them, and what is missing with why.

    `touches` adds, for those on all cores, arrays that one thread has touched first.
    """
    counts = sorted({1, cores})
    found = [numpy_backend()]
    missing: list[tuple[str, str]] = []
    makers = [("numba", numba_backend), ("torch", torch_backend), ("C, OpenMP", c_backend)]
    for name, make in makers:
        for count in counts:
            for touch in ("own", "one") if touches and count > 1 else ("own",):
                backend = make(count, touch)
                if isinstance(backend, str):
                    missing.append((f"STREAM on {name}", backend))
                    break
                found.append(backend)
    return found, list(dict.fromkeys(missing))


def numpy_backend() -> Backend:
    """Return the back end that needs nothing but numpy, on one core."""

    def run(kernel: Kernel, arrays: Arrays) -> None:
        out, first = arrays[kernel.out], arrays[kernel.first]
        second = arrays[kernel.second] if kernel.second else None
        if second is None and kernel.scale == 1.0:
            np.copyto(out, first)
            return
        for start in range(0, len(out), BLOCK):
            part = slice(start, start + BLOCK)
            if second is None:
                np.multiply(first[part], kernel.scale, out=out[part])
            elif kernel.scale == 1.0:
                np.add(first[part], second[part], out=out[part])
            else:
                np.multiply(second[part], kernel.scale, out=out[part])
                np.add(first[part], out[part], out=out[part])

    return Backend("numpy", 1, "own", _filled, run)


def numba_backend(threads: int, touch: str = "own") -> Backend | str:
    """Return the back end that compiles the loop of a kernel with numba, on `threads` threads."""
    import numba

    from sonde.calibrate.machine.loops import compiled

    most = int(vars(numba.config)["NUMBA_NUM_THREADS"])
    if threads > most:
        return f"numba was started with {most} threads"
    one, two, fill = compiled(threads > 1)

    def run(kernel: Kernel, arrays: Arrays) -> None:
        numba.set_num_threads(threads)
        if kernel.second:
            two(arrays[kernel.out], arrays[kernel.first], arrays[kernel.second], kernel.scale)
        else:
            one(arrays[kernel.out], arrays[kernel.first], kernel.scale)

    def allocate(count: int, value: float) -> Any:
        numba.set_num_threads(threads)
        array = np.empty(count)
        fill(array, value)
        return array

    return Backend("numba", threads, touch, allocate if touch == "own" else _filled, run)


def torch_backend(threads: int, touch: str = "own", device: str = "cpu") -> Backend | str:
    """Return the back end that runs a kernel as one operator of torch, on `device`."""
    torch = torch_or_none()
    if torch is None:
        return "torch is not installed (`pip install torch`)"
    if device == "cuda" and not torch.cuda.is_available():
        return "no NVIDIA GPU that torch can use"
    gpu = device == "cuda"

    def run(kernel: Kernel, arrays: Arrays) -> None:
        out, first = arrays[kernel.out], arrays[kernel.first]
        if kernel.second:
            torch.add(first, arrays[kernel.second], alpha=kernel.scale, out=out)
        elif kernel.scale == 1.0:
            out.copy_(first)
        else:
            torch.mul(first, kernel.scale, out=out)

    def allocate(count: int, value: float) -> Any:
        if not gpu:
            torch.set_num_threads(threads)
        if touch == "one":
            return torch.from_numpy(_filled(count, value))
        return torch.full((count,), value, dtype=torch.float64, device=device)

    wait = torch.cuda.synchronize if gpu else None
    return Backend("torch, CUDA" if gpu else "torch", 1 if gpu else threads, touch, allocate, run, _to_host, wait)


def c_backend(threads: int, touch: str = "own") -> Backend | str:
    """Return the back end of native code: the loops in C with OpenMP, as fast as this machine's compiler has them."""
    library = c_library()
    if isinstance(library, str):
        return library

    def run(kernel: Kernel, arrays: Arrays) -> None:
        library.threads(threads)
        out, first = arrays[kernel.out], arrays[kernel.first]
        count, scale = ctypes.c_long(len(out)), ctypes.c_double(kernel.scale)
        if kernel.second:
            library.two(_at(out), _at(first), _at(arrays[kernel.second]), scale, count)
        elif kernel.scale == 1.0:
            library.copy(_at(out), _at(first), count)
        else:
            library.one(_at(out), _at(first), scale, count)

    def allocate(count: int, value: float) -> Any:
        library.threads(threads)
        array = np.empty(count)
        library.fill(_at(array), ctypes.c_double(value), ctypes.c_long(count))
        return array

    return Backend("C, OpenMP", threads, touch, allocate if touch == "own" else _filled, run)


@cache
def c_library() -> Any:
    """Return the loops compiled by this machine's C compiler, or why there are none."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "there is no C compiler"
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "stream.c"), Path(folder, "stream.so")
        source.write_text(_C, encoding="utf-8")
        line = [compiler, "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(built)]
        try:
            done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{compiler} does not run: {error}"
        if done.returncode:
            return f"{compiler} does not compile OpenMP: {done.stderr.strip().splitlines()[-1:]}"
        return ctypes.CDLL(str(built))


def _filled(count: int, value: float) -> Any:
    return np.full(count, value)


def _at(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _to_host(array: Any) -> Any:
    return array.cpu().numpy()
