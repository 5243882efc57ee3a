"""What the native kernel refuses instead of reading or writing where it must not."""

from __future__ import annotations

import ctypes
import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from audiolm_cli import native
from audiolm_cli.errors import ModelError
from audiolm_cli.native import decode
from audiolm_cli.native.model import prepare
from tests.helpers.kernels import generated
from tests.language_models.test_engine import coarse_item, coarse_model, four_items
from tests.native.test_native import LIVELY, samples_of_one_prompt


@pytest.mark.parametrize(("branch", "name", "value"), [
    (2, "shared", 7), (2, "shared", 1000), (2, "shared", -8), (2, "like", -1), (2, "like", 2), (2, "like", 1),
    (5, "like", 4), (0, "shared", 8),
])  # fmt: skip
def test_shares_that_cannot_be_are_refused(best, branch, name, value) -> None:
    """The second branch knows less than is shared, the fourth shares itself."""
    weights, opened = prepare(coarse_model("frames"), best), []

    def open_changed(model: Any, count: Any, items: Any, branches: Any, how: Any, error: Any) -> None:
        setattr(branches[branch], name, value)
        opened.append(best.audiolm_open(model, count, items, branches, how, error))

    weights.library = cast("Any", SimpleNamespace(audiolm_open=open_changed, audiolm_product=best.audiolm_product))
    with pytest.raises(ModelError, match="refuses these sizes"):
        decode.Session(weights, samples_of_one_prompt("frames"), LIVELY)
    assert opened == [None]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(best, value) -> None:
    for name in ("blocks.0.up.weight", "ids.weight", "norm.bias"):
        model = coarse_model("frames")
        model.state_dict()[name].view(-1)[3] = value
        with pytest.raises(ModelError, match="not finite"):
            prepare(model, best)


def test_values_that_overflow_are_said(best) -> None:
    model = coarse_model("frames")
    for block in model.layers():
        block.down.weight.data.fill_(3e38)
    with pytest.raises(ModelError, match="not finite"):
        generated(prepare(model, best), four_items("frames"), LIVELY, 4)


def test_indices_beyond_the_weights_are_refused(best) -> None:
    weights, item = prepare(coarse_model("frames"), best), coarse_item(6, 4, 0, "frames")
    beyond = item.sequence.ids.clone()
    beyond[0, 1] = 34
    backwards = item.sequence.fields.clone()
    backwards[3, 1] = -1
    for wrong in (
        dataclasses.replace(item, low=[3] * len(item.low)),
        dataclasses.replace(item, low=[-1] * len(item.low)),
        dataclasses.replace(item, size=0),
        dataclasses.replace(item, sequence=dataclasses.replace(item.sequence, ids=beyond)),
        dataclasses.replace(item, sequence=dataclasses.replace(item.sequence, fields=backwards)),
    ):
        with pytest.raises(ModelError, match="refuses these sizes"):
            decode.Session(weights, [wrong], LIVELY)
    short = dataclasses.replace(item, low=item.low[1:])
    with pytest.raises(ValueError, match="a number for each id"):
        decode.Session(weights, [short], LIVELY)


@pytest.mark.parametrize(
    ("name", "value"),
    [("width", 24), ("width", 1 << 20), ("heads", 3), ("heads", 0), ("kv_heads", 3), ("head_width", 4),
     ("head_width", 1 << 20), ("gated", 1), ("feedforward", 8), ("layers", 0),
     ("quantizers", 0), ("vocabulary", 35), ("vocabulary", 1 << 30)],
)  # fmt: skip
def test_models_of_impossible_sizes_are_refused(best, name, value) -> None:
    weights = prepare(coarse_model("frames"), best)
    setattr(weights.model, name, value)
    item = coarse_item(6, 4, 0, "aligned")
    error, pointers = ctypes.c_int(), (native.Item(), native.Branch(), native.Sampling())
    assert best.audiolm_open(weights.model, 1, *pointers, error) is None
    assert error.value == -2
    assert item.size


@pytest.mark.parametrize("heat", [0.0, 0.5, -2.0, 1001.0, np.nan, np.inf])
def test_temperatures_that_are_no_hotter_are_refused(best, heat) -> None:
    """When the items are opened, and between steps."""
    weights, items = prepare(coarse_model("aligned"), best), four_items("aligned")
    session = decode.Session(weights, items, LIVELY)
    session.prefill()
    session.advance(1)
    session.entries[3].heat = heat
    with pytest.raises(ModelError, match="refuses"):
        session.advance(1)
    error, how = ctypes.c_int(), native.Sampling(1.0, 0.9, 0, items[0].size)
    branches = (native.Branch * len(session.branches))(*session.branches)
    assert best.audiolm_open(weights.model, 4, session.entries, branches, how, error) is None
    assert error.value == -2
    session.entries[3].heat = 1.0
    assert session.advance(1) == 4
    session.close()


def test_steps_before_the_prefill_are_refused(best) -> None:
    session = decode.Session(prepare(coarse_model("frames"), best), four_items("frames"), LIVELY)
    with pytest.raises(ModelError, match="refuses"):
        session.advance(1)
    session.close()
