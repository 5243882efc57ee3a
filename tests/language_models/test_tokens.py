"""Token layouts: flattening, ids, positions, context and windows, over random sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiolm_cli.config import TokenSpec
from audiolm_cli.language_models.tokens import (
    CONTEXT_OFFSETS,
    FRAME_OFFSETS,
    Vocabulary,
    coarse_sequence,
    fine_sequence,
    flatten,
    semantic_sequence,
    unflatten,
    windows,
)

specs = st.builds(
    lambda coarse, fine, codes, words: TokenSpec(
        quantizers=coarse + fine, coarse=coarse, codebook_size=codes, semantic_vocabulary=words
    ),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(2, 40),
    st.integers(2, 40),
)


def draw_codes(spec: TokenSpec, frames: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.randint(spec.semantic_vocabulary, (-(-frames // spec.frames_per_semantic),), generator=generator)
    return semantic, torch.randint(spec.codebook_size, (spec.quantizers, frames), generator=generator)


@given(specs, st.integers(0, 30), st.integers(0, 99))
def test_unflatten_inverts_flatten(spec: TokenSpec, frames: int, seed: int) -> None:
    _, codes = draw_codes(spec, frames, seed)
    flat = flatten(codes)
    assert torch.equal(unflatten(flat, spec.quantizers), codes)
    if frames > 1:
        assert flat[spec.quantizers] == codes[0, 1]  # frame by frame


@given(specs, st.sampled_from(["semantic", "coarse", "fine"]))
def test_no_two_meanings_share_an_id(spec: TokenSpec, stage) -> None:
    vocabulary = Vocabulary(stage, spec)
    ranges = [range(vocabulary.semantic)]
    ranges += [range(vocabulary.code(q), vocabulary.code(q) + spec.codebook_size) for q in range(vocabulary.quantizers)]
    ids = [i for r in ranges for i in r] + [vocabulary.begin, vocabulary.end, vocabulary.gap, vocabulary.acoustic]
    assert sorted(ids) == list(range(vocabulary.size))


@given(specs, st.integers(1, 20), st.integers(0, 20), st.sampled_from(["aligned", "plain"]), st.integers(0, 99))
def test_coarse_sequence_holds_every_code_once_and_leaves_unknown_ones_open(spec, frames, known, layout, seed) -> None:
    semantic, codes = draw_codes(spec, frames, seed)
    coarse, known = codes[: spec.coarse].clone(), min(known, frames)
    coarse[:, known:] = -1
    sequence = coarse_sequence(spec, layout, semantic, coarse)
    assert len(sequence.ids) == 2 + len(semantic) + spec.coarse * frames
    assert sequence.known == 2 + len(semantic) + spec.coarse * known
    vocabulary = Vocabulary("coarse", spec)
    tail = sequence.ids[2 + len(semantic) : sequence.known].view(-1, spec.coarse)
    back = tail - torch.tensor([vocabulary.code(q) for q in range(spec.coarse)])
    assert torch.equal(back.T, codes[: spec.coarse, :known])
    assert int(sequence.fields.min()) >= 0
    assert int(sequence.fields[:, 0].max()) < vocabulary.streams
    assert sequence.fields.shape[1] == (2 if layout == "plain" else 2 + vocabulary.context_slots)


def test_time_is_shared_by_the_streams_and_restarts_behind_a_reference() -> None:
    spec = TokenSpec()
    semantic, codes = draw_codes(spec, 20, 0)
    reference = (semantic[:5], codes[: spec.coarse, :10])
    sequence = coarse_sequence(spec, "aligned", semantic, codes[: spec.coarse], reference)
    times, streams = sequence.fields[:, 1], sequence.fields[:, 0]
    vocabulary = Vocabulary("coarse", spec)
    assert sequence.ids.tolist().count(vocabulary.gap) == 2
    own_semantic, own_code, reference_code = times[streams == 1], times[streams == 2], times[streams == 2 + 5]
    assert own_semantic[0] == own_code[0] > reference_code[-1]
    assert own_semantic[1] - own_semantic[0] == spec.frames_per_semantic
    assert own_code[1] - own_code[0] == 1


def test_context_describes_the_frame_that_is_predicted() -> None:
    spec = TokenSpec()
    semantic, codes = draw_codes(spec, 12, 1)
    sequence = coarse_sequence(spec, "aligned", semantic, codes[: spec.coarse])
    vocabulary, start = Vocabulary("coarse", spec), 2 + len(semantic)
    for frame in range(12):
        position = start + frame * spec.coarse - 1  # predicts the first code of the frame
        for slot, offset in enumerate(CONTEXT_OFFSETS):
            at = frame // 2 + offset
            got = int(sequence.fields[position, 2 + slot])
            if 0 <= at < len(semantic):
                assert got == slot * spec.semantic_vocabulary + int(semantic[at])
            else:
                assert got == vocabulary.context_size - 1


@given(specs, st.integers(1, 30), st.integers(0, 30), st.booleans(), st.integers(0, 99))
def test_a_sequence_of_frames_holds_codes_as_they_are_and_what_is_said_around_the_next(
    spec: TokenSpec, frames: int, known: int, behind_reference: bool, seed: int
) -> None:
    semantic, codes = draw_codes(spec, frames, seed)
    coarse, known = codes[: spec.coarse].clone(), min(known, frames)
    coarse[:, known:] = -1
    reference = draw_codes(spec, 6, seed + 1)
    sequence = coarse_sequence(
        spec, "frames", semantic, coarse, (reference[0], reference[1][: spec.coarse]) if behind_reference else None
    )
    begin, gap = spec.codebook_size, spec.codebook_size + 1
    start = 8 if behind_reference else 1  # of the codes in the sequence
    assert sequence.ids.shape == (start + frames, spec.coarse)
    assert sequence.known == start + known
    assert torch.equal(sequence.ids[start:].T, coarse)
    assert sequence.ids[0].tolist() == [begin] * spec.coarse
    if behind_reference:
        assert torch.equal(sequence.ids[1:7].T, reference[1][: spec.coarse])
        assert sequence.ids[7].tolist() == [gap] * spec.coarse
    times = sequence.fields[:, 1].tolist()
    assert times == sorted(set(times))
    for frame in range(frames):
        for slot, offset in enumerate(FRAME_OFFSETS):
            at = (frame + offset) // spec.frames_per_semantic
            expected = int(semantic[at]) if 0 <= at < len(semantic) else spec.semantic_vocabulary
            assert int(sequence.fields[start + frame - 1, 2 + slot]) == expected


@given(specs, st.integers(1, 12), st.integers(0, 99))
def test_fine_context_is_the_coarse_codes_of_the_frame_that_is_predicted(
    spec: TokenSpec, frames: int, seed: int
) -> None:
    _, codes = draw_codes(spec, frames, seed)
    sequence = fine_sequence(spec, "aligned", codes)
    position = 2 + frames * spec.coarse - 1  # predicts the first fine code
    slots = torch.arange(spec.coarse) * spec.codebook_size
    assert torch.equal(sequence.fields[position, 2:] - slots, codes[: spec.coarse, 0])
    assert len(sequence.ids) == 2 + frames * spec.quantizers


def test_semantic_sequence_begins_with_begin() -> None:
    sequence = semantic_sequence(TokenSpec(), "aligned", torch.tensor([3, 4, -1]))
    assert sequence.ids.tolist() == [Vocabulary("semantic", TokenSpec()).begin, 3, 4, -1]
    assert sequence.known == 3


@given(st.integers(0, 2000), st.integers(0, 700), st.integers(2, 300))
def test_windows_cover_what_is_missing_once_and_never_exceed_the_window(total: int, start: int, window: int) -> None:
    known, kept, whole = min(start, total), window // 3, window + window // 2
    for first, made, end in windows(total, known, window, kept, whole):
        assert first <= made == known < end <= total
        assert end - first <= (window if first else whole)
        assert made - first == kept or (first == 0 and made <= max(kept, whole // 2))
        known = end
    assert known == total


def test_fields_of_a_bundle_without_a_fine_stage() -> None:
    spec = TokenSpec(quantizers=3, coarse=3, codebook_size=16384)
    assert spec.fine == 0
    assert Vocabulary("coarse", spec).begin == spec.semantic_vocabulary + 3 * 16384


@pytest.mark.parametrize("layout", ["aligned", "plain"])
def test_positions_of_the_plain_layout_count_tokens(layout) -> None:
    semantic, codes = draw_codes(TokenSpec(), 8, 0)
    positions = coarse_sequence(TokenSpec(), layout, semantic, codes[:4]).fields[:, 1]
    assert (positions.tolist() == list(range(len(positions)))) == (layout == "plain")
