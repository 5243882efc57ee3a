"""Options of the command line: those that commands share, and how a class's fields become options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import ipaddress
import re
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

import typer

from audiolm_cli import checks
from audiolm_cli.checks import Check
from audiolm_cli.command_line.help import Command, complete_bundle, complete_device
from audiolm_cli.console import Console
from audiolm_cli.errors import UsageError
from audiolm_cli.request import BATCH_SIZE, Request

RAY_ADDRESS = re.compile(r"auto|local|ray://\S+|[\w.-]+:\d{1,5}")


class DType(str, Enum):
    """Precision of the language models; encoding and decoding audio always run in float32."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


class Stage(str, Enum):
    """A bundle's language model."""

    semantic = "semantic"
    coarse = "coarse"
    fine = "fine"


def _checked(check: Check, *flags: str, **how: Any) -> Any:
    """An option with its own check; its first flag is its name in messages."""

    def parser(text: Any) -> Any:
        return check(flags[0], text)

    return typer.Option(*flags, parser=parser, **how)


def _device(option: str, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value):
        raise UsageError(f"{option}: must be auto, cpu, cuda, cuda:N or mps, not {value!r}")
    return value


def _ray(option: str, value: str) -> str:
    if value and not RAY_ADDRESS.fullmatch(value):
        raise UsageError(f"{option}: an address is host:port, ray://host:port, auto or local, not {value!r}")
    return value


# options that other commands share
Device = Annotated[
    str,
    _checked(
        *(_device, "--device"),
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:N or mps.",
        autocompletion=complete_device,
    ),
]
Precision = Annotated[DType, typer.Option("--dtype", help="Precision of the language models; int8: on a CPU.")]
# one by default: a step of the embedded models is too small to share; two threads take 24 s where one takes 10
Threads = Annotated[int, typer.Option(metavar="N", min=1, max=checks.MAX_THREADS, help="Processor threads.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first input that fails.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the network.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress.")]
Json = Annotated[bool, typer.Option("--json", help="A JSON object for each output, instead of its path.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")]


def configured_console(ctx: typer.Context) -> Console:
    """The console, set up by the command's options."""
    console: Console = ctx.obj
    for flag in ("quiet", "json", "debug"):
        setattr(console, flag, ctx.params.get(flag, False))
    if not console.debug:
        warnings.simplefilter("ignore")
    return console


def model_option(help: str) -> Any:
    how = {"metavar": "NAME", "envvar": "AUDIOLM_MODEL", "autocompletion": complete_bundle}
    return _checked(checks.path, "--model", "-m", help=help, **how)


