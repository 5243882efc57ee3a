"""Token layouts: flattening, ids, positions, context and windows, over random sizes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from audiolm_cli.config import StageConfig, TokenSpec
from audiolm_cli.language_models.frames import OFFSETS, FrameTransformer
from audiolm_cli.language_models.plain import PlainCoarse, PlainFine, PlainSemantic
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.language_models.tokens import Vocabulary, flatten, unflatten, windows

CONFIG = StageConfig(1, 2, 1, 8, 8)

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


@given(specs, st.integers(1, 20), st.integers(0, 20), st.integers(0, 99))
def test_a_plain_sequence_holds_every_code_once_and_leaves_unknown_ones_open(spec, frames, known, seed) -> None:
    semantic, codes = draw_codes(spec, frames, seed)
    coarse, known = codes[: spec.coarse].clone(), min(known, frames)
    coarse[:, known:] = -1
    model = PlainCoarse(CONFIG, spec)
    sequence = model.sequence(semantic, coarse)
    assert len(sequence.ids) == 2 + len(semantic) + spec.coarse * frames
    assert sequence.known == 2 + len(semantic) + spec.coarse * known
    assert torch.equal(model.codes(sequence.ids[2 + len(semantic) : sequence.known]), codes[: spec.coarse, :known])
    assert sequence.fields[:, 1].tolist() == list(range(len(sequence.ids)))
    assert not sequence.fields[:, 0].any()


def test_a_plain_sequence_has_its_reference_in_front_of_each_part() -> None:
    spec = TokenSpec()
    semantic, codes = draw_codes(spec, 20, 0)
    model, reference = PlainCoarse(CONFIG, spec), (semantic[:5], codes[: spec.coarse, :10])
    vocabulary, own = model.vocabulary, model.sequence(semantic, codes).ids
    ids = model.sequence(semantic, codes, reference).ids.tolist()
    before = model.sequence(*reference).ids.tolist()
    said, sound = ids[: ids.index(vocabulary.acoustic)], ids[ids.index(vocabulary.acoustic) + 1 :]
    assert said == [*before[:6], vocabulary.gap, *semantic.tolist()]
    assert sound == [*before[7:], vocabulary.gap, *own[2 + len(semantic) :].tolist()]


@given(specs, st.integers(1, 12), st.integers(0, 99))
def test_a_plain_sequence_of_the_fine_stage_has_all_coarse_codes_in_front(spec: TokenSpec, frames: int, seed) -> None:
    _, codes = draw_codes(spec, frames, seed)
    model = PlainFine(CONFIG, spec)
    ids, first = model.sequence(codes).ids, 2 + frames * spec.coarse
    assert ids[first - 1] == model.vocabulary.acoustic
    assert torch.equal(model.codes(ids[first:]), codes[spec.coarse :])
    assert torch.equal(
        ids[1 : first - 1],
        PlainCoarse(CONFIG, spec).sequence(codes[0], codes).ids[-frames * spec.coarse :] - spec.semantic_vocabulary,
    )


@given(specs, st.integers(1, 30), st.integers(0, 30), st.booleans(), st.integers(0, 99))
def test_a_sequence_of_frames_holds_codes_as_they_are_and_what_is_said_around_the_next(
    spec: TokenSpec, frames: int, known: int, behind_reference: bool, seed: int
) -> None:
    semantic, codes = draw_codes(spec, frames, seed)
    coarse, known = codes[: spec.coarse].clone(), min(known, frames)
    coarse[:, known:] = -1
    reference = draw_codes(spec, 6, seed + 1)
    sequence = FrameTransformer(CONFIG, spec).sequence(semantic, coarse, reference if behind_reference else None)
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
        for slot, offset in enumerate(OFFSETS):
            at = (frame + offset) // spec.frames_per_semantic
            expected = int(semantic[at]) if 0 <= at < len(semantic) else spec.semantic_vocabulary
            assert int(sequence.fields[start + frame - 1, 2 + slot]) == expected


def test_semantic_sequences_begin_with_begin_and_count_frames_or_tokens() -> None:
    for kind, times, streams in (
        (SemanticTransformer, [0, 0, 2, 4], [0, 1, 1, 1]),
        (PlainSemantic, [0, 1, 2, 3], [0] * 4),
    ):
        model = kind(CONFIG, TokenSpec())
        sequence = model.sequence(torch.tensor([3, 4, -1]))
        assert sequence.ids.tolist() == [model.vocabulary.begin, 3, 4, -1]
        assert sequence.known == 3
        assert sequence.fields[:, 1].tolist() == times
        assert sequence.fields[:, 0].tolist() == streams


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
