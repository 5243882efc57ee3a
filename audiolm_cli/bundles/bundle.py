"""A bundle: config.json and one safetensors file per part, located by `catalogue`, loaded part by part.

Nothing in a bundle is trusted: `config` bounds the sizes; names, shapes and dtypes of tensors must be those that the
config implies; and every part must match the codec and the tokenizer beside it. Any mismatch is a ModelError of one
line. Tensors are bfloat16 on disk; since format version 2, matrices may be int8 (`int8`), converted to floats here.
Codec and tokenizer run in float32.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from audiolm_cli import native
from audiolm_cli.bundles import int8
from audiolm_cli.bundles.catalogue import find
from audiolm_cli.bundles.folder import PARTS, check_once, read_config
from audiolm_cli.codec.soundstream import SoundStream
from audiolm_cli.config import BundleConfig, StageConfig
from audiolm_cli.console import Tell
from audiolm_cli.detector import Detector, make_detector
from audiolm_cli.errors import ModelError, UsageError
from audiolm_cli.language_models.kinds import CoarseModel, FineModel, stage_model
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.language_models.tokens import StageName
from audiolm_cli.language_models.transformer import Stack
from audiolm_cli.processor import prefers_bfloat16
from audiolm_cli.tokenizer.semantic import SemanticTokenizer

# what tokens depend on: the codec's decoder may be retrained, not its encoder and codebooks
TOKEN_SOURCES = {"codec": ("encoder.", "quantizer."), "tokenizer": ("",)}
NEEDS = {
    "semantic": ("tokenizer",),
    "coarse": ("codec", "tokenizer"),
    "fine": ("codec",),
    "detector": ("codec", "tokenizer"),
}

Part = TypeVar("Part", bound=nn.Module)


class _Uninitialized(TorchFunctionMode):
    """Skips random initialisation. It does nothing on the meta device, but imports torch's compiler: 0.6 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class Bundle:
    """A loaded bundle, the `Backend` of three stages; each part is read on first use."""

    revision, compiled = "", True

    def __init__(self, folder: Path, config: BundleConfig, device: torch.device, dtype: torch.dtype):
        self.folder, self.config, self.device, self.dtype = folder, config, device, dtype
        self.kernel = native.kind() if device.type == "cpu" else "torch"  # decodes the language models

    @cached_property
    def identity(self) -> str:
        """The SHA-256 of SHA256SUMS: identifies these exact weights."""
        return hashlib.sha256((self.folder / "SHA256SUMS").read_bytes()).hexdigest()

    @cached_property
    def codec(self) -> SoundStream:
        return self._part("codec", functools.partial(SoundStream, self.config.codec, self.config.tokens), torch.float32)

    @cached_property
    def tokenizer(self) -> SemanticTokenizer:
        make = functools.partial(SemanticTokenizer, self.config.tokenizer, self.config.tokens)
        return self._part("tokenizer", make, torch.float32)

    @cached_property
    def semantic(self) -> SemanticTransformer:
        return self._stage("semantic", self.config.semantic)

    @cached_property
    def coarse(self) -> CoarseModel:
        return self._stage("coarse", self.config.coarse)

    @cached_property
    def fine(self) -> FineModel | None:
        return self._stage("fine", self.config.fine) if self.config.fine else None

    @property
    def stages(self) -> dict[StageName, Stack]:
        """The language models, in order."""
        found: dict[StageName, Stack] = {"semantic": self.semantic, "coarse": self.coarse}
        return found if self.fine is None else {**found, "fine": self.fine}

    def read(self) -> None:
        """Reads all parts, which happens on first use otherwise."""
        _ = self.identity, self.codec, self.tokenizer, self.stages, self.detector

    def tokenize(self, samples: np.ndarray, tell: Tell | None = None) -> tuple[Tensor, Tensor]:
        """Audio `float32 [T]` -> semantic tokens `int64 [S]`, codes `int64 [Q, F]`, F = S * frames_per_semantic; the
        last semantic token is padded with silence. `tell` gets the number of tokens done: half a token each for its
        semantic token and its codes."""
        tell, per = tell or (lambda count: None), self.config.tokens.frames_per_semantic
        audio = torch.from_numpy(np.pad(samples, (0, -len(samples) % self.config.tokens.samples_per_semantic)))
        audio = audio.to(self.device)[None]
        semantic = self.tokenizer.tokenize(audio, lambda tokens: tell(tokens / 2))[0].cpu()
        return semantic, self.codec.encode(audio, lambda frames: tell(frames / per / 2))[0].cpu()

    @cached_property
    def detector(self) -> Detector | None:
        if self.config.detector is None:
            return None
        return self._part("detector", functools.partial(make_detector, self.config), torch.float32)

    def _stage(self, name: StageName, config: StageConfig) -> Any:
        make = functools.partial(stage_model, config, self.config.tokens, name)
        if self.kernel == "native":
            from audiolm_cli.native.model import give

            model = self._part(name, make, torch.float32)  # represents int8 exactly
            give(model)
            model.to(self.dtype)
        else:
            model = self._part(name, make, self.dtype)
        model.pack()
        return model

    def _part(self, part: str, make: Callable[[], Part], dtype: torch.dtype) -> Part:
        """The module that `make` builds, with the weights of the part's file."""
        with torch.device("meta"), _Uninitialized():
            module = make()
        return self._fill(part, module, dtype)

    def _fill(self, part: str, module: Part, dtype: torch.dtype) -> Part:
        file = self.folder / f"{part}.safetensors"
        tensors = read_tensors(file, module.state_dict())
        if int8.is_used(tensors) and self.config.format_version < 2:
            raise ModelError(f"{file}: has matrices in int8, which format_version 1 of config.json does not know")
        self._check_sources(part, tensors)
        ready = int8.restored({name: tensor.to(self.device) for name, tensor in tensors.items()})
        floats = {k: v.to(dtype if v.is_floating_point() else v.dtype) for k, v in ready.items()}
        module.load_state_dict(floats, assign=True)
        return module.eval().requires_grad_(False)

    def _check_sources(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Refuses a codec or tokenizer other than config.json names, and stages trained on another one's tokens."""
        depends = self.config.depends
        own = depends.get(part, {}).get("self")
        if part in TOKEN_SOURCES and tensors_identity(tensors, TOKEN_SOURCES[part]) != own:
            raise ModelError(f"{self.folder}: {part}.safetensors is not the {part} that config.json names")
        for source in NEEDS.get(part, ()):
            if depends.get(part, {}).get(source) != depends.get(source, {}).get("self"):
                raise ModelError(f"{self.folder}: {part}.safetensors was trained on the tokens of another {source}")


def load(name: str, *, device: str = "auto", dtype: str = "auto", offline: bool = False) -> Bundle:
    """Loads a bundle by its name (embedded in the program), folder or id on a hub.

    Raises ModelError if there is none or it is damaged, UsageError for an unavailable device or dtype.
    """
    where = pick_device(device)
    if where.type == "cuda":  # its attention builds a plan for every new length, on the host
        torch.backends.cuda.enable_cudnn_sdp(False)
    folder = find(name, offline)
    check_once(folder)
    return Bundle(folder, read_config(folder), where, pick_dtype(dtype, where))


def check_parts(folder: Path) -> None:
    """Reads all parts; raises ModelError if one does not fit the config or the others."""
    bundle = Bundle(folder, read_config(folder), torch.device("cpu"), torch.float32)
    for part in PARTS:
        getattr(bundle, part)


def read_tensors(file: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a part as stored, with the names and shapes of `wanted`; matrices may be int8 with scales beside
    them (`int8.restored`). Raises ModelError."""
    try:
        with safe_open(file, framework="pt") as handle:
            names = set(handle.keys())
            shapes = {name: list(tensor.shape) for name, tensor in wanted.items()}
            for name in names & wanted.keys():
                in_int8 = wanted[name].is_floating_point() and handle.get_slice(name).get_dtype() == "I8"
                if in_int8 and wanted[name].ndim > 1:
                    shapes[name + int8.SCALE] = shapes[name][:1]
            if missing := shapes.keys() - names:
                raise ModelError(f"{file}: tensor {sorted(missing)[0]} is missing")
            if unknown := names - shapes.keys():
                raise ModelError(f"{file}: tensor {sorted(unknown)[0]} does not belong there")
            for name, implied in shapes.items():
                shape = list(handle.get_slice(name).get_shape())
                if shape != implied:
                    raise ModelError(f"{file}: tensor {name} has shape {shape}, config.json implies {implied}")
            tensors = {name: handle.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: not readable as safetensors ({error})") from error
    for name, like in wanted.items():
        if name + int8.SCALE in tensors:
            if fault := int8.fault(tensors[name], tensors[name + int8.SCALE]):
                raise ModelError(f"{file}: tensor {name} has {fault}")
        elif tensors[name].is_floating_point() != like.is_floating_point():
            raise ModelError(f"{file}: tensor {name} has dtype {tensors[name].dtype}")
    return tensors


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` -> an available device; raises UsageError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise UsageError(f"--device {name}: use auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: no such CUDA device here")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"--device {name}: no Apple GPU here")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of activations. `auto`: bfloat16 where the hardware multiplies it fast, else float32; `int8`, of weights
    on a CPU: float32. Raises UsageError for an unknown name, and for int8 where the kernel is missing."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name in known:
        return known[name]
    if name == "int8":
        if device.type != "cpu":
            raise UsageError(f"--dtype int8: works on a CPU, not on {device.type}")
        native.required("--dtype int8")
        return torch.float32
    if name != "auto":
        raise UsageError(f"--dtype {name}: use auto, float32, bfloat16 or int8")
    fast = device.type == "cuda" or (device.type == "cpu" and prefers_bfloat16())
    return torch.bfloat16 if fast else torch.float32


# ------------------------------------------------------------------------------------------------------ writing


def round_to_disk(module: nn.Module, in_int8: tuple[str, ...] = ()) -> None:
    """Rounds every floating tensor of the module to its precision on disk, as `save_part` stores it."""
    tensors = module.state_dict()
    with torch.no_grad():
        for name, tensor in int8.restored(int8.stored(tensors, in_int8)).items():
            tensors[name].copy_(tensor)


def tensors_identity(tensors: Mapping[str, Tensor], prefixes: Iterable[str] = ("",)) -> str:
    """SHA-256 over names, shapes and stored values of the tensors with these name prefixes."""
    digest = hashlib.sha256()
    for name in sorted(n for n in tensors if n.startswith(tuple(prefixes))):
        tensor = tensors[name].detach().cpu()
        if tensor.is_floating_point() and not int8.is_scale(name, tensors):
            tensor = tensor.bfloat16().view(torch.int16)
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_part(file: Path, module: nn.Module, about: dict[str, Any], in_int8: tuple[str, ...] = ()) -> None:
    """Writes a part with `about` (config, depends, trained) as metadata: matrices whose names begin with `in_int8` in
    int8 (usually `int8.MATRICES`), all else in bfloat16."""
    write_tensors(file, int8.stored(module.state_dict(), in_int8), {"about": json.dumps(about)})


def write_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file atomically, and its folder if needed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as part:
        save_file(tensors, part, metadata)


@contextlib.contextmanager
def whole(file: Path) -> Iterator[Path]:
    """An atomic write: the path to write to, which then replaces `file`. Readers never see a partial file, and
    processes that write it at the same time do not interfere."""
    part = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def read_about(file: Path) -> dict[str, Any]:
    """The metadata written by `save_part`; raises ModelError."""
    try:
        with safe_open(file, framework="pt") as handle:
            return json.loads((handle.metadata() or {})["about"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{file}: not a part written by training ({error})") from error