@dataclass(frozen=True)
class OutputOptions:
    """Where outputs go, and how they are named."""

    output: Annotated[
        str | None, _checked(checks.path, "--output", "-o", metavar="FILE", help="Output, or - for stdout.")
    ] = None
    out_dir: Annotated[
        str | None, _checked(checks.path, "--out-dir", metavar="FOLDER", help="Folder for outputs named as inputs.")
    ] = None
    name: Annotated[
        str | None,
        _checked(checks.path, "--name", metavar="TEMPLATE", help="Names in the folder, such as '{stem}.{index}.wav'."),
    ] = None
    jobs: Annotated[
        str | None,
        _checked(
            *(checks.path, "--jobs"),
            metavar="FILE",
            help="Job list, one JSON object a line with options as keys; - for stdin.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.name is not None and self.out_dir is None:
            raise UsageError("--name: needs --out-dir")


def _format(option: str, value: str) -> str:
    from audiolm_cli.audio.encoding import check_format

    return check_format(option, value)


def _called(option: str, value: str) -> str:
    """A bundle's name, which goes into its card and the metadata of its outputs."""
    if not 0 < len(value.strip()) <= 64 or not value.isprintable():
        raise UsageError(f"{option}: must have 1 to 64 printable characters, not {value!a}")
    return value.strip()


@dataclass(frozen=True)
class StreamOptions:
    """Streaming: playing an output, or writing it to a pipe, while it is sampled."""

    format: Annotated[
        str | None,
        _checked(*(_format, "--format"), metavar="FORMAT", help="With -o -: wav, s16le, flac, ogg or opus."),
    ] = None
    play: Annotated[bool, typer.Option("--play", help="Play it while it is made, in place of -o.")] = False


NO_STREAM = StreamOptions()


@dataclass(frozen=True)
class RunOptions:
    """How outputs are made: the bundle, the machine, and what happens to existing files."""

    model: Annotated[str, model_option("Bundle: its name, a folder, or org/repo@rev.")] = "speech"
    device: Device = "auto"
    threads: Threads = 1
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace existing files.")] = False
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Keep existing files and make only the others.")
    ] = False
    fail_fast: FailFast = False
    ray: Annotated[  # "" for any address
        str | None,
        _checked(
            *(_ray, "--ray"),
            metavar="[ADDRESS]",
            help="Spread the work over a Ray cluster: there, or this machine's cores.",
        ),
    ] = None
    offline: Offline = False
    quiet: Quiet = False
    json: Json = False
    debug: Debug = False

    def __post_init__(self) -> None:
        if self.force and self.skip_existing:
            raise UsageError("--force and --skip-existing exclude each other")


@dataclass(frozen=True)
class AnalysisOptions:
    """How files are examined, for commands without outputs."""

    device: Device = "auto"
    threads: Threads = 1
    fail_fast: FailFast = False
    offline: Offline = False
    quiet: Quiet = False
    debug: Debug = False


def _host(option: str, value: str) -> str:
    if not re.fullmatch(r"[\w.:-]{1,255}", value):
        raise UsageError(f"{option}: must be an address or a name, not {value!r}")
    return value


def _token(option: str, value: str) -> str:
    if not re.fullmatch(r"[!-~]{16,}", value):
        raise UsageError(f"{option}: must be 16 characters or more, without spaces, which nobody can guess")
    return value


@dataclass(frozen=True)
class ServerOptions:
    """A server's access, limits and resources."""

    model: Annotated[str, model_option("Bundle: its name, a folder, or org/repo@rev.")] = "speech"
    host: Annotated[
        str, _checked(*(_host, "--host"), metavar="ADDRESS", help="Address to listen on; others need --token.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000
    token: Annotated[
        str | None,
        _checked(
            *(_token, "--token"),
            metavar="TOKEN",
            envvar="AUDIOLM_TOKEN",
            help="Secret that clients send: Authorization: Bearer TOKEN.",
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name by which clients call the server; may be given again."),
    ] = None
    streams: Annotated[int, typer.Option(metavar="N", min=1, max=256, help="Outputs made at a time, in turns.")] = 4
    queue: Annotated[int, typer.Option(metavar="N", min=0, max=10000, help="Requests that may wait.")] = 16
    max_seconds: Annotated[
        int, typer.Option(metavar="N", min=1, max=3600, help="Longest upload, and longest output.")
    ] = 600
    max_megabytes: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Largest request.")] = 64
    device: Device = "auto"
    dtype: Precision = DType.auto
    threads: Threads = 1
    offline: Offline = False
    quiet: Quiet = False
    debug: Debug = False

    def __post_init__(self) -> None:
        if self.token is None and not _loopback(self.host):
            raise UsageError(f"--host: {self.host} can be reached from elsewhere, which needs --token")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class SamplingRunOptions(RunOptions):
    """`RunOptions`, plus the options for sampling."""

    dtype: Precision = DType.auto
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Outputs made at the same time.")] = (
        BATCH_SIZE
    )


@dataclass(frozen=True)
class TrainingOptions:
    """How a bundle is fine-tuned on recordings."""

    output: Annotated[
        str | None, _checked(checks.path, "--output", "-o", metavar="FOLDER", help="The new bundle's folder.")
    ] = None
    source: Annotated[
        str,
        _checked(
            *(checks.path, "--from"),
            metavar="NAME",
            help="Bundle to start from: its name, a folder, or org/repo@rev.",
            autocompletion=complete_bundle,
        ),
    ] = "speech"
    name: Annotated[
        str | None, _checked(_called, "--name", metavar="NAME", help="The bundle's name; by default its folder's.")
    ] = None
    minutes: Annotated[
        float, _checked(checks.minutes, "--minutes", metavar="N", help="Total time, over all runs of the command.")
    ] = 20.0
    steps: Annotated[
        int, typer.Option(metavar="N", min=0, max=10**6, help="Steps of each part, whatever the time; 0: by minutes.")
    ] = 0
    semantic: Annotated[bool, typer.Option("--semantic", help="Fine-tune stage 1, too: content, not just sound.")] = (
        False
    )
    decoder: Annotated[bool, typer.Option("--decoder", help="Fine-tune the codec's decoder, too; codes stay.")] = False
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**31 - 1, help="Same seed and steps, same bundle.")] = 0
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace an existing bundle; start over if options have changed.")
    ] = False
    device: Device = "auto"
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=checks.MAX_THREADS, help="Processor threads; all cores but one."),
    ] = None
    offline: Offline = False
    quiet: Quiet = False
    json: Json = False
    debug: Debug = False


class RayCommand(Command):
    """A command whose option --ray may come without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        if "--ray" in args[:end]:
            place = args.index("--ray")
            address = [a for a in args[place + 1 : end][:1] if RAY_ADDRESS.fullmatch(a)]
            args = [*args[:place], f"--ray={''.join(address)}", *args[place + 1 + len(address) :]]
        return super().parse_args(ctx, args)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Prepares a command for Typer: replaces a parameter of a class above, or of a request class, by its fields."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind = parameter.annotation
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            options = _options_of(kind)
            groups[parameter.name] = kind, [option.name for option in options]
            parameters += options
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def expanded(**given: Any) -> None:
        for name, (kind, names) in groups.items():
            values = {option: given.pop(option) for option in names}
            given[name] = kind(**{option: value for option, value in values.items() if value is not None})
        command(**given)

    expanded.__dict__["__signature__"] = inspect.Signature(parameters)
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def _options_of(kind: Any) -> list[inspect.Parameter]:
    """The options for a class's fields; a request class brings its own checks."""
    found = []
    if issubclass(kind, Request):
        for name, field in kind.options().items():
            how, default = field.metadata, None if field.default is dataclasses.MISSING else field.default
            if not how["help"]:  # input and output, which are an argument and part of `OutputOptions`
                continue
            if how["check"] is checks.flag:
                hint: Any = Annotated[bool, typer.Option(*how["flags"], help=how["help"])]
            else:
                flags = how["flags"] or (f"--{name.replace('_', '-')}",)
                hint = Annotated[str | None, _checked(how["check"], *flags, metavar=how["metavar"], help=how["help"])]
            found.append((name, default, hint))
    else:
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = sorted(dataclasses.fields(kind), key=lambda field: field.name not in kind.__annotations__)  # own first
        found = [(field.name, field.default, hints[field.name]) for field in fields]
    only = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(name, only, default=default, annotation=hint) for name, default, hint in found]
