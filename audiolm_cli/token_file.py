"""Token files: a recording as semantic tokens and codes, in safetensors. Nothing in a file is trusted."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save
from torch import Tensor

from audiolm_cli.audio.files import MAX_SECONDS
from audiolm_cli.backend import Backend
from audiolm_cli.errors import InputError, display

MAX_HEADER = 2**20  # bytes before the tensors


@dataclass(frozen=True)
class Tokens:
    """A recording as tokens: semantic `int64 [S]`, codes `int64 [Q, F]`, F = S * frames_per_semantic; `metadata` has
    the bundle, rates and the number of samples, as strings."""

    semantic: Tensor
    codes: Tensor
    metadata: dict[str, str] = field(default_factory=dict)

    def save_bytes(self) -> bytes:
        """The tokens as a safetensors file: `semantic` int32, `codes` int32, and the metadata."""
        return save({"semantic": self.semantic.int(), "codes": self.codes.int()}, self.metadata)

    @staticmethod
    def load_bytes(data: bytes, bundle: Backend) -> Tokens:
        """Reads a token file.

        Raises InputError if `data` is no token file, comes from another codec, or cannot come from a recording of up to
        an hour.
        """
        spec, header = bundle.config.tokens, int.from_bytes(data[:8], "little")
        frames = MAX_SECONDS * spec.sample_rate // spec.samples_per_frame + spec.frames_per_semantic
        if header > MAX_HEADER or len(data) > MAX_HEADER + 8 * (spec.quantizers + 1) * frames:
            raise InputError(f"not a token file, or of more than {MAX_SECONDS // 60} minutes")
        try:
            tensors = dict(deserialize(data))
            metadata = json.loads(data[8 : 8 + header]).get("__metadata__") or {}
            semantic, codes = (_integers(name, tensors[name]) for name in ("semantic", "codes"))
        except KeyError as error:
            raise InputError(f"not a token file (it has no tensor {error})") from error
        except (SafetensorError, ValueError, OverflowError) as error:
            raise InputError(f"not a token file ({display(str(error)[:200])})") from error
        if metadata.get("codec") != bundle.config.depends["codec"]["self"]:
            name = display(metadata.get("bundle", "(unnamed)")[:64])
            raise InputError(f"tokens of bundle {name}, not of {bundle.config.name}")
        if codes.ndim != 2 or not 0 < codes.shape[0] <= spec.quantizers or codes.shape[1] == 0:
            raise InputError(f"codes have shape {list(codes.shape)}, expected [1 to {spec.quantizers}, frames]")
        if semantic.ndim != 1 or len(semantic) * spec.frames_per_semantic != codes.shape[1]:
            raise InputError(
                f"semantic has shape {list(semantic.shape)}, expected [{codes.shape[1] / spec.frames_per_semantic:g}] "
                f"with {codes.shape[1]} frames of codes"
            )
        if not _within(codes, spec.codebook_size):
            raise InputError(f"codes must lie between 0 and {spec.codebook_size - 1}")
        same_tokenizer = metadata.get("tokenizer") == bundle.config.depends["tokenizer"]["self"]  # not only the codec
        if same_tokenizer and not _within(semantic, spec.semantic_vocabulary):
            raise InputError(f"semantic must lie between 0 and {spec.semantic_vocabulary - 1}")
        samples, most = metadata.get("samples", ""), codes.shape[1] * spec.samples_per_frame
        if not re.fullmatch("[0-9]{1,15}", samples) or not 0 < int(samples) <= most:
            raise InputError(f"samples must be from 1 to {most}, which the codes give, not {display(samples[:64])!r}")
        return Tokens(semantic, codes, metadata)


def _integers(name: str, tensor: dict[str, Any]) -> Tensor:
    """Converts a tensor of any integer type, as described by safetensors, to int64."""
    kind = {"I": "<i", "U": "<u"}.get(tensor["dtype"][:1])
    if kind is None:
        raise ValueError(f"{name} must be integers, not {tensor['dtype']}")
    values = np.frombuffer(tensor["data"], f"{kind}{int(tensor['dtype'][1:]) // 8}")
    return torch.from_numpy(values.astype(np.int64).reshape(tensor["shape"]))  # reshape refuses impossible sizes


def _within(ids: Tensor, size: int) -> bool:
    return int(ids.min()) >= 0 and int(ids.max()) < size
