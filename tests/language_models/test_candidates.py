"""`best_of`: several candidates of stage 1, of which the likeliest to belong to the prompt goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from audiolm_cli import pipeline
from audiolm_cli.audio import postfilter
from audiolm_cli.bundles import bundle
from audiolm_cli.config import StageSampling
from audiolm_cli.language_models import stages
from audiolm_cli.language_models.likelihood import prompt_gain
from audiolm_cli.pipeline import Prompt
from tests.helpers.bundles import with_short_windows
from tests.helpers.continuing import run
from tests.helpers.sounds import noise


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    return with_short_windows(tmp_path_factory.mktemp("bundles"))


def test_the_best_of_one_candidate_is_what_was_made_before(tiny: bundle.Bundle) -> None:
    (plain,), (one,) = run(tiny, [Prompt(noise(1))]), run(tiny, [Prompt(noise(1))], best_of=1)
    assert np.array_equal(plain.waveform, one.waveform)
    assert one.candidates == ()


@pytest.mark.parametrize("duration", [0.4, 2.2])
def test_the_best_of_several_candidates_goes_on(tiny: bundle.Bundle, duration: float) -> None:
    """The longer one goes beyond the first window, behind which stage 1 does not hear the prompt."""
    prompt = Prompt(noise(1), position=3, sample=1, seed=7)
    (best,) = run(tiny, [prompt], duration=duration, best_of=5)
    known = pipeline.encode(tiny, postfilter.without_rumble(noise(1)[-12800:], 16000, 70.0)).semantic
    kept = known[: len(known) - tiny.config.tokenizer.lookahead]
    made = [
        stages.continue_semantic(
            tiny.semantic,
            [kept],
            [len(best.semantic)],
            stages.StageContext([stages.Noise(7, 3, 1, c)], StageSampling(1.0, 0, 0.95), 1),
        )[0]
        for c in range(5)
    ]
    assert len({tuple(tokens.tolist()) for tokens in made}) == 5
    first = len(kept) - 12  # half a window
    scores = [prompt_gain(tiny.semantic, kept[first:], tokens[len(kept) : first + 25]) for tokens in made]
    assert best.candidates == tuple(scores)
    assert torch.equal(best.semantic, made[int(np.argmax(scores))])
    end = min(first + 25, len(best.semantic))
    assert best.stage_tokens["semantic"] == 4 * (end - len(kept)) + len(best.semantic) - len(kept)
    assert best.stage_tokens["coarse"] == 4 * (best.codes.shape[1] - 40)  # of the winner alone
    if scores[0] == max(scores):
        (plain,) = run(tiny, [prompt], duration=duration)
        assert np.array_equal(plain.waveform, best.waveform)


def test_the_best_candidate_does_not_depend_on_the_batch(tiny: bundle.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []
    start = stages.engine.start

    def watched(model: Any, items: list, *rest: Any) -> Any:
        together.append(len(items))
        return start(model, items, *rest)

    monkeypatch.setattr(stages.engine, "start", watched)
    prompts = [Prompt(noise(seconds, n), n) for n, seconds in enumerate((1.0, 0.3, 0.7))]
    results = [run(tiny, prompts, best_of=4, batch_size=size) for size in (1, 3, 8)]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a.candidates == b.candidates
            assert np.array_equal(a.waveform, b.waveform)
    assert max(together) == 8  # of twelve candidates


def test_progress_counts_all_candidates(tiny: bundle.Bundle) -> None:
    seen: dict[str, tuple[int, int]] = {}
    tell = lambda stage, done, total: seen.update({stage: (done, total)})  # noqa: E731
    run(tiny, [Prompt(noise(1)), Prompt(noise(0.5), 1)], best_of=3, duration=2.2, progress=tell)
    assert all(done == total > 0 for done, total in seen.values())


def test_a_prompt_of_which_nothing_is_known_takes_the_first_candidate(tiny: bundle.Bundle) -> None:
    (plain,), (best,) = (run(tiny, [Prompt(noise(1)[:640])], best_of=n) for n in (1, 3))
    assert best.candidates == (0.0, 0.0, 0.0)
    assert np.array_equal(plain.waveform, best.waveform)
