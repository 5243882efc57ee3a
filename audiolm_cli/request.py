"""Requests: what can be asked of a bundle, one frozen class per command.

The command line makes a request from its options, a job list from each line, Python code by calling the class. Values
are checked at construction. The pipeline takes requests as they are. Fields are named like the options, with
underscores; job lists and messages write hyphens.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import secrets
from dataclasses import KW_ONLY, Field, dataclass, field, fields, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

from audiolm_cli import checks
from audiolm_cli.backend import Settings
from audiolm_cli.checks import Check
from audiolm_cli.config import COLDEST, Sampling
from audiolm_cli.errors import UsageError

NAME_FILES = (checks.path, checks.source, checks.picture)  # checks of options that name files
BATCH_SIZE = 8  # outputs sampled together by default
MAX_CANDIDATES = 64  # per output
AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3")  # suffixes of supported formats; the first is the default

# fields that may differ within a batch, and the values that `shared` gives them
PER_OUTPUT: dict[str, Any] = {"input": None, "output": None, "num_samples": 1, "seed": 0, "plot": None}
UNTIL_END = "Stop where the model would, after that time at most."
PROMPT_GUIDANCE = "Classifier-free guidance of stage 1 to what came before; 0: none."
MAX_PAUSE = "Sample hotter in a pause that lasts longer; inf: never."
SomeRequest = TypeVar("SomeRequest", bound="Request")


def option(
    check: Check, help: str = "", metavar: str | None = None, *flags: str, default: Any = None, **how: Any
) -> Any:
    """A request's field: its check and, for the command line, its help, metavar and flags."""
    how.setdefault("default", default)
    return field(metadata={"check": check, "help": help, "metavar": metavar, "flags": flags}, **how)


@dataclass(frozen=True)
class Request:
    """The options of every command.

    `input` is a path, "-" for standard input, or None if there is none or Python code has the input itself; `output` is
    a path, "-" for standard output, or None for a name derived from the input's. The pipeline returns waveforms:
    `output`, `plot`, `continuation_only` and `no_watermark` concern the code that writes files. Raises UsageError for
    an invalid value.
    """

    input: str | None = option(checks.source)
    _: KW_ONLY
    output: str | None = option(checks.path)
    # options of some commands, with fixed values for the others
    num_samples: int = field(default=1, init=False)
    speaker: str | None = field(default=None, init=False)
    max_pause: float | None = field(default=None, init=False)
    prompt_guidance: float | None = field(default=None, init=False)
    plot: str | None = field(default=None, init=False)
    continuation_only: bool = field(default=False, init=False)
    no_watermark: bool = field(default=False, init=False)

    suffixes: ClassVar[tuple[str, ...]] = AUDIO

    def __post_init__(self) -> None:
        for name, spec in self.options().items():
            if (value := getattr(self, name)) is not None or spec.default is not None:
                object.__setattr__(self, name, spec.metadata["check"](name.replace("_", "-"), value))

    @classmethod
    @functools.cache
    def options(cls) -> dict[str, Field[Any]]:
        """The fields that can be set: the command's own, then the shared ones."""
        names = dict.fromkeys(name for kind in cls.__mro__ for name in inspect.get_annotations(kind))
        found = {spec.name: spec for spec in fields(cls) if spec.init}
        return {name: found[name] for name in names if name in found}

    @classmethod
    def options_in_memory(cls) -> dict[str, Field[Any]]:
        """The options of one output whose audio stays in memory: none names a file."""
        return {
            name: spec
            for name, spec in cls.options().items()
            if spec.metadata["check"] not in NAME_FILES and name != "num_samples"
        }

    def updated(self: SomeRequest, given: Any) -> SomeRequest:
        """The request with changes from a JSON object. Raises UsageError."""
        if not isinstance(given, dict):
            raise UsageError("not a JSON object")
        known = {name.replace("_", "-"): name for name in self.options()}
        if unknown := given.keys() - known.keys():
            raise UsageError(f"unknown key {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}")
        for key in (key for key, value in given.items() if value is None):
            raise UsageError(f"{key}: must not be null; leave the key out")
        return replace(self, **{known[key]: value for key, value in given.items()})

    def shared(self: SomeRequest) -> SomeRequest:
        """What the requests of one batch have in common: all but input, seed and names."""
        known = self.options()
        return replace(self, **{name: value for name, value in PER_OUTPUT.items() if name in known})

    def check(self, config: Settings) -> None:
        """Raises UsageError for options that the bundle cannot serve."""
        config.allow(self)


