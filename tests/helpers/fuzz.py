"""Continues damaged copies of the files in a folder: python -m tests.helpers.fuzz FOLDER COUNT

With 2 GB of address space and some seconds for each. Every one must give an output or one line, and the exit code say
which. Works in the current folder; prints how many could be used, and the seconds of the slowest.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time

import numpy as np

from tests.helpers.fakes import FakePipeline, install_without_torch

ALARM = 40  # seconds of reading, that end the process
BATCH = 50  # inputs of one command line


def damaged(content: bytes, number: int, random: np.random.Generator) -> bytes:
    """A copy with some bytes changed, in two cases of three where the header is, and in one of five cut."""
    copy = bytearray(content)
    reach = min(100, len(copy)) if number % 3 else len(copy)
    for _ in range(random.integers(1, 9)):
        place, width = int(random.integers(reach)), int(random.choice([1, 1, 2, 4]))
        copy[place : place + width] = (bytes(width), b"\xff" * width, random.bytes(width))[random.integers(3)]
    return bytes(copy[: int(random.integers(len(copy)))] if number % 5 == 0 else copy)


def run(command: list[str]) -> tuple[int, list[str]]:
    """Exit code of a command line, and what is said on the process's stderr, by whomever."""
    from audiolm_cli.command_line import cli

    with open("messages", "w+b") as messages:
        stderr = os.dup(2)
        os.dup2(messages.fileno(), 2)
        try:
            code = cli.main(command)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        messages.seek(0)
        return code, messages.read().decode().splitlines()


def main(folder: str, count: int) -> None:
    from audiolm_cli.audio import files

    seconds, read = [0.0], files.read

    def timed(*arguments, **options):
        signal.alarm(ALARM)
        start = time.monotonic()
        try:
            return read(*arguments, **options)
        finally:
            seconds.append(time.monotonic() - start)
            signal.alarm(0)

    files.read = timed
    seeds = [open(os.path.join(folder, name), "rb").read() for name in sorted(os.listdir(folder))]
    random, used = np.random.default_rng(0), 0
    for begin in range(0, count, BATCH):
        numbers = range(begin, min(begin + BATCH, count))
        os.mkdir("in")
        for number in numbers:
            with open(f"in/{number}", "wb") as file:
                file.write(damaged(seeds[number % len(seeds)], number, random))
        names = [f"in/{number}" for number in numbers]
        options = ["--out-dir", "out", "--seed", "1", "--continuation-only", "--batch-size", "1"]
        code, lines = run(["continue", *names, *options])
        assert all(line.startswith("audiolm: ") for line in lines), lines
        assert not any("unexpected" in line or "memory" in line for line in lines), lines
        made = [os.path.exists(f"out/{number}.wav") for number in numbers]
        for name, output in zip(names, made, strict=True):
            errors = [line for line in lines if line.startswith(f"audiolm: error: {name}: ")]
            assert len(errors) == (not output), (name, lines)
        assert code == (0 if all(made) else 1), lines
        used += sum(made)
        shutil.rmtree("in")
        shutil.rmtree("out")
    print(used, max(seconds))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30,) * 2)
    install_without_torch(FakePipeline(level=0, seconds=1))
    main(sys.argv[1], int(sys.argv[2]))
