"""Compiles the C files here for each kind of processor: `python audiolm_cli/native/build.py`.

Building a wheel and installing from source do the same (hatch_build.py). Without a C compiler nothing is built, and
torch decodes. This file needs only the standard library.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
# float arithmetic exactly as written: no fused multiply-add, no reordered sums
FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-Wno-psabi"]
SPEED = ["-fno-tree-pre"]  # otherwise gcc 12 keeps the innermost loop's sums in memory, at half the speed
AVX512 = ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx512vnni"]
KERNELS = {"avx512": [*AVX512, "-DKERNEL_AVX512"], "avx2": ["-mavx2", "-DKERNEL_AVX2"], "plain": []}  # best first


def library(kernel: str) -> Path:
    """The path of a compiled kernel."""
    return FOLDER / f"{kernel}.so"


def source() -> str:
    """Identifies the source: libraries compiled from another one are not used."""
    digest = hashlib.sha256()
    for file in [*sorted(FOLDER.glob("*.[ch]")), FOLDER / "build.py"]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def compiler() -> list[str] | None:
    """The C compiler's command: $CC, or the first of cc, gcc and clang that is installed."""
    if "CC" in os.environ:
        return shlex.split(os.environ["CC"]) or None
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return [found] if found else None


def compile_kernel(options: list[str], target: Path) -> str:
    """Compiles a kernel; returns the compiler's message on failure, else an empty string."""
    command = compiler()
    if command is None:
        return "no C compiler"
    flags = [*FLAGS, *SPEED, *options, f'-DKERNEL_SOURCE="{source()}"']
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # in the target's folder, to move it atomically
        made = Path(folder) / target.name
        try:
            done = subprocess.run(
                [*command, *flags, *map(str, sorted(FOLDER.glob("*.c"))), "-lm", "-o", str(made)],
                capture_output=True,
                text=True,
            )
        except OSError as error:
            return str(error)
        if done.returncode:
            return done.stderr.strip() or f"{command[0]} failed"
        made.replace(target)
    return ""


def ready(kernel: str) -> bool:
    """Whether a kernel is compiled from this source."""
    file = library(kernel)
    return file.is_file() and source().encode() in file.read_bytes()


def build() -> str:
    """Compiles missing kernels and removes outdated ones that fail to compile; returns a summary."""
    if sys.maxsize < 2**32 or os.name != "posix":
        return "no native kernel for this system: decoding goes through torch, which takes far longer"
    wanted = KERNELS if platform.machine() in ("x86_64", "AMD64") else {"plain": KERNELS["plain"]}
    said = {k: "" if ready(k) else compile_kernel(options, library(k)) for k, options in wanted.items()}
    for kernel in filter(said.get, said):
        library(kernel).unlink(missing_ok=True)
    if said["plain"]:
        reason = said["plain"].splitlines()[0]
        return f"no native kernel ({reason}): decoding goes through torch, which takes far longer"
    return f"native kernels: {', '.join(kernel for kernel in said if not said[kernel])}"


if __name__ == "__main__":
    print(build())
