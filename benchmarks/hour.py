"""Memory and processor time of one long output, streamed: `python benchmarks/hour.py --minutes 60 --plot FILE`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from serve import AUDIOLM, BYTES_A_SECOND, PROMPT, own_memory, processor_time

EVERY = 15  # seconds of sound between two measurements

Measurement = tuple[float, float, float]  # minutes of sound, seconds of processor time, MB of the process's own memory


def stream(minutes: float) -> list[Measurement]:
    command = [
        AUDIOLM,
        "continue",
        PROMPT,
        "--duration",
        minutes * 60,
        "--seed",
        1,
        "-q",
        "-o",
        "-",
        "--format",
        "s16le",
    ]
    found: list[Measurement] = []
    sound = 0
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while chunk := os.read(process.stdout.fileno(), 1 << 16):
            sound += len(chunk)
            if sound >= len(found) * EVERY * BYTES_A_SECOND:
                minutes_of_sound = sound / BYTES_A_SECOND / 60
                found.append((minutes_of_sound, processor_time(process.pid), own_memory(process.pid)))
    if process.returncode:
        sys.exit("hour: the program failed")
    return found


def draw(found: list[Measurement], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6), layout="constrained")
    minutes, seconds, memory = zip(*found, strict=True)
    for axes, values, name in zip(
        figure.subplots(1, 2), (memory, seconds), ("MB of its own memory", "s of processor time"), strict=True
    ):
        axes.plot(minutes, values, linewidth=1)
        axes.set(xlabel="minutes of sound", ylabel=name, ylim=(0, None))
    figure.savefig(file, format="png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = stream(options.minutes)
    later = [memory for _, _, memory in found[len(found) // 10 :]]
    print(f"{found[-1][0]:.1f} minutes in {found[-1][1]:.0f} s of processor time; after a tenth of it "
          f"{min(later):.0f} to {max(later):.0f} MB")  # fmt: skip
    if options.plot:
        draw(found, options.plot)
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
