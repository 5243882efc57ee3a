"""The server under load, on loopback: `python benchmarks/serve.py --json FILE`, and with `--soak 600` abused meanwhile.

Clients ask at the same time, each for its own seed, and ask again as `Retry-After` says where the queue is full. First
sound is the first new sample, counted from a client's first attempt. With `--soak` good requests, whose bytes are
compared, take turns with oversized, truncated, slow, wrong and abandoned ones; memory is that of the server's process.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPT = Path(__file__).resolve().parent.parent / "examples" / "prompt.flac"
BYTES_A_SECOND = 2 * 16000
AUDIOLM = Path(sys.executable).with_name("audiolm")


def own_memory(pid: int) -> float:
    """MB of memory that a process has for itself."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int

    def memory(self) -> float:
        return own_memory(self.process.pid)

    def cpu(self) -> float:
        return processor_time(self.process.pid)

    def answer(self, path: str, body: bytes, started: float) -> tuple[float, bytes]:
        """Seconds to the first sound, and all of it; asks until there is a place."""
        while True:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)) as connection:
                connection.request("POST", path, body, {"content-type": "audio/flac"})
                response = connection.getresponse()
                if response.status != 429:
                    if response.status != 200:
                        raise RuntimeError(f"{response.status}: {response.read().decode()}")
                    first = response.read(2)
                    return time.perf_counter() - started, first + response.read()
                time.sleep(float(response.headers["retry-after"]) * random.uniform(0.5, 1))


@contextlib.contextmanager
def serving(*options: object) -> Iterator[Server]:
    command = [AUDIOLM, "serve", "--port", "0", *options]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next((line for line in process.stderr if "serves" in line), "")
            if not line:
                sys.exit("serve: it does not start")
            yield Server(process, int(line.partition("127.0.0.1:")[2].split()[0]))
        finally:
            process.terminate()


def path(seconds: float, seed: int) -> str:
    return f"/v1/continue?duration={seconds}&seed={seed}&continuation-only&format=s16le"


def load(server: Server, clients: int, seconds: float) -> dict[str, float]:
    prompt, cpu = PROMPT.read_bytes(), server.cpu()
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda seed: server.answer(path(seconds, seed), prompt, started), range(clients)))
    wall = time.perf_counter() - started
    made = sum(len(data) for _, data in found) / BYTES_A_SECOND
    first = [latency for latency, _ in found]
    return {
        "first_sound_median": statistics.median(first),
        "first_sound_last": max(first),
        "audio_seconds_a_second": made / wall,
        "cpu_seconds_of_audio_second": (server.cpu() - cpu) / made,
        "memory_mb": server.memory(),
    }


