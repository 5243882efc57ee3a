"""What stage 2 and its guides know of the voice: `CoarseStage`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from audiolm_cli.config import StageSampling, preset
from audiolm_cli.language_models.frames import FrameTransformer
from audiolm_cli.language_models.sampling import Noise
from audiolm_cli.language_models.stages import CoarseStage, StageContext, TokenSource, whole
from audiolm_cli.language_models.tokens import Item
from tests.helpers.bundles import modules

KNOWN = 10  # frames of a prompt
KEPT = {False: 12, True: 20}  # frames that a later window keeps: half of its length without the voice, in whole tokens


@pytest.fixture
def model() -> FrameTransformer:
    """Stage 2 with windows of a second."""
    config = preset("tiny")
    coarse = dataclasses.replace(config.coarse, window_seconds=1.0)
    made: Any = modules(dataclasses.replace(config, coarse=coarse))["coarse"].eval()
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("voice", "gap"), [(False, True), (True, False), (True, True)], ids=["prompt", "reference", "gap"]
)
def test_windows_have_the_voice_in_front_and_guides_lack_it(
    model: FrameTransformer, monkeypatch: pytest.MonkeyPatch, voice: bool, gap: bool
) -> None:
    items: list[Item] = []

    def item(*args: Any) -> Item:
        items.append(FrameTransformer.item(model, *args))
        return items[-1]

    monkeypatch.setattr(model, "item", item)
    spec, generator = model.spec, torch.Generator().manual_seed(0)
    semantic = torch.randint(spec.semantic_vocabulary, (60,), generator=generator)
    known = torch.randint(spec.codebook_size, (spec.coarse, 0 if voice else KNOWN), generator=generator)
    reference = (semantic[:5], torch.zeros(spec.coarse, 2 * 5, dtype=torch.int64)) if voice else None
    sampling = StageSampling(1.0, 0, 0.9, guidance=2.0, guide_weights=(0.5, 0.5))
    context = StageContext([Noise(5, 0, 0)], sampling, 1)
    (codes,) = whole(CoarseStage(model, TokenSource([semantic]), [known], context, reference, gap))

    first, *later = items
    before, between = reference[1] if reference else known, torch.full((1, spec.coarse), spec.codebook_size + 1)
    with_gap = torch.cat([before.T, between])
    assert torch.equal(first.sequence.ids[1 : first.sequence.known], with_gap if voice and gap else before.T)
    assert [guide.known for guide in first.guides] == [1, 1]  # only <begin>
    assert len(later) > 2
    made = known.shape[1] + len(first.uniform)
    for window in later:
        own, nothing = window.guides
        if voice:
            assert torch.equal(window.sequence.ids[1 : 1 + len(with_gap)], with_gap)
        assert between[0, 0] in window.sequence.ids
        assert between[0, 0] not in own.ids
        kept = own.known - 1
        assert kept == KEPT[voice]
        assert torch.equal(own.ids[1 : 1 + kept], codes[:, made - kept : made].T)
        assert torch.equal(own.ids[1 : 1 + kept], window.sequence.ids[window.sequence.known - kept :][:kept])
        assert nothing.known == 1
        assert bool((nothing.fields[:, 2:] == spec.semantic_vocabulary).all())
        assert not bool((own.fields[:, 2:] == spec.semantic_vocabulary).all())
        made += len(window.uniform)
    assert made == codes.shape[1]
