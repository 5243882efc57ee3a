"""The ids of Mimi's codes in a vocabulary, by their names in tokenizer.json, never guessed.

A family of checkpoints is recognised by how it names a code. Their codes are flattened frame by frame, quantizer by
quantizer. Families that delay quantizers (MusicGen, Moshi) or have codes only at every fourth step (WavSLM) would come
next: a family determines the order of codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audiolm_cli.errors import ModelError
from audiolm_cli.public.config import DecoderConfig
from audiolm_cli.public.files import MAX_TOKENIZER_BYTES, TOKENIZER, read_json

CODEBOOK_SIZE, MOST_QUANTIZERS = 2048, 32  # of Mimi


@dataclass(frozen=True)
class Family:
    """What checkpoints of one origin have in common. `header`: tokens before the codes; `end`: the token after them.
    `context`: the tokens per training sequence."""

    name: str
    header: tuple[str, ...]
    end: str
    code: Callable[[int, int], str]  # a quantizer and its code -> name
    context: int
    temperature: float
    top_k: int
    top_p: float


FAMILIES = (
    # https://soda-audio.github.io/experiment_log.html; sampling settings from its model cards
    Family(
        "SODA",
        ("<|begin_of_text|>", "<|audio_start|>"),
        "<|audio_end|>",
        lambda quantizer, code: chr(0xE000 + CODEBOOK_SIZE * quantizer + code),
        context=4096,
        temperature=1.0,
        top_k=0,
        top_p=0.9,
    ),
    # https://github.com/llm-jp/llama-mimi, inference.py; trained on 20 s
    Family(
        "Llama-Mimi",
        ("<|begin_of_text|>", "<audio>"),
        "</audio>",
        lambda quantizer, code: f"<{code}_{quantizer}>",
        context=1024,
        temperature=0.8,
        top_k=30,
        top_p=1.0,
    ),
)


@dataclass(frozen=True)
class Layout:
    """A checkpoint's ids: those of the `header` before the codes, of the `end` after them, and of the `codes`, `int64
    [quantizers, CODEBOOK_SIZE]`."""

    family: Family
    header: tuple[int, ...]
    end: int
    codes: np.ndarray

    @property
    def quantizers(self) -> int:
        return len(self.codes)


def read_layout(folder: Path, config: DecoderConfig) -> Layout:
    """Finds the family whose code names a checkpoint's vocabulary has. Raises ModelError for a vocabulary that has none
    or only some of them, or that does not fit the config."""
    file = folder / TOKENIZER
    try:
        return _layout(_vocabulary(read_json(file, MAX_TOKENIZER_BYTES)), config)
    except ModelError as error:
        raise ModelError(f"{error}" if str(error).startswith(str(file)) else f"{file}: {error}") from None


def _vocabulary(value: Any) -> dict[str, int]:
    """The ids by name in a tokenizer.json."""
    try:
        found = dict(value["model"].get("vocab") or {})
        found |= {token["content"]: token["id"] for token in value.get("added_tokens") or []}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ModelError("not a tokenizer with names and ids") from None
    if not all(type(id) is int for id in found.values()):
        raise ModelError("has ids that are no numbers")
    return found


def _layout(vocabulary: dict[str, int], config: DecoderConfig) -> Layout:
    family = next((family for family in FAMILIES if family.code(0, 0) in vocabulary), None)
    if family is None:
        known = ", ".join(family.name for family in FAMILIES)
        raise ModelError(f"its vocabulary has none of Mimi's codes as the families do that are known here: {known}")
    quantizers = sum(family.code(q, 0) in vocabulary for q in range(MOST_QUANTIZERS))
    names = [[family.code(q, code) for code in range(CODEBOOK_SIZE)] for q in range(quantizers)]
    for name in (*family.header, family.end, *(name for row in names for name in row)):
        if name not in vocabulary:
            raise ModelError(f"its vocabulary is that of {family.name}, but has no {name!a}")
    if config.num_quantizers not in (None, quantizers):
        raise ModelError(f"has codes of {quantizers} quantizers, config.json says {config.num_quantizers}")
    codes = np.array([[vocabulary[name] for name in row] for row in names])
    specials = [vocabulary[name] for name in (*family.header, family.end)]
    ids = [*specials, *codes.flat]
    if min(ids) < 0 or max(ids) >= config.vocab_size:
        raise ModelError(f"has an id that is none of the {config.vocab_size} that config.json says")
    if len(set(ids)) < len(ids):
        raise ModelError("has one id for several codes")
    return Layout(family, tuple(specials[:-1]), specials[-1], codes)
