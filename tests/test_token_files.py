"""Files of tokens: what `encode` writes, `decode` reads, and all else is refused by one line."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from audiolm_cli import pipeline
from audiolm_cli.audio import inputs
from audiolm_cli.bundles import bundle
from audiolm_cli.errors import InputError
from audiolm_cli.token_file import Tokens
from tests.helpers.bundles import write_bundle
from tests.helpers.sounds import tone


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> bundle.Bundle:
    return bundle.load(str(tiny_bundle), device="cpu", dtype="float32")


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(size=round(seconds * 16000)).astype(np.float32) / 10


def refused(data: bytes, tiny: bundle.Bundle) -> str:
    with pytest.raises(InputError) as raised:
        Tokens.load_bytes(data, tiny)
    message = str(raised.value)
    assert message.isprintable()
    assert len(message) < 400
    return message


def test_tokens_survive_their_file(tiny: bundle.Bundle) -> None:
    tokens = pipeline.encode(tiny, noise(0.5)[:-100])
    back = Tokens.load_bytes(tokens.save_bytes(), tiny)
    assert torch.equal(back.codes, tokens.codes)
    assert torch.equal(back.semantic, tokens.semantic)
    assert (tokens.codes.shape, tokens.semantic.shape) == ((12, 26), (13,))
    assert pipeline.decode(tiny, back).shape == (7900,)
    assert pipeline.decode(tiny, back, quantizers=4).shape == (7900,)


def test_tokens_of_another_bundle_are_refused(tiny: bundle.Bundle, tmp_path: Path) -> None:
    other = bundle.load(str(write_bundle(tmp_path / "other", seed=3)), device="cpu", dtype="float32")
    data = pipeline.encode(other, noise(0.2)).save_bytes()
    with pytest.raises(InputError, match="tokens of bundle tiny"):
        Tokens.load_bytes(data, tiny)
    own = pipeline.encode(tiny, noise(0.2))
    lengths = [
        dataclasses.replace(own, metadata={**own.metadata, "samples": n}).save_bytes() for n in ("320P", "-320", "")
    ]
    for broken in (b"", b"RIFF" * 10, data[:50], *lengths):
        with pytest.raises(InputError):
            Tokens.load_bytes(broken, tiny)


def whole(tiny: bundle.Bundle) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of half a second: 13 semantic tokens, 26 frames."""
    tokens = pipeline.encode(tiny, noise(0.5))
    return {"semantic": tokens.semantic.int(), "codes": tokens.codes.int()}, tokens.metadata


def changed(tensor: torch.Tensor, value: int) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[5] = value
    return tensor


@pytest.mark.parametrize("kind", [torch.int16, torch.int32, torch.int64, torch.uint16])
def test_any_type_of_integers_is_read(tiny: bundle.Bundle, kind: torch.dtype) -> None:
    tensors, metadata = whole(tiny)
    back = Tokens.load_bytes(save({name: t.to(kind) for name, t in tensors.items()}, metadata), tiny)
    assert torch.equal(back.codes, tensors["codes"].long())
    assert torch.equal(back.semantic, tensors["semantic"].long())


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("codes", lambda t: t.float(), "codes must be integers, not F32"),
        ("codes", lambda t: t.bool(), "codes must be integers, not BOOL"),
        ("codes", lambda t: t.to(torch.float8_e4m3fn), "codes must be integers"),
        ("codes", lambda t: t.to(torch.complex64), "codes must be integers|InvalidHeader|not a token file"),
        ("semantic", lambda t: t.bfloat16(), "semantic must be integers, not BF16"),
        ("codes", lambda t: changed(t, -1), "codes must lie between 0 and"),
        ("codes", lambda t: changed(t, 1 << 20), "codes must lie between 0 and"),
        ("semantic", lambda t: changed(t, -1), "semantic must lie between 0 and"),
        ("semantic", lambda t: changed(t, 512), "semantic must lie between 0 and"),
        ("semantic", lambda t: changed(t.long(), 2**62), "semantic must lie between 0 and"),
        ("codes", lambda t: t[:, :25].contiguous(), r"semantic has shape \[13\], expected \[12.5\]"),
        ("codes", lambda t: t[:, :24].contiguous(), r"semantic has shape \[13\], expected \[12\]"),
        ("semantic", lambda t: t[:0], r"semantic has shape \[0\], expected \[13\]"),
        ("semantic", lambda t: t[None], r"semantic has shape \[1, 13\]"),
        ("semantic", lambda t: t[0].clone(), r"semantic has shape \[\]"),
        ("codes", lambda t: t[:, :0].contiguous(), "codes have shape"),
        ("codes", lambda t: t[:0].contiguous(), "codes have shape"),
        ("codes", lambda t: t[0].clone(), "codes have shape"),
        ("codes", lambda t: torch.cat([t, t]), "codes have shape"),
        ("codes", lambda t: None, "it has no tensor 'codes'"),
    ],
)
def test_tensors_that_no_recording_gives_are_refused(tiny: bundle.Bundle, name, change, says) -> None:
    tensors, metadata = whole(tiny)
    tensors[name] = change(tensors[name])
    data = save({key: tensor for key, tensor in tensors.items() if tensor is not None}, metadata)
    with pytest.raises(InputError, match=says):
        Tokens.load_bytes(data, tiny)
    refused(data, tiny)


