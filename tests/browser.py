"""A page in headless Chromium, by the DevTools protocol over two pipes: no driver, no package.

What a page prints to its console, throws, asks the network for or is refused is written down.
"""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

import pytest

_FLAGS = (
  "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-quic",
  "--no-first-run", "--disable-background-networking", "--disable-component-update",
  "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
_PATIENCE = 60.0  # seconds for one answer, on a machine that is busy


def find() -> str:
  """Chromium's path; skips the test, saying what to install, where there is none."""
  for name in ("chromium", "chromium-browser", "google-chrome"):
    if path := shutil.which(name):
      return path
  pytest.skip("chromium is not installed (Debian: apt-get install chromium): nothing is opened")


class Page:
  """One tab.

  Attributes:
    console: what was printed or thrown, and what the page's policy refused, as text.
    requests: the addresses that were asked for, the page's own first.
  """

  def __init__(self, to_browser: int, from_browser: int):
    self._to, self._from = to_browser, from_browser
    self._rest = b""
    self._number = 0
    self._session = None
    self.console: list[str] = []
    self.requests: list[str] = []
    self._loaded = False

  def send(self, method: str, **parameters):
    """One command, and its result."""
    self._number += 1
    number = self._number
    message = {"id": number, "method": method, "params": parameters}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._to, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._next()
      if answer.get("id") == number:
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

  def _next(self):
    """The next message; events are written down on the way."""
    until = time.monotonic() + _PATIENCE
    while b"\0" not in self._rest:
      ready, _, _ = select.select([self._from], [], [], max(0, until - time.monotonic()))
      assert ready, "chromium does not answer"
      some = os.read(self._from, 1 << 20)
      assert some, "chromium has ended"
      self._rest += some
    one, _, self._rest = self._rest.partition(b"\0")
    message = json.loads(one)
    event, told = message.get("method"), message.get("params", {})
    if event == "Runtime.consoleAPICalled":
      self.console.append(f"{told['type']}: {[a.get('value') for a in told['args']]}")
    elif event == "Runtime.exceptionThrown":
      self.console.append(f"thrown: {told['exceptionDetails']}")
    elif event == "Log.entryAdded":
      self.console.append(f"{told['entry']['level']}: {told['entry']['text']}")
    elif event == "Network.requestWillBeSent":
      self.requests.append(told["request"]["url"])
    elif event == "Page.loadEventFired":
      self._loaded = True
    return message

  def attach(self):
    target = self.send("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.send(f"{domain}.enable")

  def size(self, width: int, height: int = 900, *, phone: bool = False):
    self.send(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=2 if phone else 1,
      mobile=phone,
    )

  def open(self, path: pathlib.Path, fragment: str = "") -> float:
    """Opens a file and returns the seconds until it had loaded."""
    self.console.clear()
    self.requests.clear()
    self._loaded = False
    started = time.monotonic()
    # A new document even where only the fragment differs.
    self.send("Page.navigate", url="about:blank")
    while not self._loaded:
      self._next()
    self._loaded = False
    self.requests.clear()
    started = time.monotonic()
    self.send("Page.navigate", url=path.as_uri() + fragment)
    while not self._loaded:
      self._next()
    return time.monotonic() - started

  def run(self, code: str):
    """The value of an expression in the page; promises are awaited."""
    result = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
    assert "exceptionDetails" not in result, f"{code}: {result['exceptionDetails']}"
    return result["result"].get("value")

  def picture(self, path: pathlib.Path, *, whole: bool = False):
    shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
    path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def opened(profile: pathlib.Path):
  """A page; Chromium is ended afterwards."""
  chromium = find()
  (their_in, to_browser), (from_browser, their_out) = os.pipe(), os.pipe()
  # Chromium reads from descriptor 3 and writes to 4. Ours may be 3 or 4 themselves, so a shell,
  # which copies both before it closes any, puts them there.
  command = f'exec "$0" "$@" 3<&{their_in} 4>&{their_out}'
  process = subprocess.Popen(
    ["bash", "-c", command, chromium, *_FLAGS, f"--user-data-dir={profile}"],
    pass_fds=(their_in, their_out),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  os.close(their_in)
  os.close(their_out)
  try:
    page = Page(to_browser, from_browser)
    try:
      page.attach()
    except (AssertionError, OSError) as error:
      pytest.skip(f"chromium does not start here ({error}): nothing is opened")
    yield page
  finally:
    process.terminate()
    process.wait(timeout=30)
    os.close(to_browser)
    os.close(from_browser)
