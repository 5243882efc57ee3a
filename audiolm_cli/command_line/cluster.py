"""Runs batches on a Ray cluster: the same ones as on one machine, spread over workers by Ray Data.

A worker is a process that loads the bundle once and has a GPU of its own, or one core per thread. Inputs and outputs
are files that all machines see under the same path. If a worker dies, Ray starts another one and gives it the batch
again; the `Ledger` knows which outputs were finished, so they are not made twice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from audiolm_cli.command_line.arguments import RunOptions
from audiolm_cli.command_line.batch import load_runner
from audiolm_cli.command_line.planning import PlannedOutput
from audiolm_cli.console import Console, Progress
from audiolm_cli.errors import AudioLMError, ModelError, UsageError, explain
from audiolm_cli.request import Request

if TYPE_CHECKING:
    from audiolm_cli.backend import Backend

CONNECT_SECONDS = 10
Event = tuple[str, Any]  # a method of Console and its argument


class Ledger:
    """The events reported for each batch, kept in a separate process that outlives workers."""

    def __init__(self) -> None:
        self.events: dict[int, list[Event]] = {}

    def begin(self, batch: int) -> list[Event] | None:
        """None for a new batch, else the events reported for it so far."""
        before = self.events.get(batch)
        self.events.setdefault(batch, [])
        return before

    def add(self, batch: int, events: list[Event]) -> None:
        self.events[batch] += events


@dataclass
class _Recorder(Console):
    """Records a worker's messages for the machine that runs the command; reports results to the ledger."""

    ledger: Any = None
    batch: int = 0
    events: list[Event] = field(default_factory=list)
    told: int = 0  # number of events that the ledger has

    def error(self, message: object) -> None:
        self.events.append(("error", str(message)))

    def note(self, message: str) -> None:
        self.events.append(("note", message))

    def result(self, record: dict[str, Any]) -> None:
        import ray

        self.events.append(("result", record))
        ray.get(self.ledger.add.remote(self.batch, self.events[self.told :]))
        self.told = len(self.events)

    def results(self) -> set[str]:
        """Paths of the batch's finished outputs."""
        return {event[1]["path"] for event in self.events if event[0] == "result"}

    @contextlib.contextmanager
    def progress(self, seconds: float) -> Iterator[Progress | None]:
        yield None


class Worker:
    """Makes the outputs of batches; if it failed to start, each batch gets that error."""

    def __init__(
        self, kind: type[Request], run_options: RunOptions, identity: str, kernel: str, folder: str, ledger: Any
    ):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as in cli.main
        warnings.simplefilter("ignore")
        self.console, self.run_options = _Recorder(ledger=ledger), run_options
        self.failure = ""
        try:
            os.chdir(folder)
            self.runner = load_runner(kind, run_options, self.console)
            if self.runner.bundle.identity != identity:
                raise ModelError(f"{run_options.model}: a worker has other weights of that name")
            if self.runner.bundle.kernel != kernel:
                raise ModelError(
                    f"a worker decodes by {self.runner.bundle.kernel}, others by {kernel}: AUDIOLM_KERNEL=torch on all"
                    " machines makes them alike"
                )
        except AudioLMError as error:
            self.failure = str(error)
        except OSError as error:
            self.failure = f"{folder}: a worker cannot work there: {error.strerror}"

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        """Makes a batch. `item`: its number and planned outputs, pickled -> events and the number of failed outputs."""
        import ray

        number, batch = pickle.loads(row["item"])
        if self.failure:
            return {"item": pickle.dumps(([("error", self.failure)], len(batch)))}
        before = ray.get(self.console.ledger.begin.remote(number))
        self.console.batch, self.console.events, self.console.told = number, before or [], len(before or [])
        done = self.console.results()
        # what a lost worker wrote but did not report is written again, with the same bytes
        self.runner.force = self.run_options.force or before is not None
        left = [output for output in batch if output.target not in done]
        try:
            failed = self.runner.run(left, self.run_options.fail_fast)
        except Exception as error:
            self.console.error(explain(error)[1])
            failed = sum(output.target not in self.console.results() for output in left)
        return {"item": pickle.dumps((self.console.events, failed))}


def connect(address: str, quiet: bool = True) -> None:
    """Connects to the cluster at the address; without one, to that of RAY_ADDRESS, to one on this machine, or to a new
    one with all its cores and GPUs. `quiet` discards Ray's own output. Raises UsageError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    token = os.path.expanduser("~/.ray/auth_token")
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or os.path.exists(token):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray itself does so only without an address
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("--ray: needs Ray: pip install 'audiolm[ray]'") from None
    if quiet and sys.stderr is not None:  # Ray ignores its settings; native code writes to descriptor 2
        sys.stderr, sys.stdout = os.fdopen(os.dup(2), "w"), open(os.devnull, "w")
        os.dup2(sys.stdout.fileno(), 2)
    try:
        if ":" in address:  # Ray itself would try for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address or None, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        raise UsageError(f"--ray: no cluster to be had at {address or 'this machine'}: {error}") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True  # reports keep the order of the list


def run_batches(
    batches: list[list[PlannedOutput]],
    *,
    kind: type[Request],
    run_options: RunOptions,
    bundle: Backend,
    console: Console,
) -> Iterator[int]:
    """Makes batches on the connected cluster, passes on the workers' messages, and yields how many outputs of each
    failed. Workers must find the same bundle under its name, and decode as this machine does, or all on a GPU. Raises
    UsageError."""
    import ray
    import ray.data

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    on_gpu = run_options.device == "cuda" or (run_options.device == "auto" and any(has.get("GPU") for has in machines))
    resource, each = ("GPU", 1) if on_gpu else ("CPU", run_options.threads)
    most = sum(int(has.get(resource, 0)) // each for has in machines)
    if not most:
        raise UsageError(f"--ray: no machine has the {each} {resource} that a worker needs")
    kernel = "torch" if on_gpu else bundle.kernel
    ledger = ray.remote(Ledger).options(num_cpus=0).remote()
    items = [pickle.dumps(numbered) for numbered in enumerate(batches)]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        Worker,  # type: ignore[arg-type]
        fn_constructor_args=(kind, run_options, bundle.identity, kernel, os.getcwd(), ledger),
        compute=ray.data.ActorPoolStrategy(size=min(most, len(batches))),
        num_cpus=0 if on_gpu else each,
        num_gpus=each if on_gpu else 0,
    )
    rows = iter(dataset.iter_rows())
    for _ in batches:
        with console.progress(0):
            events, failed = pickle.loads(next(rows)["item"])
        for method, value in events:
            getattr(console, method)(value)
        yield failed
