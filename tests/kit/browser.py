"""TensorBoard in a real browser: serve a run directory, read its page in headless Chromium, picture it.

    with tensorboard(run / "tensorboard") as url, Browser() as browser:
        browser.read(f"{url}#timeseries", "lr/default")
        browser.screenshot(run / "page.png")

Chromium is driven by its own protocol (DevTools, as JSON over a pair of pipes), so that no driver is needed.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]

# Reads the page's text at every frame, shadow roots included (the older plugins live in them), until it has
# all the words or the time is up. White space is no part of a word, since a tag is split over elements.
_READ = """
new Promise(resolve => {
  const words = %s, end = performance.now() + %d;
  const silent = ["SCRIPT", "NOSCRIPT", "STYLE", "TEMPLATE"];
  const read = node =>
    node.nodeType === Node.TEXT_NODE ? node.textContent
      : silent.includes(node.tagName) ? ""
      : [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes].map(read).join("");
  const look = () => {
    const text = document.body ? read(document.body) : "", packed = text.replace(/\\s+/g, "");
    const missing = words.filter(word => !packed.includes(word.replace(/\\s+/g, "")));
    if (missing.length === 0 || performance.now() > end)
      resolve({text: text.replace(/\\s+/g, " "), missing});
    else
      requestAnimationFrame(look);
  };
  look();
})
"""


_CLICK = """
(() => {
  const find = root => root.querySelector(%s) ?? [...root.querySelectorAll("*")]
    .reduce((found, node) => found ?? (node.shadowRoot && find(node.shadowRoot)), null);
  find(document).click();
})()
"""


@contextlib.contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Serve what `logdir` holds now; yields the URL once every point has been read."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", "--host=127.0.0.1", "--port=0"]
    read_once_before_serving = ["--load_fast=false", "--reload_task=blocking", "--reload_interval=0"]
    with subprocess.Popen(
        [*command, *read_once_before_serving], stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    ) as server:
        assert server.stderr
        try:
            printed = []
            for line in server.stderr:
                printed.append(line)
                if found := re.search(r"http://\S+", line):
                    yield found[0]
                    return
            raise AssertionError("TensorBoard did not start:\n" + "".join(printed))
        finally:
            server.terminate()


class Browser:
    """One page in a headless Chromium with a new profile.

    Args:
        width: Of the page, in pixels.
        height: Of the page, in pixels.
    """

    def __init__(self, width: int = 1400, height: int = 900) -> None:
        assert CHROMIUM, "there is no Chromium on this machine"
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        # Chromium reads its commands from descriptor 3 and answers on 4, whatever the numbers here.
        shell = ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash"]
        self._process = subprocess.Popen(
            [*shell, CHROMIUM, *_FLAGS, f"--user-data-dir={self._profile.name}"],
            pass_fds=[commands, answers],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._numbers = itertools.count(1)
        self._unread = b""
        self._loading: set[str] = set()
        self._session: dict[str, str] = {}
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", **size)
        self._ask("Network.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._to)  # Chromium ends when nobody can command it any more
        os.close(self._from)
        self._process.wait()
        self._profile.cleanup()

    def read(self, url: str, *words: str, timeout: float = 60) -> str:
        """Open `url` and return the text of the page as soon as it shows all of `words`.

        Raises:
            AssertionError: They did not all appear within `timeout` seconds; has the text that did.
        """
        self._ask("Page.navigate", url="about:blank")  # a URL that differs in its #part alone loads nothing
        self._loading.clear()  # what the page that is left still waited for
        self._ask("Page.navigate", url=url)
        script = _READ % (json.dumps(words), timeout * 1000)
        answer = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        page = answer["result"]["value"]
        assert not page["missing"], f"{url} does not show {page['missing']}, but:\n{page['text']}"
        return str(page["text"])

    def click(self, selector: str) -> None:
        """Click on the first element that a CSS selector finds, in the document or in a shadow root."""
        answer = self._ask("Runtime.evaluate", expression=_CLICK % json.dumps(selector))
        assert "exceptionDetails" not in answer, f"there is no {selector!r} to click on"

    def screenshot(self, path: Path) -> None:
        """Save the page as a PNG once no data is on its way and ten pictures in a row are the same."""
        last, same = "", 0
        for _ in range(500):
            picture = self._ask("Page.captureScreenshot")["data"]
            same = same + 1 if picture == last and not self._loading else 0
            last = picture
            if same == 10:
                break
        else:
            raise AssertionError(f"the page does not come to rest; it waits for {self._loading or 'nothing'}")
        path.write_bytes(base64.b64decode(last))

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self._heed(answer)
        assert "result" in answer, f"{method}: {answer.get('error')}"
        result: dict[str, Any] = answer["result"]
        return result

    def _heed(self, event: dict[str, Any]) -> None:
        """Keep account of the data that the page waits for."""
        match event:
            case {
                "method": "Network.requestWillBeSent",
                "params": {"type": "XHR" | "Fetch", "requestId": it},
            }:
                self._loading.add(it)
            case {"method": "Network.loadingFinished" | "Network.loadingFailed", "params": {"requestId": it}}:
                self._loading.discard(it)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            chunk = os.read(self._from, 1 << 16)
            assert chunk, "Chromium has gone"
            self._unread += chunk
        text, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message
