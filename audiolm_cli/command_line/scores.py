"""The record of `audiolm score` for a recording or a token file."""

from __future__ import annotations

from typing import Any

import torch

from audiolm_cli import pipeline
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.command_line.batch import read_recording, read_tokens
from audiolm_cli.console import Console, Progress, counted
from audiolm_cli.errors import InputError, display
from audiolm_cli.language_models.likelihood import log_probabilities
from audiolm_cli.request import EncodeRequest
from audiolm_cli.token_file import Tokens


def score(bundle: Bundle, path: str, stages: list[str], console: Console, progress: Progress | None) -> dict[str, Any]:
    """The log-probabilities (nats) of a file's tokens, for each stage in total and by token. Token files are recognised
    by their suffix. Raises InputError."""
    spec = bundle.config.tokens
    if path.lower().endswith(EncodeRequest.suffixes):
        tokens = _whole(path, bundle)
    else:
        tokens = pipeline.encode(bundle, read_recording(path, bundle, console), progress)
    models = {name: model for name, model in bundle.stages.items() if not stages or name in stages}
    tell, found = counted(progress, "score", len(models) * len(tokens.semantic)), {}
    for name, model in models.items():
        each = log_probabilities(model, tokens.semantic, tokens.codes, tell)
        listed = torch.round(each.double(), decimals=5).tolist()
        found[name] = {
            "tokens": each.numel(),
            "log_probability": float(each.double().sum()),
            "log_probabilities": [row[0] for row in listed] if name == "semantic" else listed,
        }
    seconds = int(tokens.metadata["samples"]) / spec.sample_rate
    made_by = {"model": bundle.config.name, "identity": bundle.identity}
    return {"path": path, **made_by, "seconds": seconds, "stages": found}


def _whole(path: str, bundle: Bundle) -> Tokens:
    """Reads a token file with all tokens that the stages need."""
    tokens, needed = read_tokens(path, bundle), bundle.config.sampled_quantizers
    if tokens.metadata.get("tokenizer") != bundle.config.depends["tokenizer"]["self"]:
        raise InputError(f"{display(path)}: its semantic tokens are those of another tokenizer")
    if len(tokens.codes) < needed:
        raise InputError(f"{display(path)}: has codes of {len(tokens.codes)} quantizers, not of {needed}")
    return tokens
