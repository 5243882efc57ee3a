"""The page in a headless Chromium: what a person does, sees and hears."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiolm_cli.server.app import PAGE
from tests.helpers import browser as browsers
from tests.helpers.browser import Browser
from tests.helpers.server import Served, serve
from tests.server.test_serve import wav

needs_chromium = pytest.mark.skipif(not browsers.found(), reason="needs chromium and chromedriver")
TAKE = """const [item] = document.querySelectorAll('#takes li')
const data = await blobs.get(item.querySelector('a').href).arrayBuffer()
return [item.querySelector('strong').textContent, item.querySelector('a').download,
  btoa(Array.from(new Uint8Array(data), byte => String.fromCharCode(byte)).join(''))]"""
# the page's policy forbids to fetch what it offers to download, so what it offers is kept
KEPT = """globalThis.blobs = new Map(); const make = URL.createObjectURL
URL.createObjectURL = blob => { const url = make.call(URL, blob); blobs.set(url, blob); return url }"""
FILLED = """const canvas = document.getElementById('picture'), context = canvas.getContext('2d')
const strip = (from, to) => new Set(new Uint32Array(context.getImageData(
  0, Math.round(from * canvas.height), canvas.width, Math.round((to - from) * canvas.height)).data.buffer)).size
return [strip(0, 0.6), strip(0.65, 0.75), strip(0.85, 1)]"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.browser() as made:
        yield made


def opened(browser: Browser, served: Served) -> Browser:
    browser.open(f"http://127.0.0.1:{served.port}/")
    browser.run(KEPT)
    return browser


@pytest.fixture
def page(browser: Browser, served: Served) -> Browser:
    opened(browser, served)
    browser.until("return document.getElementById('model').textContent.startsWith('tiny, 16 kHz')")
    return browser


def fill(page: Browser, **values: str) -> None:
    """`values` have _ for -."""
    for name, value in values.items():
        page.run("document.getElementById(arguments[0]).value = arguments[1]", name.replace("_", "-"), value)


def made(page: Browser) -> tuple[str, np.ndarray]:
    before = page.run("return document.querySelectorAll('#takes li').length")
    page.click("#make")
    page.until(f"return !making && document.querySelectorAll('#takes li').length > {before}")
    assert page.text("#wrong") == ""
    title, name, data = page.run(TAKE)
    assert name.endswith(".wav")
    with soundfile.SoundFile(io.BytesIO(base64.b64decode(data))) as file:
        assert '"digitalSourceType":"trainedAlgorithmicMedia"' in file.comment
        return title, file.read(dtype="int16")


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert " style=" not in text  # which the policy forbids
    assert len(text) < 32 << 10


@needs_chromium
@pytest.mark.slow
def test_a_sound_is_continued_heard_and_kept(page: Browser, served: Served, tmp_path: Path) -> None:
    (tmp_path / "prompt.wav").write_bytes(wav())
    page.type("#audio", str(tmp_path / "prompt.wav"))
    fill(page, duration="0.8", seed="3")
    page.run("globalThis.played = 0; const start = AudioBufferSourceNode.prototype.start;"
             "AudioBufferSourceNode.prototype.start = function (when) {"
             " played += this.buffer.length; return start.call(this, when) }")  # fmt: skip
    title, sound = made(page)
    assert title == "Take 1: continue, 1.8 s, seed 3"
    assert page.run("return played") == len(sound) == 28800
    answer = served.ask("POST", "/v1/continue?duration=0.8&seed=3", wav(), content_type="audio/wav")
    assert np.array_equal(sound, soundfile.read(io.BytesIO(answer.body), dtype="int16")[0])
    assert np.abs(sound[16000:].astype(float)).mean() > 10
    spectrogram, semantic, fine = page.run(FILLED)
    assert spectrogram > 50
    assert semantic > 10
    assert fine > 10
    label = page.run("return document.getElementById('picture').getAttribute('aria-label')")
    assert "the prompt ends at 1.0 s; below it 45 semantic tokens and 12 rows" in label
    again, same = made(page)
    assert again.startswith("Take 2")
    assert np.array_equal(sound, same)
    fill(page, seed="4")
    assert not np.array_equal(made(page)[1], sound)
    page.click("#takes li:last-child button:nth-of-type(2)")
    assert page.run("return document.getElementById('seed').value") == "3"
    page.click("#takes li:last-child button:nth-of-type(3)")
    assert page.run("return document.querySelectorAll('#takes li').length") == 2
    if os.environ.get("AUDIOLM_PICTURE"):
        page.picture(Path(os.environ["AUDIOLM_PICTURE"]))
    assert page.errors() == []


