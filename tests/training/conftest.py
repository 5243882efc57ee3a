"""Fixtures for tests of trainings."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable

import pytest

from audiolm_cli.training import trainer


@pytest.fixture
def steps_take(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the seconds of a step by the trainer's clock: trainings make as many steps on any machine."""

    def told(seconds: float) -> None:
        ticks = itertools.count(0, seconds)
        monkeypatch.setattr(trainer, "time", types.SimpleNamespace(monotonic=lambda: next(ticks)))

    return told
