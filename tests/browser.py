"""Chromium without a window, driven by its DevTools protocol over two pipes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

PATIENCE_MS = 60_000
MESSAGES = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


class Browser:
    """A context manager: the browser runs inside, with one page.

    Attributes:
        messages: what the page wrote to its console, failed requests and scripts included.
    """

    def __init__(self, program: str, profile: Path) -> None:
        self.options = f"{program} --headless=new --no-sandbox --disable-gpu about:blank"
        self.options += f" --remote-debugging-pipe --user-data-dir={profile}"
        self.messages: list[str] = []
        self._loaded, self._asked, self._session = False, 0, ""

    def __enter__(self) -> Browser:
        commands, self._out = os.pipe()
        read, answers = os.pipe()
        # The browser reads commands from file 3 and writes answers to file 4.
        shell = f"exec {self.options} 3<&{commands} 4>&{answers}"
        self._process = subprocess.Popen(
            ["bash", "-c", shell], pass_fds=(commands, answers), stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._in = os.fdopen(read, "rb")
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        self._in.close()

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command of the protocol and returns its result."""
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._asked:
            pass
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        """The next answer or event."""
        read = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "the browser ended"
            read += byte
        message = json.loads(read)
        self._loaded |= message.get("method") == "Page.loadEventFired"
        if message.get("method") in MESSAGES:
            self.messages.append(json.dumps(message["params"]))
        return message

    def open(self, address: str, width: int, dark: bool = False) -> None:
        """Loads a page on a screen of `width` pixels; the messages begin anew."""
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setDeviceMetricsOverride", **screen)
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.messages.clear()
        self._loaded = False
        self.ask("Page.navigate", url=address)
        while not self._loaded:
            self._next()

    def value(self, script: str) -> Any:
        """The value of an expression in the page; of a promise, once it has one."""
        how = {"awaitPromise": True, "returnByValue": True}
        found = self.ask("Runtime.evaluate", expression=script, **how)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Returns when an expression is true in the page, looking again at every change of it."""
        assert self.value(
            f"""new Promise(done => {{
              const look = () => {{ if ({condition}) {{ watch.disconnect(); done(true); }} }};
              const watch = new MutationObserver(look);
              watch.observe(document, {{subtree: true, childList: true, characterData: true}});
              setTimeout(() => done(false), {PATIENCE_MS});
              look();
            }})"""
        ), condition
