"""AudioLM: continues audio. `audiolm_cli.load("speech")` loads a model; `audiolm_cli.api` documents what it can do."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiolm_cli.api import Model, Result, detect, load

__version__ = "0.2.0"
__all__ = ["Model", "Result", "__version__", "detect", "load"]


def __getattr__(name: str) -> Any:
    """Imports what needs torch on first use."""
    if name in __all__:
        return getattr(importlib.import_module("audiolm_cli.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
