"""The benchmarks run, on the random bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from audiolm_cli import native
from tests.helpers import ROOT

pytestmark = pytest.mark.slow


def benchmark(name: str, *arguments: object) -> dict:
    file = Path(str(arguments[-1]))
    command = [sys.executable, ROOT / "benchmarks" / name, *arguments]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return json.loads(file.read_text())


def test_decode_counts_tokens_steps_and_bytes(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOLM_KERNEL", "torch")
    common = ("--batches", "1,2", "--lengths", "0.4,0.8", "--runs", 1, "--split")
    found = benchmark(
        "decode.py", "--model", tiny_bundle, *common, "--plot", tmp_path / "length.png", "--json", tmp_path / "d"
    )
    assert set(found["runs"]) == {f"{s} s, batch {b}" for s in ("0.4", "0.8") for b in (1, 2)}
    row = found["runs"]["0.8 s, batch 2"]["coarse"]
    made = 0.8 * 25 * 8 * 2
    decoding = made / row["tokens_per_second"]
    assert row["milliseconds_per_step"] == pytest.approx(
        1000 * decoding / 39
    )  # 40 frames; nothing follows the last one
    assert 0 < row["gigabytes_per_second"] < found["bandwidth"]
    assert found["split"]["coarse"]["step"] > found["split"]["coarse"]["matrix products"] > 0
    assert (tmp_path / "length.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not native.library("plain"), reason="the native kernel is not compiled here")
def test_decode_counts_native_steps(tiny_bundle: Path, tmp_path: Path) -> None:
    common = ("--batches", "2", "--lengths", "0.8", "--runs", 1)
    found = benchmark("decode.py", "--model", tiny_bundle, *common, "--json", tmp_path / "d")
    row = found["runs"]["0.8 s, batch 2"]["coarse"]
    assert row["milliseconds_per_step"] == pytest.approx(1000 * row["seconds"] / 40)
    assert row["tokens_per_second"] == pytest.approx(0.8 * 25 * 8 * 2 / row["seconds"])
    assert "native kernel" in found["machine"]["kernel"]


def test_the_parts_of_a_cold_start_add_up(tiny_bundle: Path, tmp_path: Path) -> None:
    found = benchmark("bench.py", "--model", tiny_bundle, "--runs", 1, "--json", tmp_path / "figures.json")
    parts = dict(found["continue"])
    assert parts.pop("all") == pytest.approx(sum(parts.values()))
    assert {"imports", "tokenize", "semantic", "coarse", "fine", "decode", "rest"} == set(parts)


def test_the_engine_is_measured_beside_others_on_any_processor(tmp_path: Path) -> None:
    found = benchmark(
        "peers.py", "--only", "small, audiolm bfloat16 as shipped", "--threads", 1, "--json", tmp_path / "figures.json"
    )
    (row,) = found.values()
    assert set(row) == {"semantic", "coarse", "fine"}
    assert min(row.values()) > 0


def test_public_checkpoints_stand_beside_transformers(tmp_path: Path) -> None:
    found = benchmark(
        "checkpoints.py", "--sizes", "tiny", "--tokens", 16, "--prompt", 16, "--runs", 1, "--json", tmp_path / "c"
    )["tiny"]
    assert found["tokens"] == 16
    assert found["ratio"] == pytest.approx(found["audiolm_tokens_per_second"] / found["transformers_tokens_per_second"])


def test_the_server_under_load(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    common = ("--clients", "1,3", "--seconds", 0.4, "--processes", 0, "--soak", 5)
    found = benchmark("serve.py", "--model", tiny_bundle, *common, "--json", tmp_path / "figures.json")
    for row in found["clients"].values():
        assert 0 < row["first_sound_median"] <= row["first_sound_last"]
        assert row["audio_seconds_a_second"] > 0
    assert found["soak"]["failed"] == []
    assert found["soak"]["requests"]["good"] > 0
    assert len(found["soak"]["requests"]) > 3
