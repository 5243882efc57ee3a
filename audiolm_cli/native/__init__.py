"""The native kernel: decoding on a CPU with int8 weights, in C. This module finds the compiled library for the
processor; `model` converts a stage's weights, `decode` runs items, `fill` the windows of the layout `parallel`.

All libraries give the same bits, whatever the processor and the number of threads. AUDIOLM_KERNEL chooses: `native`
(the default, if compiled), `torch`, or one library: `avx512`, `avx2`, `plain`.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int, c_int8, c_int32, c_int64, c_size_t, c_void_p

from audiolm_cli.errors import UsageError
from audiolm_cli.native import build

CHOICES = ("native", "torch", *build.KERNELS)


class Matrix(Structure):
    _fields_ = (
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("values", POINTER(c_int8)),
        ("scales", POINTER(c_float)),
        ("sums", POINTER(c_int32)),
    )


class Norm(Structure):
    _fields_ = (("weight", POINTER(c_float)), ("bias", POINTER(c_float)), ("epsilon", c_float))


class Block(Structure):
    _fields_ = (
        ("attention_norm", Norm),
        ("feedforward_norm", Norm),
        ("query_norm", Norm),
        ("key_norm", Norm),
        ("qkv", Matrix),
        ("output", Matrix),
        ("up", Matrix),
        ("down", Matrix),
    )


class Level(Structure):
    _fields_ = (("codes_norm", Norm), ("norm", Norm), ("up", Matrix), ("down", Matrix))


class Model(Structure):
    _fields_ = (
        ("width", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_width", c_int32),
        ("feedforward", c_int32),
        ("layers", c_int32),
        ("gated", c_int32),
        ("quantizers", c_int32),
        ("vocabulary", c_int32),
        ("turns", POINTER(c_double)),
        ("ids", POINTER(c_float)),
        ("head", Matrix),
        ("blocks", POINTER(Block)),
        ("norm", Norm),
        ("levels", POINTER(Level)),
        ("asked", POINTER(c_float)),
    )


class Branch(Structure):
    _fields_ = (
        ("known", c_int32),
        ("shared", c_int32),
        ("like", c_int32),
        ("ids", POINTER(c_int32)),
        ("features", POINTER(c_float)),
        ("positions", POINTER(c_int32)),
    )


class Item(Structure):
    _fields_ = (
        ("steps", c_int32),
        ("branches", c_int32),
        ("stop", c_int32),
        ("heat", c_float),
        ("lows", POINTER(c_int32)),
        ("uniform", POINTER(c_float)),
        ("made", POINTER(c_int32)),
    )


class Sampling(Structure):
    _fields_ = (
        ("temperature", c_double),
        ("top_p", c_double),
        ("top_k", c_int32),
        ("size", c_int32),
        ("guides", c_int32),
        ("guidance", c_float),
        ("shares", POINTER(c_float)),
    )


class Window(Structure):
    _fields_ = (
        ("frames", c_int32),
        ("known", c_int32),
        ("codes", POINTER(c_int32)),
        ("uniform", POINTER(c_float)),
    )


LAYOUT = sum(map(ctypes.sizeof, (Matrix, Norm, Block, Level, Model, Branch, Item, Sampling, Window)))


def kernel() -> str | None:
    """The name of the library that decodes on this CPU, None for torch. Raises UsageError if AUDIOLM_KERNEL asks for
    one that is unavailable."""
    wanted = os.environ.get("AUDIOLM_KERNEL") or "native"
    if wanted not in CHOICES:
        raise UsageError(f"AUDIOLM_KERNEL: must be one of {', '.join(CHOICES)}, not {wanted!r}")
    if wanted == "torch":
        return None
    there = (name for name in build.KERNELS if wanted in ("native", name) and library(name) is not None)
    found = next(there, None)
    if found is None and os.environ.get("AUDIOLM_KERNEL"):
        raise UsageError(f"AUDIOLM_KERNEL: {wanted} is not compiled, or not for this processor")
    return found


def kind() -> str:
    """What decodes on this CPU, `native` or `torch`: results depend on it."""
    return "native" if kernel() else "torch"


def described() -> str:
    """What decodes on this CPU, in words. Raises UsageError."""
    name = kernel()
    return f"the native kernel ({name}, int8)" if name else "torch"


def required(option: str) -> ctypes.CDLL:
    """The library that decodes on this CPU. Raises UsageError, for an option that needs it, if there is none."""
    name = kernel()
    if name is None or (found := library(name)) is None:
        raise UsageError(f"{option}: needs the native kernel, which is not compiled, or turned off by AUDIOLM_KERNEL")
    return found


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """A kernel's library; None if it is not compiled from this source, or the processor cannot run it."""
    try:
        plain = ctypes.CDLL(str(build.library("plain")))
        library = ctypes.CDLL(str(build.library(name))) if plain.audiolm_supports(name.encode()) else None
    except OSError:
        return None
    return declared(library) if library is not None else None


def declared(library: ctypes.CDLL) -> ctypes.CDLL | None:
    """The library with its functions' types set; None if it was compiled from another source."""
    library.audiolm_source.restype = library.audiolm_kernel.restype = c_char_p
    library.audiolm_layout.restype = c_size_t
    if library.audiolm_source().decode() != build.source() or library.audiolm_layout() != LAYOUT:
        return None
    library.audiolm_product.argtypes = (POINTER(Matrix), c_int32, POINTER(c_float), POINTER(c_float))
    library.audiolm_open.restype = c_void_p
    library.audiolm_open.argtypes = (
        POINTER(Model),
        c_int32,
        POINTER(Item),
        POINTER(Branch),
        POINTER(Sampling),
        POINTER(c_int),
    )
    library.audiolm_prefill.argtypes = (c_void_p, c_int32)
    library.audiolm_advance.argtypes = (c_void_p, c_int32)
    library.audiolm_advance.restype = c_int64
    library.audiolm_state.argtypes = (c_void_p, c_int32)
    library.audiolm_state.restype = POINTER(c_float)
    library.audiolm_fill.argtypes = (POINTER(Model), POINTER(Window), POINTER(Sampling), c_int32)
    library.audiolm_close.argtypes = (c_void_p,)
    library.audiolm_close.restype = None
    return library
