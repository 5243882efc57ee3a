"""Continuations by the tiny bundle, short and with sampling settings that suit random weights."""

from __future__ import annotations

from typing import Any

from audiolm_cli import pipeline
from audiolm_cli.bundles import bundle
from audiolm_cli.pipeline import Prompt
from audiolm_cli.request import ContinueRequest

SAMPLING: Any = {"temperature": 1.0, "top_k": 0, "top_p": 0.95, "guidance": 0.0, "seed": 0}


def run(tiny: bundle.Bundle, prompts: list[Prompt], **change) -> list[pipeline.Output]:
    how = {name: change.pop(name) for name in ("batch_size", "progress", "resampled_tokens") if name in change}
    request = ContinueRequest(**{"duration": 0.4, "prompt_seconds": 0.8, **SAMPLING, **change})
    return list(pipeline.continue_(tiny, request, prompts, **{"batch_size": 3, **how}))