@pytest.mark.parametrize(
    "samples", ["0", "-1", "8321", "1e3", "8000.0", "", " 8000", "٨٠٠٠", "9" * 9999, "\n\33[2J", None]
)
def test_a_length_that_the_codes_do_not_have_is_refused(tiny: bundle.Bundle, samples: str | None) -> None:
    tensors, metadata = whole(tiny)
    rest = {key: value for key, value in metadata.items() if key != "samples"}
    data = save(tensors, rest if samples is None else {**rest, "samples": samples})
    assert "samples must be from 1 to 8320" in refused(data, tiny)


def test_the_semantic_tokens_of_another_tokenizer_are_not_judged(tiny: bundle.Bundle) -> None:
    """Bundles can share a codec alone, and the codes are all that is decoded."""
    tensors, metadata = whole(tiny)
    data = save({**tensors, "semantic": tensors["semantic"] + 512}, {**metadata, "tokenizer": "another"})
    assert len(pipeline.decode(tiny, Tokens.load_bytes(data, tiny))) == 8000


def with_header(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "header",
    [
        None,
        [],
        0,
        "",
        {"__metadata__": None},
        {"__metadata__": []},
        {"__metadata__": "codec"},
        {"__metadata__": {"codec": 1}},
        {"__metadata__": {"codec": None}},
        {"__metadata__": {"bundle": "\33[2J\n" * 9999}},
        {"\n\33" * 9999: {}},
        {"codes": None},
        {"codes": {"dtype": "I32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}},
        {"codes": {"dtype": "I32", "shape": [0, 2**64], "data_offsets": [0, 0]}},
        {"codes": {"dtype": "I32", "shape": [-1], "data_offsets": [0, 0]}},
        {"codes": {"dtype": "X\n", "shape": [0], "data_offsets": [0, 0]}},
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"__metadata__": {"codec": "\\ud800"}}',
        b"\xff\xfe",
    ],
)
def test_headers_of_any_kind_are_refused(tiny: bundle.Bundle, header: object) -> None:
    refused(with_header(header), tiny)


@pytest.mark.parametrize("shape", [[0, 2**62], [0, 2**62, 2**62], [2**62, 0]])
def test_shapes_that_no_memory_holds_are_refused(tiny: bundle.Bundle, shape: list[int]) -> None:
    nothing = {"dtype": "I32", "shape": shape, "data_offsets": [0, 0]}
    refused(with_header({"codes": nothing, "semantic": nothing}), tiny)


def test_huge_headers_and_hours_of_tokens_are_refused_before_they_are_read(tiny: bundle.Bundle) -> None:
    tensors, metadata = whole(tiny)
    assert "more than 60 minutes" in refused(save(tensors, {**metadata, "more": "x" * 2**21}), tiny)
    assert "more than 60 minutes" in refused(struct.pack("<Q", 2**63) + bytes(100), tiny)
    hours = {"semantic": torch.zeros(200_000, dtype=torch.int64), "codes": torch.zeros(12, 400_000, dtype=torch.int64)}
    assert "more than 60 minutes" in refused(save(hours, metadata), tiny)


def test_a_file_without_end_is_refused(audiolm, tmp_path: Path, tiny_bundle: Path, monkeypatch) -> None:
    monkeypatch.setattr(inputs, "MAX_TEXT_BYTES", 2**20)
    with open(tmp_path / "sparse.safetensors", "wb") as file:
        file.truncate(2**33)
    code, _, err = audiolm("decode", "sparse.safetensors", "-o", "out.wav", "-m", tiny_bundle)
    assert (code, err) == (1, "audiolm: error: sparse.safetensors: larger than 1 MB\n")


@pytest.mark.slow
def test_damaged_token_files_are_decoded_or_refused(tiny: bundle.Bundle) -> None:
    random = np.random.default_rng(0)
    whole = pipeline.encode(tiny, tone(0.2)).save_bytes()
    used = 0
    for n in range(2000):
        content = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            content[int(random.integers(8 if n % 4 == 0 else len(content)))] = int(random.integers(256))
        try:
            tokens = Tokens.load_bytes(bytes(content), tiny)
        except InputError as error:
            assert str(error).isprintable()
        else:
            used += 1
            assert len(pipeline.decode(tiny, tokens)) > 0
    assert 0 < used < 2000
