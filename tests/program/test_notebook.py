"""The notebook in examples/ runs as it stands, in a kernel of its own, and shows what it promises."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.helpers import ROOT

NOTEBOOK = ROOT / "examples" / "listen.ipynb"


def test_it_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert {cell["cell_type"] for cell in cells} == {"markdown", "code"}
    assert [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.fixture(scope="module")
def shown(tmp_path_factory: Any) -> dict[str, Any]:
    """What each cell displays: text, and data by media type."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install 'audiolm[dev]'")
    import nbformat

    own = tmp_path_factory.mktemp("jupyter")  # not the user's kernels and settings
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, str(own / name.lower()))
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("OMP_NUM_THREADS", "1")
        notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
        where = {"metadata": {"path": str(NOTEBOOK.parent)}}
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    found: dict[str, Any] = {}
    for cell in notebook.cells:
        data: dict[str, Any] = {"text": ""}
        for output in cell.get("outputs", ()):
            data["text"] += output.get("text", "")
            data |= output.get("data", {})
        found[cell.id] = data
    return found


def heard(html: str) -> np.ndarray:
    """The samples that a player of `IPython.display.Audio` plays."""
    (data,) = re.findall(r'src="data:audio/[\w-]+;base64,([^"]*)"', html)
    return soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32")[0]


@pytest.mark.slow
def test_the_recording_goes_on_and_is_seen_and_detected(shown: dict[str, Any]) -> None:
    prompt, made = heard(shown["load"]["text/html"]), heard(shown["continue"]["text/html"])
    assert "6.52 s, of which the first 3.52 s are the recording" in shown["continue"]["text"]
    assert len(made) == len(prompt) + 3 * 16000
    assert np.abs(made[: len(prompt) - 320] - prompt[:-320]).max() < 1e-3  # before the crossfade
    assert np.square(made[len(prompt) :]).mean() > 1e-6
    assert base64.b64decode(shown["see"]["image/png"]).startswith(b"\x89PNG")
    recording, output = shown["detect"]["text"].splitlines()
    assert recording == "the recording: watermark False"
    assert output.startswith("what was made: watermark True ")


@pytest.mark.slow
def test_the_stream_begins_as_the_whole_does(shown: dict[str, Any]) -> None:
    pieces = [float(seconds) for seconds in re.findall(r"([\d.]+) s of new sound", shown["stream"]["text"])]
    streamed, made = heard(shown["stream"]["text/html"]), heard(shown["continue"]["text/html"])
    assert len(pieces) == 3
    assert abs(sum(pieces) - len(streamed) / 16000) < 0.02
    both = min(len(streamed), 16000)
    assert np.array_equal(streamed[:both], made[-3 * 16000 :][:both])
