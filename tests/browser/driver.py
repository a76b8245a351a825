"""Chromium without a window, driven by the WebDriver protocol."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Enter": "\ue007", "Esc": "\ue00c"}


class Browser:
    """A chromedriver of its own on a free port, with one window."""

    def __init__(self, chromium: str, chromedriver: str) -> None:
        self.process = subprocess.Popen([chromedriver, "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        started = (re.search(r"successfully on port (\d+)", line) for line in self.process.stdout)
        port = next(found[1] for found in started if found)
        self.url = f"http://127.0.0.1:{port}/session"
        arguments = ["--headless=new", "--disable-dev-shm-usage", "--window-size=1280,1000"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")
        options = {"binary": chromium, "args": arguments}
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
        try:
            self.url += "/" + self.post("", capabilities={"alwaysMatch": wanted})["sessionId"]
        except BaseException:
            self.end()
            raise

    def close(self) -> None:
        try:
            self.request("DELETE", "")
        finally:
            self.end()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def post(self, path: str, **body: Any) -> Any:
        return self.request("POST", path, body)

    def open(self, page: Path) -> None:
        self.post("/url", url=page.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function with this body returns in the page, waited for if it is a promise."""
        return self.post("/execute/sync", script=script, args=arguments)

    def chromium(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self.post("/goog/cdp/execute", cmd=command, params=parameters)

    def press(self, *keys: str) -> None:
        kinds = ("keyDown", "keyUp")
        strokes = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in kinds]
        self.post("/actions", actions=[{"type": "key", "id": "keys", "actions": strokes}])

    def log(self, kind: str) -> list[dict[str, Any]]:
        """The entries since the last call."""
        entries: list[dict[str, Any]] = self.post("/se/log", type=kind)
        return entries

    def texts(self, selector: str) -> list[str]:
        """What is to be read in the elements; works without scripts too."""
        found = self.post("/elements", using="css selector", value=selector)
        return [self.request("GET", f"/element/{element[ELEMENT]}/text") for element in found]

    def screenshot(self) -> bytes:
        return base64.b64decode(self.request("GET", "/screenshot"))

    def print(self) -> bytes:
        return base64.b64decode(self.post("/print", background=True))

    def media(self, media: str = "", scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.chromium("Emulation.setEmulatedMedia", media=media, features=features)
