"""Continues damaged copies of the files in a folder: python -m tests.fuzz FOLDER COUNT

With 2 GB of address space and some seconds for each. Every one must give an output and exit code 0, or one line and 1.
Works in the current folder; prints how many could be used, and the seconds of the slowest.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time

import numpy as np

from tests.conftest import STAND_IN

ALARM = 40  # seconds, that end the process


def damaged(content: bytes, number: int, random: np.random.Generator) -> bytes:
    """A copy with some bytes changed, in two cases of three where the header is, and in one of five cut."""
    copy = bytearray(content)
    reach = min(100, len(copy)) if number % 3 else len(copy)
    for _ in range(random.integers(1, 9)):
        place, width = int(random.integers(reach)), int(random.choice([1, 1, 2, 4]))
        copy[place : place + width] = (bytes(width), b"\xff" * width, random.bytes(width))[random.integers(3)]
    return bytes(copy[: int(random.integers(len(copy)))] if number % 5 == 0 else copy)


def heard(command: list[str]) -> tuple[int, list[str]]:
    """Exit code of a command line, and what is said on the process's stderr, by whomever."""
    from audiolm_cli import cli

    with open("messages", "w+b") as messages:
        stderr = os.dup(2)
        os.dup2(messages.fileno(), 2)
        signal.alarm(ALARM)
        try:
            code = cli.main(command)
        finally:
            signal.alarm(0)
            os.dup2(stderr, 2)
            os.close(stderr)
        messages.seek(0)
        return code, messages.read().decode().splitlines()


def main(folder: str, count: int) -> None:
    seeds = [open(os.path.join(folder, name), "rb").read() for name in sorted(os.listdir(folder))]
    random, used, slowest = np.random.default_rng(0), 0, 0.0
    for number in range(count):
        content = damaged(seeds[number % len(seeds)], number, random)
        with open("damaged", "wb") as file:
            file.write(content)
        start = time.monotonic()
        code, lines = heard(["continue", "damaged", "-o", "out.wav", "--seed", "1", "--continuation-only"])
        slowest = max(slowest, time.monotonic() - start)
        errors = [line for line in lines if line.startswith("audiolm: error: ")]
        outcome = code, len(errors), os.path.exists("out.wav")
        assert outcome in ((0, 0, True), (1, 1, False)), (number, outcome, lines)
        assert all(line.startswith("audiolm: ") for line in lines), (number, lines)
        assert not any("unexpected" in line or "memory" in line for line in errors), (number, lines)
        if code == 0:
            used += 1
            os.unlink("out.wav")
    print(used, slowest)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30,) * 2)
    exec(STAND_IN)  # instead of the models
    main(sys.argv[1], int(sys.argv[2]))
