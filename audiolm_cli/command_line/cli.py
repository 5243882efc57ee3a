"""The command line: the commands, exit codes and signals. `runner` runs what makes outputs; `model_commands` has
`audiolm models`."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import gc
import os
import signal
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

from audiolm_cli import __version__
from audiolm_cli.command_line import model_commands, runner
from audiolm_cli.command_line.arguments import (
    AnalysisOptions,
    Json,
    OutputOptions,
    RayCommand,
    RunOptions,
    SamplingRunOptions,
    ServerOptions,
    Stage,
    StreamOptions,
    TrainingOptions,
    configured_console,
    model_option,
    with_options,
)
from audiolm_cli.command_line.help import EXAMPLES, Command
from audiolm_cli.console import Console
from audiolm_cli.errors import UsageError, display, explain
from audiolm_cli.request import ContinueRequest, DecodeRequest, EncodeRequest, GenerateRequest, ResynthRequest

app = typer.Typer(
    name="audiolm",
    help="Continues audio: give it some seconds of somebody speaking, and it continues in the same voice.",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(model_commands.app, name="models")

Inputs = Annotated[list[str] | None, typer.Argument(metavar="INPUT", help="Recordings, or - for standard input.")]


def _version(wanted: bool) -> None:
    if wanted:
        from audiolm_cli import native

        typer.echo(f"audiolm {__version__}, decodes on this processor by {native.described()}")
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


@app.command("continue", cls=RayCommand, epilog=EXAMPLES["continue"])
@with_options
def continue_(
    ctx: typer.Context,
    prompts: Inputs = None,
    *,
    output_options: OutputOptions,
    request: ContinueRequest,
    stream_options: StreamOptions,
    run_options: SamplingRunOptions,
) -> None:
    """Continue recordings.

    The output is the whole prompt, of up to an hour, and DURATION new seconds; with --continuation-only the prompt can
    be a day long. `-o a.wav` with several samples writes a.0.wav, a.1.wav and so on; the suffix chooses WAV, FLAC, Ogg
    (Vorbis), Opus or MP3. The paths of the outputs go to standard output, all else to standard error. Without INPUT and
    -o, the command reads standard input and writes standard output.

    With --best-of, the first stage samples several candidates for the next seconds and keeps the one whose likelihood
    gains most from the prompt. Only that stage takes longer.
    """
    runner.run(request, prompts or [], output_options, run_options, configured_console(ctx), stream_options)


@app.command(cls=RayCommand, epilog=EXAMPLES["generate"])
@with_options
def generate(
    ctx: typer.Context,
    unconditional: Annotated[
        bool,
        typer.Option("--unconditional", help="Without a prompt: the only way yet, so it may be left out."),
    ] = False,
    *,
    output_options: OutputOptions,
    request: GenerateRequest,
    stream_options: StreamOptions,
    run_options: SamplingRunOptions,
) -> None:
    """Generate audio without a prompt: content, voice and room are all sampled.

    `-o a.wav -n 4` writes a.0.wav to a.3.wav. Scripts should give --unconditional: the command's meaning without it may
    change. There is no --best-of here: it ranks candidates by how much a prompt raises their likelihood, and by
    likelihood alone silence and loops would win.
    """
    runner.run(request, [None], output_options, run_options, configured_console(ctx), stream_options)


@app.command(cls=RayCommand, epilog=EXAMPLES["resynth"])
@with_options
def resynth(
    ctx: typer.Context,
    sources: Inputs = None,
    *,
    output_options: OutputOptions,
    request: ResynthRequest,
    stream_options: StreamOptions,
    run_options: SamplingRunOptions,
) -> None:
    """Resynthesise recordings in another voice: that of a reference recording, or a sampled one.

    Words and timing stay; an output is as long as its source. The 4 seconds with the most speech of the reference are
    used. Without INPUT and -o, the command reads standard input and writes standard output. Cloning somebody's voice
    needs their consent.
    """
    runner.run(request, sources or [], output_options, run_options, configured_console(ctx), stream_options)


@app.command(cls=RayCommand, epilog=EXAMPLES["encode"])
@with_options
def encode(
    ctx: typer.Context,
    recordings: Inputs = None,
    *,
    output_options: OutputOptions,
    request: EncodeRequest,
    run_options: RunOptions,
) -> None:
    """Turn recordings into tokens, in safetensors files.

    Without INPUT and -o, the command reads standard input and writes standard output.
    """
    runner.run(request, recordings or [], output_options, run_options, configured_console(ctx))


@app.command(cls=RayCommand, epilog=EXAMPLES["decode"])
@with_options
def decode(
    ctx: typer.Context,
    tokens: Annotated[
        list[str] | None, typer.Argument(metavar="TOKENS", help="Files of tokens, or - for stdin.")
    ] = None,
    *,
    output_options: OutputOptions,
    request: DecodeRequest,
    run_options: RunOptions,
) -> None:
    """Turn tokens, as `audiolm encode` writes them, back into audio.

    Without TOKENS and -o, the command reads standard input and writes standard output.
    """
    runner.run(request, tokens or [], output_options, run_options, configured_console(ctx))


def _named(files: list[str] | None) -> list[str]:
    if not files:
        raise UsageError("name the inputs: FILE...")
    return files


@app.command(cls=Command, epilog=EXAMPLES["detect"])
@with_options
def detect(
    ctx: typer.Context,
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Recordings, or - for stdin.")] = None,
    model: Annotated[
        str | None, model_option("Bundle that may have made it; that of its watermark, or speech, by default.")
    ] = None,
    json: Json = False,
    *,
    analysis_options: AnalysisOptions,
) -> None:
    """Tell whether recordings, or stretches of them, were made by audiolm.

    Prints a line for each file: the watermark, and where; the probability that the bundle generated the sound, by its
    classifier, and where; what the metadata says. Finding nothing proves nothing: processing can remove all three.
    """
    console, named = configured_console(ctx), _named(files)
    with console.status("loading"):
        from audiolm_cli import models

        models.require("detect", model or "speech", analysis_options.offline)
        from audiolm_cli.provenance import provenance

        examiner = provenance.Examiner(
            model, analysis_options.device, analysis_options.offline, analysis_options.threads
        )
    for file, found in runner.process_files(named, examiner.examine_file, console, analysis_options.fail_fast):
        for note in found.pop("notes"):
            console.note(f"{display(file)}: {note}")
        console.data(found, provenance.described(found))


@app.command(cls=Command, epilog=EXAMPLES["score"])
@with_options
def score(
    ctx: typer.Context,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="Recordings, token files (.safetensors), or - for stdin.")
    ] = None,
    model: Annotated[str, model_option("Bundle: its name, a folder, or org/repo@rev.")] = "speech",
    stages: Annotated[
        list[Stage] | None, typer.Option("--stage", help="Only this stage; may be given again for another.")
    ] = None,
    *,
    analysis_options: AnalysisOptions,
) -> None:
    """Score recordings with the language models: log-probabilities by stage and token, in nats.

    Prints a JSON line for each file, in order. As in sWUGGY and sBLIMP, the likelier of two words or sentences is the
    one with the higher sum over its tokens in the semantic stage.
    """
    console = configured_console(ctx)
    console.json = True
    named = _named(files)
    with console.status(f"loading {display(model)}"):
        from audiolm_cli import models

        models.require("score", model, analysis_options.offline)
        import torch

        from audiolm_cli.bundles import bundle
        from audiolm_cli.command_line import scores

        torch.set_num_threads(analysis_options.threads)
        loaded = bundle.load(model, device=analysis_options.device, dtype="float32", offline=analysis_options.offline)
    wanted = [stage.value for stage in stages or []]
    scored = functools.partial(scores.score, loaded, stages=wanted, console=console)
    for _, found in runner.process_files(named, scored, console, analysis_options.fail_fast):
        console.data(found, "")


@app.command(cls=Command, epilog=EXAMPLES["train"])
@with_options
def train(
    ctx: typer.Context,
    recordings: Annotated[
        list[str] | None, typer.Argument(metavar="RECORDING", help="Files of any format and length, or folders.")
    ] = None,
    *,
    training_options: TrainingOptions,
) -> None:
    """Fine-tune a bundle on recordings of a voice, or of a piano.

    Needs two minutes of recordings, better ten, and takes 20 minutes (--minutes). Recordings are cut at pauses;
    silence, clipped and noisy parts and music are left out. The ends of the recordings are held out for validation.
    After Ctrl-C, the same command resumes. A manifest.tsv in a folder may list recordings (`path`) and their speakers
    (`speaker`). Fine-tuning on a voice needs its owner's consent.
    """
    console, named = configured_console(ctx), _named(recordings)
    if training_options.output is None:
        raise UsageError("-o FOLDER: name the new bundle's folder")
    with console.status("loading"):
        from audiolm_cli import models

        models.require("train", training_options.source, training_options.offline)
        from audiolm_cli.training.adapting import adapt

    asked = dataclasses.asdict(training_options)
    options = adapt.Options(named, **{key: asked[key] for key in asked.keys() - {"quiet", "json", "debug"}})
    record = adapt.adapt(options, console)
    console.data(record, record["path"])
    if record["unreadable"]:
        raise typer.Exit(1)


@app.command(cls=Command, epilog=EXAMPLES["serve"])
@with_options
def serve(ctx: typer.Context, *, server_options: ServerOptions) -> None:
    """Serve a model over HTTP, with a page to try it on, until Ctrl-C.

    POST /v1/continue, /v1/generate, /v1/resynth and /v1/detect take a sound and the options of the commands, and stream
    the output. Outputs have watermark and metadata. Needs the extra: pip install 'audiolm[serve]'
    """
    console = configured_console(ctx)
    try:
        from audiolm_cli.server import run as server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "h11", "anyio", "python_multipart"):
            raise
        raise UsageError(f"serve: needs Starlette and uvicorn: pip install 'audiolm[serve]' ({error})") from None
    listener = server.listen(server_options.host, server_options.port)
    with contextlib.closing(listener):
        with console.status(f"loading {display(server_options.model)}"):
            import torch

            from audiolm_cli import models

            torch.set_num_threads(server_options.threads)
            loaded = models.load(
                server_options.model,
                device=server_options.device,
                dtype=server_options.dtype.value,
                offline=server_options.offline,
                say=console.hearer,
            )
            loaded.read()  # no client waits for it, and damage shows at once
        server.run(loaded, server_options, console, listener)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error is one line on stderr.

    0: all done; 1: a file, model or output problem; 2: a command that cannot be right; 130: interrupted.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve a busy machine
    gc.set_threshold(100_000)  # importing torch makes many objects, and all stay: no need to look for garbage
    atexit.register(gc.freeze)  # nor among them at the end, which takes 0.4 s
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background a shell has it ignored
        signal.signal(signal.SIGINT, _interrupt)
    _interrupts.clear()
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:  # where one was closed, no other file may get its number
        pass
    os.close(descriptor)
    console = Console()
    try:
        code = int(app(arguments, prog_name="audiolm", standalone_mode=False, obj=console) or 0)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if console.debug:
            traceback.print_exc()
        code, message = explain(error)
        if _interrupts:  # which compiled code may have turned into an error of its own
            code = 130
        else:
            console.error(message)
    if code == 130:
        console.interrupted()
    return code


_interrupts: list[int] = []  # Ctrl-C since the program began


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    _interrupts.append(signum)
    raise KeyboardInterrupt


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)  # an exception, so that half-written files are removed
