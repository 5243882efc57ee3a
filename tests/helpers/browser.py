"""A headless Chromium, driven by WebDriver's own protocol: JSON over HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=900,1400"),
    *("--autoplay-policy=no-user-gesture-required", "--use-fake-ui-for-media-stream"),
    *("--use-fake-device-for-media-stream", "--disable-background-networking", "--no-first-run"),
)


def found() -> bool:
    return all(shutil.which(program) for program in ("chromium", "chromedriver"))


class Browser:
    def __init__(self, port: int):
        self.root = f"http://127.0.0.1:{port}"
        wanted = {"goog:chromeOptions": {"binary": shutil.which("chromium"), "args": OPTIONS}}
        wanted |= {"goog:loggingPrefs": {"browser": "ALL"}}
        self.root += "/session/" + self.call("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.root + path, data, {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, address: str) -> None:
        self.call("/url", {"url": address})

    def run(self, code: str, *arguments: Any) -> Any:
        """What a function's body returns, or what it promises."""
        return self.call("/execute/sync", {"script": code, "args": arguments})

    def element(self, selector: str) -> str:
        path = self.call("/element", {"using": "css selector", "value": selector})[ELEMENT]
        return f"/element/{path}"

    def click(self, selector: str) -> None:
        self.call(self.element(selector) + "/click", {})

    def type(self, selector: str, text: str) -> None:
        self.call(self.element(selector) + "/value", {"text": text})

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def until(self, code: str, seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while not (value := self.run(code)):
            assert time.monotonic() < end, (code, self.text("#state"), self.text("#wrong"))
            time.sleep(0.05)
        return value

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("/screenshot")))

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.call("/se/log", {"type": "browser"}) if entry["level"] == "SEVERE"]


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    command = ["chromedriver", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        assert driver.stdout is not None
        try:
            line = next(line for line in driver.stdout if "started successfully on port" in line)
            made = Browser(int(line.split()[-1].rstrip(".")))
            yield made
            made.call("", method="DELETE")
        finally:
            driver.terminate()
