"""The command line: parse, check what can be checked without a model, call, report, exit."""

from __future__ import annotations

import math
import os
import re
import secrets
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from audiolm_cli import __version__
from audiolm_cli.console import Console
from audiolm_cli.errors import AudioLMError, UsageError

if TYPE_CHECKING:
    from audiolm_cli.bundle import Bundle
    from audiolm_cli.jobs import Job, Task

app = typer.Typer(
    name="audiolm",
    help="Continues audio: give it some seconds of somebody speaking, and it goes on in the same voice.",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AUDIO = (".wav", ".flac", ".ogg")
MAX_DURATION = 3600.0  # seconds


class DType(str, Enum):
    """Precision of the language models; encoding and decoding audio always run in float32."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


# Options that several commands share.
Inputs = Annotated[list[str], typer.Argument(metavar="INPUT", help="Recordings, or - for standard input.")]
Output = Annotated[str | None, typer.Option("--output", "-o", metavar="FILE", help="Output, or - for stdout.")]
OutDir = Annotated[str | None, typer.Option("--out-dir", metavar="FOLDER", help="Folder for outputs named as inputs.")]
Model = Annotated[
    str, typer.Option("--model", "-m", metavar="NAME", envvar="AUDIOLM_MODEL", help="Bundle: its name or a folder.")
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")]
# one by default: a step of the embedded models is too small to share, two threads take 24 s where one takes 10
Threads = Annotated[int, typer.Option(metavar="N", min=1, help="Processor threads.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace existing files.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress.")]
Json = Annotated[bool, typer.Option("--json", help="A JSON object for each output, instead of its path.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"audiolm {__version__}")
        raise typer.Exit


@app.callback()
def _audiolm(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)


@app.command("continue")
def continue_(
    ctx: typer.Context,
    prompts: Inputs,
    output: Output = None,
    out_dir: OutDir = None,
    duration: Annotated[float, typer.Option(metavar="SECONDS", help="Seconds of new audio.")] = 7.0,
    prompt_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", help="How much of a prompt's end to go on from.")
    ] = 3.0,
    num_samples: Annotated[int, typer.Option(metavar="N", min=1, max=10000, help="Continuations of each prompt.")] = 1,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=2**63 - 1, help="Same seed, same audio; random unless given.")
    ] = None,
    temperature: Annotated[
        str | None, typer.Option(metavar="T|S,C,F", help="Of all stages, or semantic, coarse and fine.")
    ] = None,
    top_k: Annotated[str | None, typer.Option(metavar="K|S,C,F", help="Most likely tokens kept; 0: all.")] = None,
    top_p: Annotated[str | None, typer.Option(metavar="P|S,C,F", help="Probability kept, up to 1: all.")] = None,
    continuation_only: Annotated[bool, typer.Option("--continuation-only", help="Leave the prompt out.")] = False,
    model: Model = "speech",
    device: Device = "auto",
    dtype: Annotated[DType, typer.Option(help="Precision of the language models.")] = DType.auto,
    threads: Threads = 1,
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, max=1024, help="Continuations made at the same time.")
    ] = 8,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Continue recordings.

    The output is the whole prompt and DURATION new seconds. `-o a.wav` with several samples writes a.0.wav, a.1.wav
    and so on; the suffix chooses WAV, FLAC or Ogg. The paths of the outputs go to standard output, all else to
    standard error.
    """
    console = _console(ctx, quiet, json, debug)
    _check_seconds("--duration", duration)
    _check_seconds("--prompt-seconds", prompt_seconds)
    _check_device(device)
    chosen = {
        "temperature": _for_stages("--temperature", temperature, float, lambda t: 0 <= t < math.inf, "at least 0"),
        "top_k": _for_stages("--top-k", top_k, int, lambda k: k >= 0, "at least 0"),
        "top_p": _for_stages("--top-p", top_p, float, lambda p: 0 < p <= 1, "above 0 and at most 1"),
    }
    planned = _plan(console, prompts, output, out_dir, AUDIO, force, num_samples)
    seed = secrets.randbits(32) if seed is None else seed
    console.say(f"seed {seed}")

    def task() -> Task:
        bundle = _load(model, device, dtype.value, threads)
        from audiolm_cli.pipeline import Sampling
        from audiolm_cli.tasks import Continue

        defaults = bundle.config.sampling
        return Continue(
            bundle,
            console,
            duration=duration,
            prompt_seconds=prompt_seconds,
            seed=seed,
            sampling=Sampling(**{name: value or getattr(defaults, name) for name, value in chosen.items()}),
            batch_size=batch_size,
            continuation_only=continuation_only,
            settings={"device": device, "dtype": dtype.value, "threads": threads},
            force=force,
        )

    _run(planned, task, console)


@app.command()
def encode(
    ctx: typer.Context,
    recordings: Inputs,
    output: Output = None,
    out_dir: OutDir = None,
    model: Model = "speech",
    device: Device = "auto",
    threads: Threads = 1,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn recordings into tokens, in safetensors files."""
    console = _console(ctx, quiet, json, debug)
    _check_device(device)
    planned = _plan(console, recordings, output, out_dir, (".safetensors",), force)

    def task() -> Task:
        bundle = _load(model, device, "float32", threads)
        from audiolm_cli.tasks import Encode

        return Encode(bundle, console, force)

    _run(planned, task, console)


@app.command()
def decode(
    ctx: typer.Context,
    tokens: Annotated[list[str], typer.Argument(metavar="TOKENS", help="Files of tokens, or - for stdin.")],
    output: Output = None,
    out_dir: OutDir = None,
    quantizers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Use only the first of the quantizers.")
    ] = None,
    model: Model = "speech",
    device: Device = "auto",
    threads: Threads = 1,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn tokens, as `audiolm encode` writes them, back into audio."""
    console = _console(ctx, quiet, json, debug)
    _check_device(device)
    planned = _plan(console, tokens, output, out_dir, AUDIO, force)

    def task() -> Task:
        bundle = _load(model, device, "float32", threads)
        from audiolm_cli.tasks import Decode

        return Decode(bundle, console, quantizers, force)

    _run(planned, task, console)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error is one line on stderr.

    0: all done; 1: a file, model or output problem; 2: a command that cannot be right; 130: interrupted.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve a busy machine
    signal.signal(signal.SIGTERM, _terminated)
    console = Console()
    try:
        return int(app(arguments, prog_name="audiolm", standalone_mode=False, obj=console) or 0)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if console.debug:
            traceback.print_exc()
        code, message = _explain(error)
        console.error(message)
        return code


def _explain(error: Exception) -> tuple[int, str]:
    """The exit code and the one line for an error."""
    if isinstance(error, AudioLMError):
        return error.exit_code, str(error)
    if hasattr(error, "format_message"):  # Typer's own, about the command's arguments
        return getattr(error, "exit_code", 2), " ".join(error.format_message().split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 1, "out of memory; a smaller --batch-size or a shorter --duration needs less"
    text = " ".join(str(error).split())
    return 1, f"unexpected {type(error).__name__}: {text} (--debug shows where)"


def _terminated(signum: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + signum)  # an exception, so that half-written files are removed


def _console(ctx: typer.Context, quiet: bool, json: bool, debug: bool) -> Console:
    console: Console = ctx.obj
    console.quiet, console.json, console.debug = quiet, json, debug
    if not debug:
        warnings.simplefilter("ignore")
    return console


def _plan(
    console: Console,
    sources: list[str],
    output: str | None,
    out_dir: str | None,
    suffixes: tuple[str, ...],
    force: bool,
    samples: int = 1,
) -> list[Job]:
    """The jobs, with the checks of standard output that a command can fail before it starts."""
    from audiolm_cli import jobs

    if output == "-" and console.json:
        raise UsageError("-o - and --json both need standard output")
    if output == "-" and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("standard output is a terminal: redirect it, or name a file with -o")
    return jobs.plan(sources, output=output, out_dir=out_dir, suffixes=suffixes, samples=samples, force=force)


def _run(planned: list[Job], task: Callable[[], Task], console: Console) -> None:
    """Runs the jobs and exits with 1 if any failed; without a readable input, `task` need not load its model."""
    from audiolm_cli import jobs

    usable = jobs.readable(planned, console)
    failed = len(planned) - len(usable)
    if usable:
        failed += jobs.run(usable, task(), console)
    if failed:
        raise typer.Exit(1)


def _load(model: str, device: str, dtype: str, threads: int) -> Bundle:
    import torch

    from audiolm_cli import bundle

    torch.set_num_threads(threads)

    return bundle.load(model, device=device, dtype=dtype)


def _check_seconds(option: str, seconds: float) -> None:
    if not 0 < seconds <= MAX_DURATION:
        raise UsageError(f"{option}: must be above 0 and at most {MAX_DURATION:g} seconds, not {seconds:g}")


def _check_device(device: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", device):
        raise UsageError(f"--device: must be auto, cpu, cuda, cuda:N or mps, not {device!r}")


def _for_stages(
    option: str, text: str | None, kind: Callable[[str], Any], valid: Callable[[Any], bool], must: str
) -> tuple[Any, Any, Any] | None:
    """One value for all three stages, or three separated by commas; None where the bundle's own are to be used."""
    if text is None:
        return None
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option}: {text!r} is neither one number nor three separated by commas") from None
    if len(values) not in (1, 3):
        raise UsageError(f"{option}: give one number or three separated by commas, not {len(values)}")
    if not all(valid(value) for value in values):
        raise UsageError(f"{option}: must be {must}, not {text}")
    semantic, coarse, fine = values * (3 // len(values))
    return semantic, coarse, fine