class Extent(NamedTuple):
    """Samples of one output: of the `prompt` that it goes on from, of that which is `kept`, and in `total`, infinite
    where that is not known before."""

    prompt: int
    kept: int
    total: float


@dataclass(frozen=True)
class SampledRequest(Request):
    """The options of the commands that sample tokens. None leaves a choice to the bundle."""

    num_samples: int = option(checks.integer(1, 10000), "Outputs of each input.", "N", "--num-samples", "-n", default=1)
    seed: int = option(
        checks.integer(0, 2**63 - 1),
        "Same seed, same audio; random unless given.",
        "N",
        default=dataclasses.MISSING,
        default_factory=lambda: secrets.randbits(32),
    )
    temperature: float | tuple[float, float, float] | None = option(
        checks.for_stages(float, lambda t: 0 <= t < math.inf, "at least 0"),
        "Of all stages, or semantic, coarse, fine.",
        "T|S,C,F",
    )
    top_k: int | tuple[int, int, int] | None = option(
        checks.for_stages(int, lambda k: 0 <= k < 2**31, "from 0 to 2147483647"),
        "Most likely tokens kept; 0: all.",
        "K|S,C,F",
    )
    top_p: float | tuple[float, float, float] | None = option(
        checks.for_stages(float, lambda p: 0 < p <= 1, "above 0 and at most 1"),
        "Probability kept, up to 1: all.",
        "P|S,C,F",
    )
    guidance: float | None = option(checks.guidance, "Classifier-free guidance of stage 2 to the voice; 0: none.", "W")
    plot: str | None = option(
        checks.picture, "PNG of spectrogram and tokens; '{stem}.{index}.png' names several.", "FILE"
    )
    no_watermark: bool = option(
        checks.flag, "Leave out the mark that `detect` finds.", None, "--no-watermark", default=False
    )

    @classmethod
    def with_sampling(cls: type[SomeRequest], sampling: Sampling, **options: Any) -> SomeRequest:
        """A request with these settings, as far as the command has them, and other `options`."""
        own = {name: value for name, value in vars(sampling).items() if name in cls.options()}
        return cls(**own, **options)

    def kept(self, prompt: int) -> int:
        """How many of a prompt's samples, its last ones, an output begins with."""
        return 0 if self.continuation_only else prompt

    def extent(self, given: int, rate: int) -> Extent:
        """The samples of an output at `rate` Hz. `given`: those of the prompt or source."""
        duration = getattr(self, "duration", None)
        prompt = 0 if duration is None else given  # a resynthesis does not contain its source
        kept = self.kept(prompt)
        if duration == math.inf or getattr(self, "until_end", False):
            return Extent(prompt, kept, math.inf)
        return Extent(prompt, kept, kept + (given if duration is None else round(duration * rate)))

    def sampling(self, defaults: Sampling) -> Sampling:
        """The bundle's defaults with this request's changes."""
        given = {name: getattr(self, name) for name in vars(defaults)}
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})

    def pause_limit(self, config: Settings) -> float:
        """The longest pause in seconds, infinite without a limit: as asked for, or the bundle's default, which does not
        apply at temperature 0."""
        if "max_pause" not in self.options():
            return math.inf
        if self.max_pause is not None:
            return self.max_pause
        return math.inf if self._greedy(config) else config.pause_limit

    def _greedy(self, config: Settings) -> bool:
        """Whether stage 1 takes the likeliest token."""
        return self.sampling(config.sampling).temperature[0] < COLDEST

    def check(self, config: Settings) -> None:
        super().check(config)
        if self.max_pause is None or self.max_pause == math.inf:
            return
        if not config.knows_pauses:
            raise UsageError(f"max-pause: {config.name} has no list of the tokens that stand for silence")
        if self._greedy(config):
            raise UsageError("max-pause: samples hotter in a pause, which a temperature of 0 in stage 1 excludes")