@needs_chromium
@pytest.mark.slow
def test_fields_are_the_options_of_the_command_with_its_defaults(browser: Browser, pausing: Any) -> None:
    with serve(pausing, max_seconds=20) as served:
        page = opened(browser, served)
        page.until("return options")
        shown = {}
        for command in ("continue", "resynth", "generate"):
            page.click(f"input[value={command}]")
            shown[command] = page.run("""return Object.fromEntries([...document.querySelectorAll('.grid input')]
              .filter(it => it.offsetParent).map(it => [it.id, it.placeholder]))""")
        sampling = {"seed": "random", "temperature": "0.9,0.9,0.7"}
        assert shown == {
            "continue": {"duration": "7", "max-pause": "1.5", **sampling},
            "resynth": sampling,
            "generate": {"duration": "10", "max-pause": "1.5", **sampling},
        }
        fill(page, duration="0.4", max_pause="0.1", seed="3")
        _, sound = made(page)
        answer = served.ask("POST", "/v1/generate?duration=0.4&max-pause=0.1&seed=3")
        assert np.array_equal(sound, soundfile.read(io.BytesIO(answer.body), dtype="int16")[0])


@needs_chromium
@pytest.mark.slow
def test_errors_are_said(page: Browser, tmp_path: Path) -> None:
    page.click("#make")
    page.until("return document.getElementById('wrong').textContent.startsWith('there is no sound')")
    (tmp_path / "prompt.wav").write_bytes(b"nonsense" * 100)
    page.type("#audio", str(tmp_path / "prompt.wav"))
    page.click("#make")
    page.until("return document.getElementById('wrong').textContent.startsWith('audio: not audio')")
    assert page.run("return document.querySelector('[role=alert]').id") == "wrong"


@needs_chromium
@pytest.mark.slow
def test_a_voice_a_microphone_and_nothing_at_all(page: Browser, tmp_path: Path) -> None:
    page.click("#record")
    page.until("return recorder && recorder.state === 'recording'")
    page.run("await new Promise(then => setTimeout(then, 1500))")
    page.click("#record")
    page.until("return sound && document.getElementById('source').textContent.startsWith('recorded')")
    (tmp_path / "voice.wav").write_bytes(wav(1.0, 1))
    page.click("input[value=resynth]")
    page.type("#speaker", str(tmp_path / "voice.wav"))
    title, sound = made(page)
    assert title.startswith("Take 1: resynth")
    assert len(sound) > 8000
    page.click("input[value=generate]")
    assert page.run("return document.getElementById('sound').hidden")
    fill(page, duration="20")
    page.run("""document.getElementById('make').click()
      while (!(player && player.until > 0)) await new Promise(then => setTimeout(then, 1))
      document.getElementById('stop').click()""")
    page.until("return !making")
    assert page.text("#state") == "stopped"
    assert "stopped before its end" in page.text("#takes li")


@needs_chromium
@pytest.mark.slow
def test_it_fits_a_phone_and_the_keyboard_reaches_everything(page: Browser) -> None:
    page.call("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": {
        "width": 320, "height": 700, "deviceScaleFactor": 2, "mobile": True}})  # fmt: skip
    try:
        assert page.run("return document.documentElement.scrollWidth") <= 320
    finally:
        page.call("/goog/cdp/execute", {"cmd": "Emulation.clearDeviceMetricsOverride", "params": {}})
    unnamed = page.run("""return [...document.querySelectorAll('input, button, audio, canvas')].filter(it =>
      !(it.labels?.length || it.textContent || it.getAttribute('aria-label'))).map(it => it.id)""")
    assert unnamed == []
    assert page.run("return document.querySelectorAll('[tabindex]').length") == 0
    colours: list[Any] = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.call("/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}})
        colours.append(page.run("return getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(18, 18, 21)"]


@needs_chromium
@pytest.mark.slow
def test_it_asks_for_a_token(browser: Browser, tiny: Any) -> None:
    with serve(tiny, token="a-token-of-some-length") as served:
        opened(browser, served)
        browser.until("return document.getElementById('model').textContent === 'needs a token'")
        browser.type("#token", "a-token-of-some-length\n")
        browser.until("return model")
        browser.click("input[value=generate]")
        fill(browser, duration="0.4")
        assert made(browser)[0].startswith("Take 1: generate, 0.4 s")