def process_each(model: str, seconds: float, calls: int) -> dict[str, float]:
    """The same without a server: a process for each, one after the other."""
    command = [AUDIOLM, "continue", PROMPT, "-m", model, "-o", "-", "--format", "s16le", "--continuation-only", "-q"]
    command += ["--duration", seconds]
    firsts, started = [], time.perf_counter()
    for seed in range(calls):
        begin = time.perf_counter()
        with subprocess.Popen(list(map(str, [*command, "--seed", seed])), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.read(2)
            firsts.append(time.perf_counter() - begin)
            process.stdout.read()
    wall = time.perf_counter() - started
    return {"first_sound_median": statistics.median(firsts), "audio_seconds_a_second": calls * seconds / wall}


def soak(server: Server, duration: float, seconds: float) -> dict[str, Any]:
    """Good and bad requests for a while."""
    prompt, counts, failed = PROMPT.read_bytes(), Counter[str](), list[str]()
    expected = {seed: hashlib.sha256(server.answer(path(seconds, seed), prompt, 0)[1]).digest() for seed in range(4)}
    end, memory, lock = time.monotonic() + duration, list[tuple[float, float]](), threading.Lock()

    def raw(data: bytes, pause: float = 0.0, most: int = 1000) -> bytes:
        address, broken = ("127.0.0.1", server.port), contextlib.suppress(ConnectionError)
        with socket.create_connection(address, 60) as connection, broken:
            connection.sendall(data)
            time.sleep(pause)
            return connection.recv(most) if most else b""
        return b""

    def head(length: int, query: str = path(seconds, 1)) -> bytes:
        lines = [f"POST {query} HTTP/1.1", "host: localhost", "content-type: audio/flac", f"content-length: {length}"]
        return "\r\n".join([*lines, "", ""]).encode()

    def good(draw: random.Random) -> bytes:
        seed = draw.choice(list(expected))
        _, data = server.answer(path(seconds, seed), prompt, 0)
        if hashlib.sha256(data).digest() != expected[seed]:
            raise RuntimeError(f"seed {seed}: other bytes")
        return b""

    bad: dict[str, Callable[[random.Random], bytes]] = {
        "oversized": lambda draw: raw(head(1 << 40)),
        "truncated": lambda draw: raw(head(len(prompt)) + prompt[: draw.randrange(len(prompt))], 0.1, 0),
        "damaged": lambda draw: raw(head(len(prompt)) + draw.randbytes(len(prompt))),
        "slow": lambda draw: raw(head(len(prompt)) + prompt[:100], 1.0, 0),
        "wrong": lambda draw: raw(head(0, "/v1/generate?duration=-1&input=/etc/passwd")),
        "foreign": lambda draw: raw(head(len(prompt)).replace(b"localhost", b"evil.example")),
        "gone": lambda draw: raw(head(len(prompt), path(60, 1)) + prompt, draw.uniform(0, 2), 0),
        "no HTTP": lambda draw: raw(draw.randbytes(200)),
    }

    def client(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < end:
            kind = "good" if number < 2 else draw.choice(list(bad))
            try:
                answer = (bad | {"good": good})[kind](draw)
                if answer and (b" 200 " in answer.splitlines()[0] or b" 500 " in answer.splitlines()[0]):
                    raise RuntimeError(f"{kind}: {answer[:60]!r}")
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                failed.append(f"{kind}: {error}")
            with lock:
                counts[kind] += 1

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, number) for number in range(8)]
        while time.monotonic() < end:
            memory.append((round(time.monotonic() - end + duration, 1), round(server.memory(), 1)))
            time.sleep(min(10.0, duration / 10))
        for each in clients:
            each.result()
    return {"requests": dict(counts), "failed": failed, "memory_mb": memory, "seconds": duration}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="speech", help="name or folder of a bundle")
    parser.add_argument("--clients", default="1,4,16,64", help="how many ask at the same time")
    parser.add_argument("--seconds", type=float, default=7.0, help="of new sound in each answer")
    parser.add_argument("--streams", type=int, default=4, help="that are made in turns")
    parser.add_argument("--threads", type=int, default=1, help="of which each makes an output at a time")
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--processes", type=int, default=3, help="calls of a process each, beside it")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of good and bad requests")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    figures: dict[str, Any] = {"clients": {}}
    how = ("--streams", args.streams, "--threads", args.threads, "--queue", args.queue)
    with serving("-m", args.model, *how) as server:
        load(server, 1, 1.0)  # warm
        for clients in filter(None, args.clients.split(",")):
            row = figures["clients"][clients] = load(server, int(clients), args.seconds)
            print(f"{clients} clients: " + ", ".join(f"{name} {value:.3f}" for name, value in row.items()), flush=True)
    if args.processes:
        row = figures["processes"] = process_each(args.model, args.seconds, args.processes)
        print("a process each: " + ", ".join(f"{name} {value:.3f}" for name, value in row.items()), flush=True)
    if args.soak:
        with serving("-m", args.model, "--streams", 2, "--queue", 8) as server:
            figures["soak"] = soak(server, args.soak, min(args.seconds, 1.0))
        print(json.dumps(figures["soak"]))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