@dataclass(frozen=True)
class ContinueRequest(SampledRequest):
    """Continues recordings by `duration` seconds, given the last `prompt_seconds` of them."""

    duration: float = option(checks.duration, "Seconds of new audio; inf: until Ctrl-C.", "SECONDS", default=7)
    prompt_seconds: float | None = option(checks.seconds, "How much of a prompt's end to go on from.", "SECONDS")
    best_of: int = option(
        checks.integer(1, MAX_CANDIDATES),
        f"Candidates of each output, up to {MAX_CANDIDATES}, of which the best is kept.",
        "N",
        default=1,
    )
    until_end: bool = option(checks.flag, UNTIL_END, None, "--until-end", default=False)
    max_pause: float | None = option(checks.duration, MAX_PAUSE, "SECONDS")
    prompt_guidance: float | None = option(checks.guidance, PROMPT_GUIDANCE, "W")
    continuation_only: bool = option(checks.flag, "Leave the prompt out.", None, "--continuation-only", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.until_end and self.best_of > 1:
            raise UsageError("until-end and best-of exclude each other: candidates are compared at one length")

    def check(self, config: Settings) -> None:
        super().check(config)
        _at_least_a_token(config, "duration", self.duration)
        if self.prompt_seconds is not None:
            _at_least_a_token(config, "prompt-seconds", self.prompt_seconds)


@dataclass(frozen=True)
class GenerateRequest(SampledRequest):
    """Generates `duration` seconds without a prompt."""

    input: None = field(default=None, init=False)
    duration: float = option(checks.duration, "Seconds of audio; inf: until Ctrl-C.", "SECONDS", default=10)
    until_end: bool = option(checks.flag, UNTIL_END, None, "--until-end", default=False)
    max_pause: float | None = option(checks.duration, MAX_PAUSE, "SECONDS")
    prompt_guidance: float | None = option(checks.guidance, PROMPT_GUIDANCE, "W")

    def check(self, config: Settings) -> None:
        super().check(config)
        _at_least_a_token(config, "duration", self.duration)


@dataclass(frozen=True)
class ResynthRequest(SampledRequest):
    """Resynthesises recordings in the voice of the recording at the path `speaker`, or in a sampled voice."""

    speaker: str | None = option(checks.path, "Recording of the voice; sampled unless given.", "FILE")


@dataclass(frozen=True)
class EncodeRequest(Request):
    """Turns recordings into tokens."""

    suffixes: ClassVar[tuple[str, ...]] = (".safetensors",)


@dataclass(frozen=True)
class DecodeRequest(Request):
    """Turns tokens into audio, from the first `quantizers` code streams (default: all)."""

    quantizers: int | None = option(checks.integer(1, 64), "Use only the first of the quantizers.", "N")

    def check(self, config: Settings) -> None:
        super().check(config)
        if (self.quantizers or 1) > config.tokens.quantizers:
            raise UsageError(f"quantizers: {config.name} has only {config.tokens.quantizers}")


def _at_least_a_token(config: Settings, name: str, seconds: float) -> None:
    token, rate = config.tokens.samples_per_semantic, config.tokens.sample_rate
    if seconds < math.inf and round(seconds * rate) < token:
        raise UsageError(f"{name}: must be at least {token / rate} seconds")
